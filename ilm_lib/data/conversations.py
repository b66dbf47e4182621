"""Recorded conversations in which one recommends films to another, and the films of MovieLens that they may name.

ReDial (Li et al. 2018) has a JSON object a line. Films stand in its texts as `@111776`, an id of its own; what the
seeker said of each afterwards is in `initiatorQuestions`, or `respondentQuestions` as the recommender remembers it:

    suggested   0 the seeker named it, 1 the recommender did
    seen, liked 0 no, 1 yes, 2 did not say
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ilm_lib.data.films import PLOTS
from ilm_lib.data.lines import DataError, read_json_lines, read_lines
from ilm_lib.data.openp5 import load_openp5
from ilm_lib.data.raw import clean, read_movielens
from ilm_lib.data.tables import csv_rows

REDIAL = Path("conversation", "redial")
VALID, TEST = REDIAL / "valid_data.jsonl.gz", REDIAL / "test_data.jsonl.gz"
TO_MOVIELENS = REDIAL / "movies_to_movielens.csv.gz"
_MARK = re.compile(r"@(\d+)")
_FORM = "Write it as ReDial does"


class Film(NamedTuple):
    """A film that a turn names: ReDial's id, and the name it has there, "Super Troopers (2001)"."""

    id: str
    name: str


class Answer(NamedTuple):
    """What the seeker said of a film afterwards; None where they did not say."""

    suggested: bool
    seen: bool | None
    liked: bool | None


@dataclass(frozen=True)
class Turn:
    """One message: whose, and its text with films in their places."""

    recommender: bool
    content: tuple[str | Film, ...]

    @property
    def films(self) -> list[Film]:
        return [segment for segment in self.content if isinstance(segment, Film)]


@dataclass(frozen=True)
class Dialogue:
    """Attributes:
    turns: the oldest first, the seeker's and the recommender's in any order.
    answers: by ReDial's id, of the films that the seeker was asked about.
    """

    id: str
    turns: tuple[Turn, ...]
    answers: Mapping[str, Answer]


def read_redial(path: Path) -> list[Dialogue]:
    """The dialogues of one of ReDial's files, plain or .gz, in its order.

    A mark of a film that `movieMentions` does not have, or has without name, stays text. The seeker's own answers
    come before the recommender's.

    Raises DataError for a missing file and for a line that is no such dialogue.
    """
    dialogues = []
    for line, record in read_json_lines(path, read_lines(path)[0]):
        try:
            dialogues.append(_dialogue(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            wrong = f"is no dialogue of ReDial ({type(error).__name__}: {error})"
            raise DataError(path, line, wrong, _FORM) from None
    return dialogues


def _dialogue(record: dict[str, Any]) -> Dialogue:
    names = {mark: " ".join(name.split()) for mark, name in dict(record["movieMentions"] or {}).items() if name}
    recommender, seeker = record["respondentWorkerId"], record["initiatorWorkerId"]
    turns = []
    for message in record["messages"]:
        if message["senderWorkerId"] not in (recommender, seeker):
            raise ValueError(f"message of {message['senderWorkerId']}, who is neither initiator nor respondent")
        content = tuple(_content(clean(message["text"]), names))
        if content:
            turns.append(Turn(message["senderWorkerId"] == recommender, content))
    # Where nobody was asked, there is [] in place of {}.
    answered = {**dict(record["respondentQuestions"] or {}), **dict(record["initiatorQuestions"] or {})}
    said = {0: False, 1: True, 2: None}
    answers = {mark: Answer(bool(a["suggested"]), said[a["seen"]], said[a["liked"]]) for mark, a in answered.items()}
    return Dialogue(str(record["conversationId"]), tuple(turns), answers)


def _content(text: str, names: Mapping[str, str]) -> Iterator[str | Film]:
    at = 0
    for mark in _MARK.finditer(text):
        if mark[1] in names:
            if mark.start() > at:
                yield text[at : mark.start()]
            yield Film(mark[1], names[mark[1]])
            at = mark.end()
    if at < len(text):
        yield text[at:]


@dataclass(frozen=True)
class Catalogue:
    """The films that may be recommended, M of them.

    Attributes:
        ids: (M,) MovieLens ids, rising.
        titles: (M,) "Matrix, The (1999)".
        shares: (M,) the share of users who rated a film, in the release where it is larger; 0 where nobody did.
        plots: (M,) "" where there is none.
        rows: the row of a film by ReDial's id, of those that MovieLens has.
    """

    ids: list[int]
    titles: list[str]
    shares: np.ndarray
    plots: list[str]
    rows: Mapping[str, int]


def read_catalogue(root: Path) -> Catalogue:
    """The films of MovieLens latest-small and 1M that somebody rated, and those that ReDial names: 11,563.

    Args:
        root: the data folder, with ml-latest-small, openp5/ML1M and conversation/redial.

    Raises DataError for a file that is missing or malformed.
    """
    small, texts = read_movielens(root / "ml-latest-small")
    large = load_openp5(root / "openp5" / "ML1M")
    shares: Counter[int] = Counter()
    titles = {int(movie): text["title"] for movie, text in texts.items()}
    for movie, count in small["item"].value_counts().items():
        shares[int(movie)] = count / small["user"].nunique()
    for row, count in enumerate(np.bincount(large.sequences, minlength=len(large.items))):
        movie = int(large.items[row])
        shares[movie] = max(shares[movie], count / len(large.users))
        titles.setdefault(movie, large.texts[row]["title"])
    path = root / "ml-latest-small" / PLOTS
    plots = {int(record["movieId"]): record["overview"] for _, record in read_json_lines(path, read_lines(path)[0])}
    of_redial: dict[str, int] = {}
    for mark, movie, title, plot in _redial_films(root / TO_MOVIELENS):
        of_redial[mark] = movie
        titles.setdefault(movie, title)
        plots.setdefault(movie, plot)
    ids = sorted({*shares, *of_redial.values()})
    row = {movie: n for n, movie in enumerate(ids)}
    return Catalogue(
        ids,
        titles=[titles[movie] for movie in ids],
        shares=np.array([shares[movie] for movie in ids], dtype=float),
        plots=[plots.get(movie, "") for movie in ids],
        rows={mark: row[movie] for mark, movie in of_redial.items()},
    )


def _redial_films(path: Path) -> Iterator[tuple[str, int, str, str]]:
    """ReDial's id, MovieLens' id, title with its year and plot of every film that both have."""
    text = "\n".join(line for _, line in read_lines(path)[0])
    columns = ("movie_id", "ml_id", "ml_title", "ml_year", "plot")
    for line, mark, movie, title, year, plot in csv_rows(path, text, columns):
        if not movie.isdigit():
            raise DataError(path, line, f"{movie!r} is no MovieLens id", "Write a whole number")
        yield mark, int(movie), f"{title} ({year})" if year.isdigit() else title, plot
