"""Conversations in the study: a model that reads dialogues, taught by simulated seekers, and how soon others find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor
from transformers import PreTrainedModel

from ilm_lib.baselines.dialogue import unit
from ilm_lib.data.conversations import films_of, read_redial
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.methods import METHODS, Encoder
from ilm_lib.model.backbone import attend_fused
from ilm_lib.model.dialogue import DialoguePrompt
from ilm_lib.model.encoders import ItemEncoder
from ilm_lib.model.finder import Finder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import dialogue_prompt
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.sections import Chat, Context, Precision, Score
from ilm_lib.settings import Params, QFormerParams
from ilm_lib.study import elm, elm_inputs, inputs, recorded, stages
from ilm_lib.study.artifacts import Artifact, SourceFile, stage
from ilm_lib.study.scoring import head_sizes, trained_parts
from ilm_lib.study.vectors import text_vectors, vectors
from ilm_lib.tasks.dialogues import DialogueTasks, dev_metrics
from ilm_lib.tasks.elm import ElmTasks
from ilm_lib.tasks.scoring import Histories
from ilm_lib.tasks.simulated import SeekerWorld
from ilm_lib.train.likeness import train_likeness
from ilm_lib.train.score import train_score

MADE_BY = "11_chat"
KINDS: tuple[Literal["cf"], Literal["text"]] = ("cf", "text")

LIKENESS = (1.0, 5.0)  # weights of a film's two kinds of vectors at first: cosines of texts vary less

#: What a model is told of a conversation.
Told = Literal["words and films", "words", "films", "words and films, LLM off"]


def talker(params: Params, seed: int, method: str, told: Told = "words and films", *, build: bool = False) -> Artifact:
    """A method's item encoder and head, taught by conversations with simulated seekers over the frozen LLM."""
    encoder, fused = METHODS[method].encoder, _vectors(params, seed, build=build)
    given = _common_inputs(params, seed, build=build) | {
        "aligned": stages.phase1(params, seed, method, vectors=fused, build=build) if METHODS[method].phase1 else None,
        "factors": inputs.embeddings(params, seed, build=build),
        "encoder": encoder,
        "qformer": params.qformer if encoder == "qformer" else None,
        "mlp_tokens": params.phase2.mlp_tokens,
        "settings": params.chat.model_copy(update={"enabled": True, "write": 1}),
        "told": told,
        "rows": elm_inputs.data(params, seed, build=build) if _writes(params, told) else None,
        "seed": seed,
        **recorded.to_teach(params),
        **inputs.wording(params),
    }
    return stage("talker", make_talker, params.profile, made_by=MADE_BY, build=build, given=given)


