"""The models that `bench.privacy` attacks, trained and saved as one shares them.

Two LLMs: one that read the prompts of all users, as in the study, and one that read those of the half that is not
attacked. Of each: the LLM alone; ILM as it is, with only its encoder trained; and one whose LLM learns too, for as many
steps. Of the first also one whose LLM learns for up to three times as many, its best checkpoint on the dev items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ilm_lib.data import Dataset
from ilm_lib.devices import device
from ilm_lib.files import replace_folder
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import PromptEncoder
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.profiles import runs_dir
from ilm_lib.settings import Params, Phase2
from ilm_lib.study import inputs, stages
from ilm_lib.study.artifacts import Artifact, MissingStage
from ilm_lib.tasks.openp5 import RecommendationTasks, dev_metrics
from ilm_lib.train.loop import fit
from ilm_lib.train.pretrain import pretrain

LONGER = "encoder and LLM, longer"
DEV_USERS = 200


class Model(NamedTuple):
    """A saved model.

    Attributes:
        llm: whose prompts the LLM read before phase 2: "all users" or "other users".
        trained: in phase 2: "nothing", "encoder", "encoder and LLM" or `LONGER`.
        folder: what `save_pretrained` wrote.
        dev: NDCG@10 on the dev items of 200 users, history kept, both tasks; NaN where nothing was trained.
    """

    llm: str
    trained: str
    folder: Path
    dev: float


def attacked(num_users: int) -> np.ndarray:
    """Rows of the half of the users that is attacked, the same for every seed."""
    return np.sort(np.random.default_rng(0).permutation(num_users)[: num_users // 2])


def models(params: Params, seed: int, *, build: bool = True) -> Iterator[Model]:
    """All models of a seed; those that are missing are trained first, or with `build=False` left out."""
    llms = {"all users": stages.backbone, "other users": others_llm}
    plan = [(llm, how) for llm in llms for how in ("nothing", "encoder", "encoder and LLM")]
    for llm, how in [*plan, ("all users", LONGER)]:
        try:
            yield trained(params, seed, llms[llm](params, seed, build=build), llm, how, build=build)
        except MissingStage as missing:
            print(f"left out: {missing}", flush=True)


# ---------------------------------------------------------------- an LLM of other users


def others_llm(params: Params, seed: int, *, build: bool = True) -> Artifact:
    """As `stages.backbone`, on the prompts of the users that are not attacked; all names are in its vocabulary."""
    data = inputs.data(params, build=True)

    def make(folder: Path) -> None:
        tasks = inputs.tasks_of(data, **inputs.wording(params))
        names, settings = tasks.indexing.names(), params.backbone
        rest = np.setdiff1d(np.arange(tasks.data.num_users), attacked(tasks.data.num_users))
        tasks = of_users(tasks, rest)
        tokenizer = train_tokenizer(
            tasks.corpus(), settings.vocab, whole=names if settings.index_tokens == "whole" else ()
        )
        encoder = PromptEncoder(tokenizer, tasks.data.num_items, 0)
        pretrain(
            folder, settings, tokenizer, tasks.training_batches(encoder, settings.batch_size, "text", seed), seed=seed
        )

    folder = kept(params, "others", [data.key, seed, params.backbone.model_dump()], make, build)
    return Artifact("backbone", folder.name, folder)


def of_users(tasks: RecommendationTasks, users: np.ndarray) -> RecommendationTasks:
    """The same prompts for some of the users, whose rows are counted anew; their numbers in texts stay."""
    data = tasks.data
    sequences = [data.sequence(u) for u in users]
    part: Dataset = replace(
        data,
        users=[data.users[u] for u in users],
        sequences=np.concatenate(sequences),
        offsets=np.cumsum([0, *map(len, sequences)]),
        user_index=data.user_index[users],
        held_out=data.held_out and data.held_out[users],
    )
    indexing = Indexing(part.name, part.user_index, part.item_index, tasks.indexing.history_separator)
    return replace(tasks, data=part, indexing=indexing)


# ---------------------------------------------------------------- phase 2, with the LLM frozen or not


def trained(params: Params, seed: int, llm: Artifact, llm_name: str, how: str, *, build: bool = True) -> Model:
    """A model after phase 2 of ILM."""
    make, times = TRAINED[how]
    steps = times * params.phase2.steps
    changed = {"mlp_tokens": 1, "steps": steps, "eval_every": max(1, steps // (2 * times - 1)), "dev_users": DEV_USERS}
    settings = params.phase2.model_copy(update=changed)
    given: dict[str, Any] = {
        "data": inputs.data(params, build=True),
        "cf": inputs.embeddings(params, seed, build=True),
        "llm": llm,
        "aligned": stages.phase1(params, seed, "ILM", build=build),
    }
    identity = [how, seed, settings.model_dump(), *(a.key for a in given.values())]
    given |= {"qformer": params.qformer, "settings": settings, "batch_size": params.evaluation.batch_size, "seed": seed}
    build |= how == "nothing"  # a matter of seconds
    folder = kept(params, "model", identity, lambda folder: make(folder, **given, **inputs.wording(params)), build)
    if how == "nothing":
        return Model(llm_name, how, folder / "model", float("nan"))
    log = pd.read_parquet(folder / "log.parquet")
    return Model(llm_name, how, folder / "model", float(log.loc[log["name"] == "dev NDCG@10", "value"].max()))


def save(folder: Path, cf: Artifact, llm: Artifact, after: Artifact | None, settings: Phase2, rest: Any) -> None:
    """Leave the model as one shares it."""
    wording = {name: rest[name] for name in ("templates", "history_max", "history_separator")}
    tasks = inputs.tasks_of(rest["data"], **wording)
    ilm = stages.trained_ilm(llm, cf, after, tasks=tasks, item_positions=settings.item_positions)
    ilm.save_pretrained(folder / "model")


def make_bare(folder: Path, *, cf: Artifact, llm: Artifact, settings: Phase2, **rest: Any) -> None:
    """The LLM alone; leave the model."""
    save(folder, cf, llm, None, settings, rest)


def make_frozen(folder: Path, *, cf: Artifact, llm: Artifact, settings: Phase2, **rest: Any) -> None:
    """Phase 2 as the library has it; leave the model."""
    stages.make_phase2(folder, cf=cf, llm=llm, encoder="qformer", settings=settings, shuffled=False, **rest)
    save(folder, cf, llm, Artifact("phase2", folder.name, folder), settings, rest)


def make_full(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    llm: Artifact,
    aligned: Artifact,
    qformer: Any,
    settings: Phase2,
    batch_size: int,
    seed: int,
    **wording: Any,
) -> None:
    """Phase 2 in which the LLM learns with the encoder: the same start, batches, optimiser and choice of checkpoint."""
    tasks = inputs.tasks_of(data, **wording)
    ilm = stages.new_ilm("qformer", llm, cf, aligned, qformer, settings, tasks=tasks, seed=seed)
    ilm.llm.requires_grad_(True)
    users = inputs.sample_users(tasks.data, "dev", settings.dev_users)
    log = fit(
        ilm.to(device()),
        [*ilm.encoder.parameters(), *ilm.llm.parameters()],
        lambda m, b: {"loss": m(b.to(device()), use_cache=False).loss},
        tasks.training_batches(ilm.prompts, settings.batch_size, settings.loss_on, seed),
        settings,
        seed=seed,
        evaluate=lambda model, step: dev_metrics(model, tasks, users, batch_size=batch_size),
        eval_every=settings.eval_every,
        keep_best="dev NDCG@10",
        state=folder / "state.pt",
        label="phase 2, all weights",
    )
    log.to_parquet(folder / "log.parquet")
    ilm.cpu().save_pretrained(folder / "model")


TRAINED: dict[str, tuple[Callable[..., None], int]] = {
    "nothing": (make_bare, 1),
    "encoder": (make_frozen, 1),
    "encoder and LLM": (make_full, 1),
    LONGER: (make_full, 3),
}


def kept(params: Params, name: str, identity: list[Any], make: Callable[[Path], None], build: bool) -> Path:
    """The folder that `make` left for these inputs; made first where it is missing.

    A small stand-in for a stage, whose code must be the library's. A change of this file does not rename a folder.
    """
    key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:12]
    folder = runs_dir() / params.profile / "privacy" / f"{name}-{key}"
    if not folder.is_dir():
        if not build:
            raise MissingStage(f"{folder} has not been made")
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        make(partial)
        (partial / "state.pt").unlink(missing_ok=True)
        replace_folder(partial, folder)
    return folder
