"""The stages of the ELM-24 tasks (section 4.3): as in `stages`, but the LLM writes instead of ranking."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ilm_lib.data import data_dir
from ilm_lib.data.films import PLOTS
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.methods import METHODS, TEXT_LOSSES, Encoder
from ilm_lib.metrics import embed_sentences, semantic_consistency, sentence_encoder
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import PromptEncoder
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.settings import Backbone, ItemPositions, Params, Phase1, Phase2, Precision, QFormerParams
from ilm_lib.study import elm_inputs, inputs, stages
from ilm_lib.study.artifacts import Artifact, SourceFile, stage
from ilm_lib.tasks.elm import ElmTasks, InText, evaluate
from ilm_lib.train.phase1 import run_phase1
from ilm_lib.train.phase2 import train_phase2
from ilm_lib.train.pretrain import pretrain

# ---------------------------------------------------------------- the LLM and phase 1


def backbone(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The LLM of the ELM tasks: ours, pretrained on texts of films, or a named one."""
    if params.backbone.pretrained:
        return stages.named_backbone(params, build=build, made_by=elm_inputs.NOTEBOOK)
    e, seed = params.elm24, seed if params.backbone.seed is None else params.backbone.seed
    own_length = {"steps": e.backbone_steps, "batch_size": e.backbone_batch_size, "seed": None}
    settings = params.backbone.model_copy(update={**own_length, "lr": e.backbone_lr or params.backbone.lr})
    given: dict[str, Any] = {"data": inputs.data(params), "settings": settings, "seed": seed}
    given |= {"text_vocab": params.qformer.text_vocab}
    if e.other_films is None:
        given |= {"rows": elm_inputs.data(params, seed, build=build)}
        return stage(
            "elm_backbone", make_backbone, params.profile, made_by=elm_inputs.NOTEBOOK, build=build, given=given
        )
    remedy = "Set elm24.other_films to a folder that holds it, relative to ILM_DATA_DIR, or leave it out"
    files = [SourceFile(data_dir() / e.other_films / name, remedy) for name in ("movies.csv", PLOTS)]
    given |= {"films": files, **e.model_dump(include={"test_fraction", "min_facts"})}
    return stage(
        "elm_backbone", make_backbone_of_others, params.profile, made_by=elm_inputs.NOTEBOOK, build=build, given=given
    )


def make_backbone(
    folder: Path, *, data: Artifact, rows: Artifact, settings: Backbone, text_vocab: int, seed: int
) -> None:
    """Our LLM learns to read and write on the training films."""
    _pretrain(folder, elm_inputs.tasks_of(data, rows), settings, text_vocab, seed)


def make_backbone_of_others(
    folder: Path,
    *,
    data: Artifact,
    films: list[SourceFile],
    test_fraction: float,
    min_facts: int,
    settings: Backbone,
    text_vocab: int,
    seed: int,
) -> None:
    """Our LLM learns to read and write on other films than the study's."""
    tasks = elm_inputs.tasks_of_others(films, inputs.open_dataset(data).texts, test_fraction, min_facts)
    _pretrain(folder, tasks, settings, text_vocab, seed)


def _pretrain(folder: Path, tasks: ElmTasks, settings: Backbone, text_vocab: int, seed: int) -> None:
    tokenizer = train_tokenizer(tasks.corpus(), text_vocab)
    encoder = PromptEncoder(tokenizer, len(tasks.films), 0)
    pretrain(folder, settings, tokenizer, tasks.pretraining_batches(encoder, settings.batch_size, seed), seed=seed)


