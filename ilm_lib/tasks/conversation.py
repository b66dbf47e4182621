"""Recommendation within a conversation: what is asked of recorded dialogues, and how answers are measured.

Two protocols. *Strict*: a question is a film of the catalogue that the recommender is the first to name in the
dialogue; all films of the catalogue are ranked but for those named so far. *Usual*, as ReDial's tables have it: every
film that the recommender names is a question, also one that was named before, and no film is left out. Repeating what
the seeker said then counts as a recommendation (He et al., CIKM 2023).

In both, all turns before the one that names the film may be used, and nothing of that turn or after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ilm_lib.data.conversations import Dialogue, Turn

Protocol = Literal["strict", "usual"]
PROTOCOLS: tuple[Protocol, ...] = ("strict", "usual")
RECALL_AT = (1, 10, 50)


@dataclass(frozen=True)
class Question:
    """Which film does the recommender name?

    Attributes:
        dialogue: its place among the dialogues.
        turn: the turn that names the film; those before it may be used.
        target: the film's row.
        named: rows of the films named in the turns before, each once, in the order of their first mention.
    """

    dialogue: int
    turn: int
    target: int
    named: tuple[int, ...]


def questions_of(
    dialogues: Sequence[Dialogue], rows: Mapping[str, int], protocol: Protocol = "strict"
) -> list[Question]:
    """The questions of dialogues, in their order; films that `rows` does not have ask nothing.

    Args:
        rows: ReDial's id -> row in the catalogue.
    """
    questions = []
    for at, dialogue in enumerate(dialogues):
        named: list[int] = []
        for turn, said in enumerate(dialogue.turns):
            films = [rows[film.id] for film in said.films if film.id in rows]
            fresh = [row for row in dict.fromkeys(films) if row not in named]
            if said.recommender:
                asked = fresh if protocol == "strict" else dict.fromkeys(films)
                questions += [Question(at, turn, row, tuple(named)) for row in asked]
            named += fresh
    return questions


def words_of_turns(turns: Sequence[Turn], *, seeker_alone: bool = False) -> str:
    """What was said in words, by both or by the seeker; films, which stand in turns as such, are not among it."""
    said = [turn for turn in turns if not (seeker_alone and turn.recommender)]
    return " ".join(" ".join(s for t in said for s in t.content if isinstance(s, str)).split())


def target_ranks(scores: np.ndarray, questions: Sequence[Question], protocol: Protocol = "strict") -> np.ndarray:
    """(Q,) the rank of every question's film, 1 for the best.

    Args:
        scores: (Q, M) of all films, higher is better. Films of equal score stand before the one asked for: a
            recommender that cannot tell films apart finds nothing.

    Raises:
        ValueError: the scores are not one row a question, or hold NaN.
    """
    if len(scores) != len(questions):
        raise ValueError(f"scores of {len(scores)} questions for {len(questions)}")
    if np.isnan(scores).any():
        raise ValueError("a score is no number")
    ranks = np.empty(len(questions), np.int64)
    for place, (row, question) in enumerate(zip(scores, questions, strict=True)):
        before = row >= row[question.target]
        if protocol == "strict":
            before[list(question.named)] = False
        ranks[place] = np.count_nonzero(before)
    return ranks


def recall_metrics(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """R@1, R@10, R@50 and MRR of each question, (Q,) float64 each; their means are what tables show."""
    found = {f"R@{k}": (ranks <= k).astype(float) for k in RECALL_AT}
    return {**found, "MRR": 1 / ranks}
