"""What an LLM knew, and what is left of it after a training on the ELM tasks: frozen, with LoRA, trained as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ilm_lib.devices import device
from ilm_lib.files import read_json, write_json
from ilm_lib.methods import METHODS, Encoder
from ilm_lib.settings import Params, Phase2, QFormerParams
from ilm_lib.study import elm, elm_inputs, inputs, stages
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.tasks.battery import battery
from ilm_lib.train.phase2 import answer_loss, train_beside_llm

Trains = Literal["nothing", "encoder", "lora", "all"]
#: What is trained, in words: before; the paper's way; two that change the LLM.
WAYS: dict[Trains, str] = {
    "nothing": "before",
    "encoder": "after, frozen",
    "lora": "after, LoRA",
    "all": "after, trained as a whole",
}
PLOTS = 100  # texts of test films that the LLM reads
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
RATES = {"lora": 2e-4, "all": 5e-5}  # as LLMs are usually trained; an encoder's would leave nothing of one


def kept(params: Params, seed: int, method: str, trains: Trains, *, build: bool = False) -> Artifact:
    """What the LLM knows after a method's phase 2 on the ELM tasks; leaves `battery.json` and, but for "nothing",
    log.parquet."""
    own, m = elm.of_own_length(params), METHODS[method]
    given: dict[str, Any] = {
        "data": inputs.data(params),
        "cf": inputs.embeddings(params, seed, build=build),
        "rows": elm_inputs.data(params, seed, build=build),
        "llm": elm.backbone(params, seed, build=build),
        "aligned": elm.phase1(params, seed, build=build) if m.phase1 else None,
        "encoder": m.encoder,
        "qformer": own.qformer if m.encoder == "qformer" else None,
        "settings": own.phase2,
        "system": params.elm24.system,
        "trains": trains,
        "seed": seed,
    }
    return stage("elm_kept", make_kept, params.profile, made_by=elm_inputs.NOTEBOOK, build=build, given=given)


def make_kept(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    rows: Artifact,
    llm: Artifact,
    aligned: Artifact | None,
    encoder: Encoder,
    qformer: QFormerParams | None,
    settings: Phase2,
    system: str | None,
    trains: Trains,
    seed: int,
) -> None:
    """Train on the 24 tasks, then ask the battery."""
    ilm = stages.new_ilm(encoder, llm, cf, aligned, qformer, settings, tasks=None, seed=seed)
    tasks = elm_inputs.tasks_of(data, rows).asked_of(ilm.tokenizer, system)
    if trains != "nothing":
        if trains == "all":
            ilm.llm.requires_grad_(True)
        elif trains == "lora":
            from peft import LoraConfig, inject_adapter_in_model  # an extra of the study

            inject_adapter_in_model(LoraConfig(**LORA), ilm.llm)  # into the layers that peft names for its kind
        settings = settings.model_copy(update={"lr": RATES.get(trains, settings.lr)})
        batches = tasks.training_batches(ilm.prompts, settings.batch_size, seed)
        modules = [ilm.encoder] if trains == "encoder" else [ilm.encoder, ilm.llm]
        train_beside_llm(
            folder, ilm, modules, answer_loss, batches, settings, seed=seed, evaluate=None, label=f"ELM, {trains}"
        )
    test = sorted(set(tasks.part("test")["item"]))
    plots = [plot for film in test if (plot := tasks.films[film].get("overview"))][:PLOTS]
    found = battery(ilm.llm.to(device()).eval(), ilm.tokenizer, plots)
    write_json(folder / "battery.json", {"rows": found.to_dict("records"), "digest": found.attrs["digest"]})


def kept_table(params: Params, seed: int, method: str, *, build: bool = False) -> pd.DataFrame:
    """What the LLM knows, a row a measure and a column a way.

    Columns measure, n, then `WAYS` in words; "same logits" is 1 where those of all plots are the same bits as before.
    """
    runs = {trains: read_json(kept(params, seed, method, trains, build=build).path("battery.json")) for trains in WAYS}
    table = pd.DataFrame(runs["nothing"]["rows"])[["measure", "n"]]
    for trains, words in WAYS.items():
        table[words] = [row["value"] for row in runs[trains]["rows"]]
    same = {words: float(runs[t]["digest"] == runs["nothing"]["digest"]) for t, words in WAYS.items()}
    return pd.concat([table, pd.DataFrame([{"measure": "same logits", "n": PLOTS, **same}])], ignore_index=True)