def phase1(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """Phase 1 on item-text pairs alone, to keep neighbours out of it (section 4.3)."""
    own = of_own_length(params)
    given = {
        "data": inputs.data(params),
        "cf": inputs.embeddings(params, seed, build=build),
        "rows": elm_inputs.data(params, seed, build=build),
        "qformer": own.qformer,
        "settings": own.phase1.model_copy(update={"losses": TEXT_LOSSES}),
        "seed": seed,
    }
    return stage("elm_phase1", make_phase1, params.profile, made_by=elm_inputs.NOTEBOOK, build=build, given=given)


def make_phase1(
    folder: Path, *, data: Artifact, cf: Artifact, rows: Artifact, qformer: QFormerParams, settings: Phase1, seed: int
) -> None:
    """Train on the prompts and targets of the training rows."""
    pairs = elm_inputs.tasks_of(data, rows).pairs()
    run_phase1(folder, pairs, inputs.scaled_cf(cf), qformer, settings, settings.losses, seed=seed)


def of_own_length(params: Params) -> Params:
    """The profile with the lengths of the ELM half."""
    e = params.elm24
    return params.with_(
        **{"phase1.steps": e.phase1_steps, "phase2.steps": e.phase2_steps, "qformer.max_text_tokens": e.max_text_tokens}
    )


# ---------------------------------------------------------------- evaluation


def anchors(params: Params) -> list[str]:
    """What the numbers mean: an MLP with as many tokens as the Q-Former, LLMs that know nothing of the film or may read
    about it, and the same with trained tokens in front, which tell style from knowledge (`elm24.tuned`)."""
    asked = {"MLP-N": params.elm24.mlp_n, "Nothing-in-text": params.elm24.tuned}
    return [name for name, m in METHODS.items() if m.anchor and asked.get(name, params.elm24.tuned or not _tuned(name))]


def _tuned(method: str) -> bool:
    return METHODS[method].reads is not None and METHODS[method].blind


def evaluation(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """Phase 2 on the 24 tasks, then log likelihood and texts for the test films; with `build` what comes before, too.

    The anchor MLP-N trains the MLP with as many tokens as the Q-Former has; those that are `blind` train ILM-rand with
    the mean embedding for every film, in the film's place or, where the film is there in words, in front. Others train
    nothing, the frozen LLM reads the film in words.
    """
    m = METHODS[method]
    given: dict[str, Any] = {
        "data": inputs.data(params),
        "cf": inputs.embeddings(params, seed, build=build),
        "rows": elm_inputs.data(params, seed, build=build),
        "llm": backbone(params, seed, build=build),
        "item_positions": params.phase2.item_positions,
        "precision": params.evaluation.precision,
        "asked": params.elm24.model_dump(
            include={"rows_per_task", "max_new_tokens", "no_repeat_ngram", "sentence_encoder"}
        ),
        "system": params.elm24.system,
        "in_text": _in_text(params, method),
    }
    if m.encoder == "none":
        return stage(
            "elm_evaluation", make_reading, params.profile, made_by=elm_inputs.NOTEBOOK, build=build, given=given
        )
    own = of_own_length(params)
    tokens = {"MLP": params.phase2.mlp_tokens, "MLP-N": params.qformer.num_query_tokens}.get(method, 1)
    given |= {
        "aligned": phase1(params, seed, build=build) if m.phase1 else None,
        "encoder": m.encoder,
        "qformer": own.qformer if m.encoder == "qformer" else None,
        "settings": own.phase2.model_copy(update={"mlp_tokens": tokens}),
        "blind": m.blind,
        "seed": seed,
    }
    return stage("elm_evaluation", make_trained, params.profile, made_by=elm_inputs.NOTEBOOK, build=build, given=given)


def _in_text(params: Params, method: str) -> InText | None:
    """What a method reads of a film in words; a title says nothing to an LLM of ours, which knows no test film."""
    reads = METHODS[method].reads
    return "card" if reads == "title" and not params.backbone.pretrained else reads


def make_trained(
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
    in_text: InText | None,
    blind: bool,
    seed: int,
    system: str | None,
    **asked: Any,
) -> None:
    """Train an item encoder on the 24 tasks, then score it; `blind` gives every film the mean embedding."""
    ilm = stages.new_ilm(encoder, llm, cf, aligned, qformer, settings, tasks=None, seed=seed)
    tasks = elm_inputs.tasks_of(data, rows).asked_of(ilm.tokenizer, system)
    if blind:
        ilm.cf = ilm.cf[: ilm.num_items].mean(0, keepdim=True).expand_as(ilm.cf).contiguous()
    batches = tasks.training_batches(ilm.prompts, settings.batch_size, seed, in_text=in_text)
    train_phase2(folder, ilm, batches, settings, seed=seed)
    _score(folder, ilm, tasks, in_text, soft=in_text is not None, **asked)


def make_reading(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    rows: Artifact,
    llm: Artifact,
    in_text: InText | None,
    item_positions: ItemPositions,
    system: str | None,
    **asked: Any,
) -> None:
    """Score the frozen LLM, which reads about the films in words."""
    ilm = stages.trained_ilm(llm, cf, None, tasks=None, item_positions=item_positions)
    tasks = elm_inputs.tasks_of(data, rows).asked_of(ilm.tokenizer, system)
    _score(folder, ilm, tasks, in_text, item_positions=item_positions, **asked)


def _score(
    folder: Path,
    ilm: ILM,
    tasks: ElmTasks,
    in_text: InText | None,
    *,
    soft: bool = False,
    asked: dict[str, Any],
    precision: Precision,
    item_positions: ItemPositions,
) -> None:
    """Leave scored.parquet: test rows with nll, tokens, generated and SC."""
    test = tasks.part("test")
    if asked["rows_per_task"]:
        test = test.groupby("task", sort=False).head(asked["rows_per_task"]).reset_index(drop=True)
    lengths = {name: asked[name] for name in ("max_new_tokens", "no_repeat_ngram")}
    scored = evaluate(ilm.to(device()), tasks, test, in_text=in_text, soft=soft, **lengths)
    texts = (tuple(scored[column]) for column in ("generated", "target"))
    vectors = [sentences(asked["sentence_encoder"], t, use_bfloat16(precision)) for t in texts]
    scored.assign(SC=semantic_consistency(*vectors)).to_parquet(folder / "scored.parquet")


@lru_cache(8)
def sentences(encoder: str | None, texts: tuple[str, ...], autocast: bool) -> np.ndarray:
    """Embeddings of texts; the targets are the same for every method."""
    return embed_sentences(_sentence_encoder(encoder), texts, autocast=autocast)


_sentence_encoder = lru_cache(1)(sentence_encoder)  # its file is checked and read once, not for every method


def load_ilm(params: Params, seed: int, method: str, *, trained: bool = True) -> ILM:
    """The model of a method; `trained`: after phase 2, else where it starts from."""
    llm, cf = backbone(params, seed), inputs.embeddings(params, seed)
    if trained:
        after = evaluation(params, seed, method)
        return stages.trained_ilm(llm, cf, after, tasks=None, item_positions=params.phase2.item_positions)
    own, m = of_own_length(params), METHODS[method]
    aligned = phase1(params, seed) if m.phase1 else None
    return stages.new_ilm(m.encoder, llm, cf, aligned, own.qformer, own.phase2, tasks=None, seed=seed).eval()
