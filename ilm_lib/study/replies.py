"""Replies in the study: what the model writes to those who ask, and how probable it finds what people wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilm_lib.data.conversations import Film, read_redial
from ilm_lib.data.elm24 import read_facts
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.files import read_json, write_json
from ilm_lib.model.chat import Message
from ilm_lib.model.dialogue import Content
from ilm_lib.sections import Precision
from ilm_lib.settings import Params
from ilm_lib.study import inputs, recorded
from ilm_lib.study.artifacts import Artifact, SourceFile, stage
from ilm_lib.study.conversation import MADE_BY, model_of, talker_inputs, world_of
from ilm_lib.study.probes import facts_right
from ilm_lib.tasks.conversation import questions_of
from ilm_lib.tasks.dialogues import messages_of
from ilm_lib.tasks.replies import Name, Written, person_nll, reply_measures, write

Asked = list[tuple[list[Message], Content]]


def replies(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """The model's replies, replies.json, and what it makes of people's, people.npz where there are some."""
    given = talker_inputs(params, seed, method, build=build) | {
        "settings": params.chat.model_dump(include={"ask", "write"}),
        "precision": params.chat.precision,
        "seed": seed,
        **(recorded.to_ask(params) if params.chat.recorded else {}),
    }
    return stage("replies", make_replies, params.profile, made_by=MADE_BY, build=build, given=given)


def make_replies(
    folder: Path,
    *,
    trained: Artifact,
    settings: dict[str, int],
    precision: Precision,
    seed: int,
    dialogues: SourceFile | None = None,
    films: SourceFile | None = None,
    **given: Any,
) -> None:
    """Write to recorded dialogues, or where there are none to seekers who have just begun."""
    ilm = model_of(trained, **given).eval().to(device())
    data = inputs.open_dataset(given["data"])
    people: Asked = []
    if dialogues and films:
        people = before_people(read_redial(dialogues.path), recorded.rows_of(films, data), settings["write"])
        told = [turns for turns, _ in people]
    else:
        world = world_of(given["data"])
        wishes = world.wishes(settings["ask"], 0)[0][: settings["write"]]
        told = [messages_of(talk.turns, world.rows) for talk in world.talks(wishes, seed)]
    with torch.autocast(ilm.device.type, torch.bfloat16, enabled=use_bfloat16(precision)):
        written = write(ilm, told)
        if people:
            nll = {"tokens": person_nll(ilm, people), "titles": person_nll(ilm, people, tokens=False)}
            found = {name: nats for name, (nats, _) in nll.items()}
            np.savez(folder / "people.npz", **found, count=nll["tokens"][1])
    write_json(folder / "replies.json", [asdict(one) for one in written])


def before_people(told: Sequence, rows: dict[str, int], most: int) -> Asked:
    """Dialogues up to where the recommender answers with a film that is new, and what it says; at most one of each.

    Args:
        told: recorded dialogues.
        rows: of films by their ids.
    """
    first: dict[int, int] = {}
    for question in questions_of(told, rows):
        if question.turn and not told[question.dialogue].turns[question.turn - 1].recommender:
            first.setdefault(question.dialogue, question.turn)
    chosen = [*first.items()]
    chosen = [chosen[n] for n in np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(int)]
    people = []
    for dialogue, turn in chosen:
        *turns, answer = messages_of(told[dialogue].turns[: turn + 1], rows)
        film = [isinstance(part, Film) for part in told[dialogue].turns[turn].content]
        lacks = [named and isinstance(part, str) for named, part in zip(film, answer["content"])]
        people.append((turns, [Name(p) if missing else p for p, missing in zip(answer["content"], lacks)]))
    return people


def measured(params: Params, seed: int, method: str, *, build: bool = False) -> dict[str, dict[str, tuple[float, int]]]:
    """By variant, measures of what is written and how many things each is of; what cannot be counted is left out.

    See `tasks.replies`, `probes.facts_right`. Where there are people's replies, "log_pplx" is of their words, in nats
    a token; with "tokens=off" the LLM reads films as titles alone.
    """
    artifact = replies(params, seed, method, build=build)
    written = [Written(**one) for one in read_json(artifact.path("replies.json"))]
    data = inputs.dataset(params)
    said = [(text, [read_facts(data.texts[row])]) for one in written for row, text in one.said]
    size = {"repeated": sum(len(one.recommended) for one in written)}  # the others are of texts
    found = {
        name: (value, size.get(name, len(said))) for name, value in reply_measures(written, data.num_items).items()
    }
    found |= facts_right(*zip(*said)) if said else {}
    counted = {"": {name: of for name, of in found.items() if said and of[0] == of[0]}}
    if (path := artifact.path("people.npz")).is_file():
        with np.load(path) as people:
            n = int(people["count"].sum())
            for variant, name in (("", "tokens"), ("tokens=off", "titles")):
                counted.setdefault(variant, {})["log_pplx"] = float(people[name].sum() / n), n
    return counted
