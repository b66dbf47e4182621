"""The stages of training that every study has: phase 1, the LLM, phase 2; and the models they leave.

A stage has two functions, as in `inputs`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ilm_lib.baselines.cf import fold_in
from ilm_lib.data.llms import find_llm
from ilm_lib.files import read_json
from ilm_lib.methods import METHODS, Encoder
from ilm_lib.model.backbone import load_backbone, recompute_layers, shard_layers
from ilm_lib.model.encoders import ItemEncoder, build_encoder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import PromptEncoder
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.settings import Backbone, ItemPositions, Params, Phase1, Phase2, QFormerParams
from ilm_lib.study import inputs
from ilm_lib.study.artifacts import Artifact, SourceFile, stage
from ilm_lib.tasks.openp5 import RecommendationTasks, dev_metrics
from ilm_lib.train.phase1 import run_phase1
from ilm_lib.train.phase2 import new_encoder, train_phase2
from ilm_lib.train.pretrain import pretrain, reference

# ---------------------------------------------------------------- phase 1


def phase1(params: Params, seed: int, method: str, *, vectors: Artifact | None = None, build: bool = False) -> Artifact:
    """The Q-Former of a method after phase 1; `vectors` that it reads in place of the profile's embeddings."""
    given = {
        "data": inputs.data(params),
        "cf": inputs.embeddings(params, seed, build=build) if vectors is None else vectors,
        "qformer": params.qformer,
        "settings": params.phase1.model_copy(update={"losses": params.losses_of(method)}),
        "seed": seed,
    }
    return stage("phase1", make_phase1, params.profile, made_by="03_phase1", build=build, given=given)


def make_phase1(
    folder: Path, *, data: Artifact, cf: Artifact, qformer: QFormerParams, settings: Phase1, seed: int
) -> None:
    """Train on the pairs of a dataset; the files are those of `run_phase1`."""
    pairs = inputs.openp5_pairs(inputs.open_dataset(data), inputs.cold_items(data))
    run_phase1(folder, pairs, inputs.scaled_cf(cf), qformer, settings, settings.losses, seed=seed)


# ---------------------------------------------------------------- the LLM