def make_talker(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    fold_in: dict[str, float],
    text: Artifact,
    llm: Artifact,
    aligned: Artifact | None,
    factors: Artifact,
    encoder: Encoder,
    qformer: QFormerParams | None,
    mlp_tokens: int,
    settings: Chat,
    told: Told,
    rows: Artifact | None,
    seed: int,
    dialogues: SourceFile | None = None,
    films: SourceFile | None = None,
    **wording: Any,
) -> None:
    """Train encoder and head; the weights that rank the films of other seekers best are kept.

    What the seeker's vector asks for by itself is learned first, and stays: what the LLM reads is added to it. Recorded
    dialogues (`recorded.to_teach`) teach beside simulated seekers; `rows` of the 24 writing tasks, each a single turn,
    teach the encoder to make tokens that tell of an item what its words would.
    """
    model, _ = stages.load_llm(llm)
    table = _items(cf)
    item_encoder = stages.fresh_encoder(
        encoder, table, model, aligned, qformer=qformer, mlp_tokens=mlp_tokens, seed=seed
    )
    item_encoder.dropout.p = settings.vector_dropout
    head = _new_head(settings, told, model, table, int(fold_in["factors"]))
    ilm = _model(item_encoder, head, data=data, llm=llm, text=text, cf=cf, fold_in=fold_in, **wording)
    world = world_of(data)
    _, teach = world.wishes(settings.ask, settings.teach)
    near, sizes = unit(inputs.cf_embeddings(factors).item), {"turns": settings.turns, "shown": settings.shown}
    cut = len(teach) * 9 // 10
    talks, _ = world.lessons(teach[:cut], near, seed, **sizes)
    dev, asked = world.lessons(teach[cut:], near, seed, **sizes)
    known = inputs.open_dataset(data).item_counts() + 1.0
    if dialogues and films:
        of_file = recorded.lessons(dialogues, films, inputs.open_dataset(data))
        known = recorded.known(known, of_file[0])
        talks, dev, asked = talks + of_file[0], dev + of_file[1], asked + of_file[2]
    with torch.no_grad():  # how well known an item is, and not how often these seekers looked for it
        head.bias.copy_(torch.from_numpy(known).log())
    head.bias.requires_grad_(False)
    tasks = DialogueTasks.of(ilm)
    if head.likeness is not None:
        asks, state = [tasks.asks(part) for part in (talks, dev)], folder / "state.likeness.safetensors"
        train_likeness(head.likeness, table, head.bias, *asks, seed=seed, state=state)
        head.likeness.requires_grad_(False)
    batches = tasks.training_batches(ilm.prompts, talks, settings.batch_size, seed)
    if rows is not None:
        batches = beside(batches, told_in_turns(data, rows, ilm), ilm, settings.batch_size, seed)
    autocast = use_bfloat16(settings.precision)
    optim = settings.model_dump(include={*Score.model_fields}) | {"sampled_above": len(table)}
    train_score(
        folder,
        ilm,
        batches,
        Score(**optim),
        seed=seed,
        evaluate=lambda model, step: dev_metrics(model, dev, asked, autocast=autocast),
        answers_weight=settings.elm_weight,
    )


def _writes(params: Params, told: Told) -> bool:
    """Whether a model is taught the writing tasks: it reads an item's tokens, and reads them with the LLM."""
    return params.chat.elm_weight > 0 and told in ("words and films", "films")


def told_in_turns(data: Artifact, rows: Artifact, ilm: ILM) -> ElmTasks:
    """The 24 writing tasks as a user asks them in a conversation, an item's tokens in the place of its name."""
    return elm_inputs.tasks_of(data, rows).asked_of(ilm.tokenizer, dialogue_prompt(ilm).system or None)


def beside(
    talks: Callable[[int], Histories], tasks: ElmTasks, ilm: ILM, size: int, seed: int
) -> Callable[[int], Histories]:
    """Batches of talks, each with `size` writing tasks."""
    answers = tasks.training_batches(ilm.prompts, size, seed)
    return lambda number: replace(talks(number), answers=answers(number))


def _new_head(settings: Chat, told: Told, llm: PreTrainedModel, items: Tensor, factors: int) -> ScoreHead:
    """A head for what a model is told; nothing of it is learned by heart of an item.

    Args:
        items: (I, F) vectors, whose first numbers are factors.
    """
    shown = DialoguePrompt(
        titles=settings.titles and told != "films",
        tokens=told != "words",
        words=told != "films",
        history_max=settings.history_max,
        system=settings.system,
    )
    context: Context = "last" if told.endswith("LLM off") else "llm"
    parts = [factors, items.shape[1] - factors]
    alike = {"parts": parts, "weights": LIKENESS, "dim": settings.likeness}
    return ScoreHead(
        vector_dim=items.shape[1],
        num_items=len(items),
        **head_sizes(llm, settings, context),
        likeness=alike if settings.likeness else None,
        free=False,  # most films are no teacher's; a part of their own would learn that they are never asked for
        prompt=shown,
    )


def world_of(data: Artifact) -> SeekerWorld:
    """The films of a dataset as seekers look for them."""
    return SeekerWorld.of(*films_of(inputs.open_dataset(data)))


def load_talker(params: Params, seed: int, method: str, told: Told = "words and films") -> ILM:
    """The model that `talker` trained."""
    return model_of(**talker_inputs(params, seed, method, told)).eval()


def talker_inputs(
    params: Params, seed: int, method: str, told: Told = "words and films", *, build: bool = False
) -> dict[str, Any]:
    """What `model_of` makes the model of that `talker` trained."""
    trained = talker(params, seed, method, told, build=build)
    return _common_inputs(params, seed, build=build) | {"trained": trained, **inputs.wording(params)}


