"""Recorded dialogues in the study: some teach a model that reads dialogues, others ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ilm_lib.data import Dataset, data_dir
from ilm_lib.data.conversations import TEST, TO_MOVIELENS, VALID, Dialogue, read_redial, redial_to_movielens
from ilm_lib.settings import Params
from ilm_lib.study import inputs
from ilm_lib.study.artifacts import SourceFile
from ilm_lib.tasks.conversation import PROTOCOLS, Protocol, Question, questions_of, target_ranks
from ilm_lib.tasks.dialogues import Talk, scores, talks_of
from ilm_lib.tasks.simulated import exchanged

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM

DEV = 5  # every fifth of the dialogues that teach chooses the weights
OF_DATA = 0.3  # weight of what users had beside what recommenders name


def to_teach(params: Params) -> dict[str, SourceFile]:
    """The files of recorded dialogues that teach, of a profile that has some; arguments of `make_talker`."""
    if params.chat.recorded is None:
        return {}
    return {"dialogues": SourceFile(data_dir() / VALID), "films": SourceFile(data_dir() / TO_MOVIELENS)}


def to_ask(params: Params) -> dict[str, SourceFile]:
    """The files of those that ask."""
    return {**to_teach(params), "dialogues": SourceFile(data_dir() / TEST)}


def lessons(dialogues: SourceFile, films: SourceFile, data: Dataset) -> tuple[list[Talk], list[Talk], list[Question]]:
    """Talks that teach, talks that choose the weights, and the questions of the latter."""
    rows, told = rows_of(films, data), read_redial(dialogues.path)
    teach, dev = ([d for n, d in enumerate(told) if bool(n % DEV) == teaches] for teaches in (True, False))
    asked = questions_of(dev, rows)
    return talks_of(teach, rows, questions_of(teach, rows)), talks_of(dev, rows, asked), asked


def known(counts: np.ndarray, talks: Sequence[Talk]) -> np.ndarray:
    """(I,) how well known items are to those who recommend: how often talks name them, and how often users had them.

    Args:
        counts: (I,) above 0, of users.
    """
    named = np.bincount([row for talk in talks for rows in talk.targets for row in rows], minlength=len(counts))
    return named + OF_DATA * named.sum() * counts / counts.sum()


def rows_of(films: SourceFile, data: Dataset) -> dict[str, int]:
    """The row of a film by ReDial's id, of those that the dataset has."""
    row = {item: n for n, item in enumerate(data.items)}
    return {mark: row[str(m)] for mark, m in redial_to_movielens(films.path).items() if str(m) in row}


def ranked(
    ilm: ILM, told: Sequence[Dialogue], rows: Mapping[str, int], *, strangers: bool = False, autocast: bool = False
) -> dict[Protocol, np.ndarray]:
    """(Q,) the rank of the film of every question of dialogues, by protocol; each dialogue is read once.

    Args:
        rows: of `rows_of`.
        strangers: a control: the model is told the words of another dialogue.
    """
    asked = {protocol: questions_of(told, rows, protocol) for protocol in PROTOCOLS}
    talks = talks_of(told, rows, asked["usual"])  # every film that the recommender names, those of "strict" among them
    if strangers:
        talks = [Talk(turns, talk.targets) for turns, talk in zip(exchanged([talk.turns for talk in talks]), talks)]
    found = scores(ilm, talks, autocast=autocast)
    place = {(q.dialogue, q.turn, q.target): n for n, q in enumerate(asked["usual"])}
    row = lambda questions: [place[q.dialogue, q.turn, q.target] for q in questions]
    return {protocol: target_ranks(found[row(q)], q, protocol) for protocol, q in asked.items()}


def asking(params: Params) -> tuple[list[Dialogue], dict[str, int]]:
    """The dialogues that ask, and the rows of films by ReDial's ids."""
    files = to_ask(params)
    return read_redial(files["dialogues"].path), rows_of(files["films"], inputs.dataset(params))


def questions(params: Params, protocol: Protocol) -> list[Question]:
    """The questions of the dialogues that ask, in the order of `ranked`."""
    return questions_of(*asking(params), protocol)