def backbone(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The LLM of the OpenP5 tasks: ours, pretrained on text-only prompts, or a named one."""
    if params.backbone.pretrained:
        return named_backbone(params, build=build, made_by="04_phase2")
    given = {
        "data": inputs.data(params),
        **inputs.wording(params),
        "settings": params.backbone.model_copy(update={"seed": None}),
        "seed": seed if params.backbone.seed is None else params.backbone.seed,
    }
    return stage("backbone", make_backbone, params.profile, made_by="04_phase2", build=build, given=given)


def make_backbone(folder: Path, *, data: Artifact, settings: Backbone, seed: int, **wording: Any) -> None:
    """Train a tokenizer and pretrain our decoder on the training prompts without items' tokens."""
    tasks = inputs.tasks_of(data, **wording)
    whole = tasks.indexing.names() if settings.index_tokens == "whole" else ()
    tokenizer = train_tokenizer(tasks.corpus(), settings.vocab, whole=whole)
    encoder = PromptEncoder(tokenizer, tasks.data.num_items, 0)
    batches = tasks.training_batches(encoder, settings.batch_size, "text", seed)
    pretrain(folder, settings, tokenizer, batches, seed=seed)


def named_backbone(params: Params, *, build: bool, made_by: str) -> Artifact:
    """A reference to the LLM that a profile names; a folder counts by its files, a name of the hub by itself."""
    name = str(params.backbone.pretrained)
    kinds = {".safetensors", ".json", ".model", ".jinja"}
    files = [SourceFile(p) for p in sorted(Path(find_llm(name)).glob("*")) if p.suffix in kinds]
    given = {"name": name, "files": files, **params.backbone.model_dump(include={"dtype", "recompute", "sharded"})}
    return stage("backbone", make_reference, params.profile, made_by=made_by, build=build, given=given)


def make_reference(folder: Path, *, name: str, files: list[SourceFile], **kept: Any) -> None:
    """Leave the name and the fingerprint of an LLM, and how it is kept in memory, in place of a copy of its weights."""
    reference(folder, name, find_llm(name), **kept)


def load_llm(backbone: Artifact) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a backbone artifact."""
    disable_progress_bar()  # a notebook's output holds results, not the bars of loading weights
    about = read_json(backbone.path("backbone.json"))
    if (name := about["name"]) is None:
        return load_backbone(backbone.path("backbone"))
    llm, tokenizer = load_backbone(find_llm(name), dtype=about["dtype"])
    llm = recompute_layers(llm) if about["recompute"] else llm
    return shard_layers(llm) if about["sharded"] else llm, tokenizer


# ---------------------------------------------------------------- phase 2


def phase2(params: Params, seed: int, method: str, *, shuffled: bool = False, build: bool = False) -> Artifact:
    """A method's item encoder trained on the OpenP5 tasks over the frozen LLM.

    Args:
        shuffled: give every item and user another one's embedding (a control that must lose the gain).
    """
    encoder = METHODS[method].encoder  # and not the method: ILM and ILM-IT-UI may be one thing
    given = {
        "data": inputs.data(params),
        "cf": inputs.embeddings(params, seed, build=build),
        "llm": backbone(params, seed, build=build),
        "aligned": phase1(params, seed, method, build=build) if METHODS[method].phase1 else None,
        "encoder": encoder,
        "qformer": params.qformer if encoder == "qformer" else None,
        "settings": params.phase2 if encoder == "mlp" else params.phase2.model_copy(update={"mlp_tokens": 1}),
        "batch_size": params.evaluation.batch_size,
        "shuffled": shuffled,
        "seed": seed,
        **inputs.wording(params),
    }
    return stage("phase2", make_phase2, params.profile, made_by="04_phase2", build=build, given=given)


def make_phase2(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    llm: Artifact,
    aligned: Artifact | None,
    encoder: Encoder,
    qformer: QFormerParams | None,
    settings: Phase2,
    batch_size: int,
    shuffled: bool,
    seed: int,
    **wording: Any,
) -> None:
    """Train the encoder; the checkpoint with the best NDCG@10 on the dev items is kept."""
    tasks = inputs.tasks_of(data, **wording)
    ilm = new_ilm(encoder, llm, cf, aligned, qformer, settings, tasks=tasks, seed=seed, shuffled=shuffled)
    users = inputs.sample_users(tasks.data, "dev", settings.dev_users)
    batches = tasks.training_batches(ilm.prompts, settings.batch_size, settings.loss_on, seed)
    train_phase2(
        folder,
        ilm,
        batches,
        settings,
        seed=seed,
        evaluate=lambda model, step: dev_metrics(model, tasks, users, batch_size=batch_size),
    )


def new_ilm(
    encoder: Encoder,
    llm: Artifact,
    cf: Artifact,
    aligned: Artifact | None,
    qformer: QFormerParams | None,
    settings: Phase2,
    *,
    tasks: RecommendationTasks | None,
    seed: int,
    shuffled: bool = False,
) -> ILM:
    """A model before phase 2: an encoder, fresh or from phase 1, calibrated to the LLM."""
    model, tokenizer = load_llm(llm)
    table, num_items = cf_of_model(cf, seed, shuffled)
    item_encoder = fresh_encoder(
        encoder, table, model, aligned, qformer=qformer, mlp_tokens=settings.mlp_tokens, seed=seed
    )
    catalogue = tasks.catalogue() if tasks else None
    return ILM(model, tokenizer, item_encoder, table, num_items, catalogue, settings.item_positions)


def fresh_encoder(
    encoder: Encoder, table: Tensor, llm: PreTrainedModel, aligned: Artifact | None, **sizes: Any
) -> ItemEncoder | None:
    """An item encoder, fresh or from phase 1, calibrated to the LLM; `sizes` as `new_encoder` takes them."""
    weights = load_file(aligned.path("qformer.safetensors")) if aligned else None
    return new_encoder(encoder, table, llm, aligned=weights, **sizes)


def cf_of_model(cf: Artifact, seed: int, shuffled: bool) -> tuple[Tensor, int]:
    """The scaled table of a model, in which every item and user may carry another one's vector, and I."""
    vectors = inputs.cf_embeddings(cf)
    table, num_items = torch.from_numpy(vectors.scaled_table()), len(vectors.item)
    if shuffled:
        rng = np.random.default_rng(seed)
        order = [rng.permutation(num_items), num_items + rng.permutation(len(table) - num_items)]
        table = table[torch.from_numpy(np.concatenate(order))]
    return table, num_items


def trained_ilm(
    llm: Artifact,
    cf: Artifact,
    trained: Artifact | None,
    *,
    tasks: RecommendationTasks | None,
    item_positions: ItemPositions,
    seed: int = 0,
    shuffled: bool = False,
) -> ILM:
    """A model after phase 2, for evaluation; `trained` is the artifact that holds its encoder, None the bare LLM."""
    model, tokenizer = load_llm(llm)
    table, num_items = cf_of_model(cf, seed, shuffled)
    encoder = None
    if trained is not None:
        encoder = build_encoder(read_json(trained.path("encoder.json"))["config"])
        encoder.load_state_dict(load_file(trained.path("encoder.safetensors")))
    catalogue = tasks.catalogue() if tasks else None
    return ILM(model, tokenizer, encoder, table, num_items, catalogue, item_positions).eval()


def load_ilm(params: Params, seed: int, method: str, *, trained: bool = True) -> ILM:
    """The model of a method on the OpenP5 tasks; `trained`: after phase 2, else where it starts from."""
    encoder, tasks = METHODS[method].encoder, inputs.recommendation_tasks(params)
    llm, cf = backbone(params, seed), inputs.embeddings(params, seed)
    if trained:
        after = None if encoder == "none" else phase2(params, seed, method)
        ilm = trained_ilm(llm, cf, after, tasks=tasks, item_positions=params.phase2.item_positions)
        ilm.fold_in = history_fold_in(params, cf)
        return ilm
    aligned = phase1(params, seed, method) if METHODS[method].phase1 else None
    return new_ilm(encoder, llm, cf, aligned, params.qformer, params.phase2, tasks=tasks, seed=seed).eval()


def history_fold_in(params: Params, cf: Artifact, fused: Artifact | None = None) -> FoldIn | None:
    """How a user's vector is made of a history, beside the profile's embeddings or the vectors that hold them and more.

    None where the embeddings came from a file: nothing is known of how they were factorised.
    """
    if params.embeddings.file:
        return None
    made = params.embeddings.model_dump(include={"engine", "regularization", "unobserved_weight"})
    return fold_in(inputs.cf_embeddings(cf), **made, fused=inputs.cf_embeddings(fused) if fused else None)