def model_of(trained: Artifact, **given: Any) -> ILM:
    """The model of `talker_inputs`."""
    _, encoder, head, _ = trained_parts(trained)
    return _model(encoder, head, **given)


def success(
    params: Params, seed: int, method: str, told: Told = "words and films", *, strangers: bool = False,
    build: bool = False,
) -> Artifact:  # fmt: skip
    """Whether seekers who taught nothing find their films; success.npz, "found" (S, turns) bool."""
    given = talker_inputs(params, seed, method, told, build=build) | {
        "settings": params.chat.model_dump(include={"ask", "turns", "shown"}),
        "strangers": strangers,
        "seed": seed,
    }
    return stage("success", make_success, params.profile, made_by=MADE_BY, build=build, given=given)


def make_success(
    folder: Path, *, trained: Artifact, settings: dict[str, int], strangers: bool, seed: int, **given: Any
) -> None:
    """Hold the conversations."""
    ilm = model_of(trained, **given).eval().to(device())
    world = world_of(given["data"])
    ask, _ = world.wishes(settings["ask"], 0)
    sizes = {"turns": settings["turns"], "shown": settings["shown"]}
    np.savez(folder / "success.npz", found=world.success(ilm, ask, seed, strangers=strangers, **sizes))


def answers(
    params: Params, seed: int, method: str, told: Told = "words and films", *, strangers: bool = False,
    build: bool = False,
) -> Artifact:  # fmt: skip
    """Ranks of the films of recorded dialogues that ask (`recorded.ranked`, ranks.npz), of a profile that has some."""
    given = talker_inputs(params, seed, method, told, build=build) | {
        "strangers": strangers,
        "precision": params.chat.precision,
        **recorded.to_ask(params),
    }
    return stage("answers", make_answers, params.profile, made_by=MADE_BY, build=build, given=given)


def make_answers(
    folder: Path, *, trained: Artifact, strangers: bool, precision: Precision, dialogues: SourceFile,
    films: SourceFile, **given: Any,
) -> None:  # fmt: skip
    """Read each dialogue once, and leave ranks.npz."""
    ilm = model_of(trained, **given).eval().to(device())
    told, rows = read_redial(dialogues.path), recorded.rows_of(films, inputs.open_dataset(given["data"]))
    found = recorded.ranked(ilm, told, rows, strangers=strangers, autocast=use_bfloat16(precision))
    np.savez(folder / "ranks.npz", **found)


def _vectors(params: Params, seed: int, *, build: bool) -> Artifact:
    return vectors(params, seed, KINDS, whole_texts=True, build=build)


def _common_inputs(params: Params, seed: int, *, build: bool) -> dict[str, Any]:
    """What a model that reads dialogues is made of besides what is trained."""
    fused = _vectors(params, seed, build=build)
    fold = stages.history_fold_in(params, inputs.embeddings(params, seed, build=build), fused)
    assert fold is not None, "vectors of a file have no fold-in"
    of_films = params.elm24.enabled and not params.backbone.pretrained
    return {
        "data": inputs.data(params),
        "cf": fused,
        "fold_in": vars(fold).copy(),
        "text": text_vectors(params, build=build),
        "llm": (elm if of_films else stages).backbone(params, seed, build=build),
    }


def _items(cf: Artifact) -> Tensor:
    """(I, d) vectors of the items as a model has them; it knows no user."""
    table, num_items = stages.cf_of_model(cf, seed=0, shuffled=False)
    return table[:num_items]


def _model(
    encoder: ItemEncoder, head: ScoreHead, *, data: Artifact, cf: Artifact, fold_in: dict[str, float], text: Artifact,
    llm: Artifact, **wording: Any,
) -> ILM:  # fmt: skip
    """An ILM of the items of a dataset, which finds them by words as well."""
    model, tokenizer = stages.load_llm(llm)
    attend_fused(model)  # dialogues are long
    items, catalogue = _items(cf), inputs.tasks_of(data, **wording).catalogue().without_users()
    finder = Finder(load_file(text.path("text.safetensors"))["item"], np.asarray(catalogue.weights, np.float32))
    return ILM(model, tokenizer, encoder, items, len(items), catalogue, "slot", FoldIn(**fold_in), head, finder=finder)
