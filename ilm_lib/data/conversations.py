"""Recorded conversations in which one recommends films to another, and the films of MovieLens that they may name.

ReDial (Li et al. 2018) has a JSON object a line. Films stand in its texts as `@111776`, an id of its own; what the
seeker said of each afterwards is in `initiatorQuestions`, or `respondentQuestions` as the recommender remembers it:

    suggested   0 the seeker named it, 1 the recommender did
    seen, liked 0 no, 1 yes, 2 did not say

Files, below the data folder, from public repositories on GitHub (ReDial: CC BY 4.0; MovieLens: for research):

    conversation/redial/test_data.jsonl.gz         agodavarthy/PMT_v1, data/redial_dataset (packed)
    conversation/redial/movies_to_movielens.csv.gz agodavarthy/PMT_v1, the films of MovieLens with their plots
    conversation/redial/valid_data.jsonl.gz        RUCAIBox/iEvaLM-CRS, data/redial (packed)
    conversation/movielens_keywords.csv.gz         iai-group/UserSimCRS, data/item_collections (packed)
    ml-latest-small, openp5/ML1M                   see the README, and `films.PLOTS` for the plots of the first
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from ilm_lib.data.dataset import Dataset
from ilm_lib.data.films import PLOTS
from ilm_lib.data.lines import DataError, read_json_lines, read_lines
from ilm_lib.data.openp5 import load_openp5
from ilm_lib.data.raw import clean, read_movielens
from ilm_lib.data.tables import csv_rows
from ilm_lib.data.time_order import in_time_order

NAME = "ReDial"  # of the dataset of films that `as_tables` makes
REDIAL = Path("conversation", "redial")
VALID, TEST = REDIAL / "valid_data.jsonl.gz", REDIAL / "test_data.jsonl.gz"
TO_MOVIELENS = REDIAL / "movies_to_movielens.csv.gz"
TAGS = Path("conversation", "movielens_keywords.csv.gz")
RATED = Path("ml-latest-small")
SOURCES = "ilm_lib/data/conversations.py names the files of conversations, and the public repositories that have them"
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
class FilmCatalogue:
    """The films that may be recommended, M of them, and who of MovieLens' users rated which.

    Attributes:
        ids: (M,) of MovieLens, rising, or of a dataset.
        titles: (M,) "Matrix, The (1999)".
        genres, plots: (M,) in words, "" where there are none.
        shares: (M,) the share of users who rated a film, in the release where it is larger; 0 where nobody did.
        histories: (U,) of every user the rows of the films rated, in time order, each once; latest-small's users come
            before those of 1M.
        rows: the row of a film by ReDial's id, of those that MovieLens has.
    """

    ids: Sequence[int] | Sequence[str]
    titles: list[str]
    genres: list[str]
    plots: list[str]
    shares: np.ndarray
    histories: list[np.ndarray]
    rows: Mapping[str, int]

    def matrix(self, histories: Sequence[np.ndarray] | None = None) -> csr_matrix:
        """(U, M) 1 where a user rated a film; of other histories than all."""
        given = self.histories if histories is None else histories
        starts = np.cumsum([0, *map(len, given)])
        return csr_matrix((np.ones(starts[-1], np.float32), np.concatenate(given), starts), (len(given), len(self.ids)))

    def text(self, row: int) -> str:
        """A film in words: title, genres and plot."""
        parts = (self.titles[row], self.genres[row], self.plots[row])
        return ". ".join(part.rstrip(".") for part in parts if part)


def read_catalogue(root: Path) -> FilmCatalogue:
    """The films of MovieLens latest-small and 1M that somebody rated, and those that ReDial names: 11,563.

    Args:
        root: the data folder, with ml-latest-small, openp5/ML1M and conversation/redial.

    Raises DataError for a file that is missing or malformed.
    """
    if not (root / RATED).is_dir():
        raise DataError(root / RATED, None, "is missing", SOURCES)
    small, texts = read_movielens(root / RATED)
    large = load_openp5(root / "openp5" / "ML1M")
    path = root / RATED / PLOTS
    plots = {int(record["movieId"]): record["overview"] for _, record in read_json_lines(path, read_lines(path)[0])}
    titles = {int(movie): text["title"] for movie, text in texts.items()}
    genres = {int(movie): text.get("genres", []) for movie, text in texts.items()}
    for raw_id, text in zip(large.items, large.texts):
        titles.setdefault(int(raw_id), text["title"])
        genres.setdefault(int(raw_id), text.get("genres", []))
    marks: dict[str, int] = {}
    for mark, movie, title, plot in _redial_films(root / TO_MOVIELENS):
        marks[mark] = movie
        titles.setdefault(movie, title)
        plots.setdefault(movie, plot)

    small = in_time_order(small)
    films = np.array([int(movie) for movie in small["item"].cat.categories])[small["item"].cat.codes]
    user = small["user"].cat.codes.to_numpy()
    large_ids = np.array([int(movie) for movie in large.items])
    of_small = [films[user == one] for one in range(len(small["user"].cat.categories))]
    of_large = [large_ids[large.sequence(one)] for one in range(len(large.users))]
    ids = sorted({*films.tolist(), *large_ids.tolist(), *marks.values()})
    count = lambda part: np.bincount(np.searchsorted(ids, np.concatenate(part)), minlength=len(ids))
    row = {movie: n for n, movie in enumerate(ids)}
    return FilmCatalogue(
        ids,
        titles=[titles[movie] for movie in ids],
        genres=[", ".join(genres.get(movie, [])) for movie in ids],
        plots=[plots.get(movie, "") for movie in ids],
        shares=np.maximum(*(count(part) / len(part) for part in (of_small, of_large))),
        histories=[np.searchsorted(ids, history) for history in (*of_small, *of_large)],
        rows={mark: row[movie] for mark, movie in marks.items()},
    )


def as_tables(root: Path) -> tuple[pd.DataFrame, dict[str, dict]]:
    """`read_catalogue` as a table of interactions (user, item) in time order, and the text of every film by its id.

    Tags (`TAGS`) are under `keywords`, which no item text holds (`Dataset.item_text`): a seeker who says one does not
    read out what a model was told of the film.
    """
    films, tags = read_catalogue(root), read_tags(root / TAGS)
    ids = np.array([str(movie) for movie in films.ids], object)
    users = np.repeat(np.arange(len(films.histories)), [len(history) for history in films.histories])
    table = pd.DataFrame({"user": users.astype(str), "item": ids[np.concatenate(films.histories)]})
    texts = {}
    for movie, title, genres, plot in zip(films.ids, films.titles, films.genres, films.plots):
        text = {"title": title, "genres": genres.split(", "), "overview": plot, "keywords": tags.get(movie, [])}
        texts[str(movie)] = {field: value for field, value in text.items() if value not in ("", [""], [])}
    return table, texts


def films_of(data: Dataset) -> tuple[FilmCatalogue, dict[str, list[str]]]:
    """The items of a dataset as films, and their tags by id. Histories are whole, with the items of dev and test."""
    field = lambda text, *names: next((text[name] for name in names if text.get(name)), [])
    joined = lambda words: words if isinstance(words, str) else ", ".join(words)
    counts = np.bincount(data.sequences, minlength=data.num_items)
    films = FilmCatalogue(
        data.items,
        titles=[str(text.get("title") or item) for item, text in zip(data.items, data.texts)],
        genres=[joined(field(text, "genres", "categories")) for text in data.texts],
        plots=[joined(field(text, "overview", "description")) for text in data.texts],
        shares=counts / data.num_users,
        histories=[np.asarray(data.sequence(user)) for user in range(data.num_users)],
        rows={item: row for row, item in enumerate(data.items)},
    )
    return films, {item: list(field(text, "tags", "keywords")) for item, text in zip(data.items, data.texts)}


def read_tags(path: Path) -> dict[int, list[str]]:
    """Tags by MovieLens id of a table with the columns movieId and keywords, `|` between them; DataError as above."""
    films = _film_rows(path, ("movieId", "keywords"))
    return {movie: [tag.strip() for tag in words.split("|") if tag.strip()] for movie, words in films}


def redial_to_movielens(path: Path) -> dict[str, int]:
    """MovieLens' id of a film by ReDial's, of `TO_MOVIELENS`; DataError as above."""
    return {mark: movie for mark, movie, _, _ in _redial_films(path)}


def _redial_films(path: Path) -> Iterator[tuple[str, int, str, str]]:
    """ReDial's id, MovieLens' id, title with its year and plot of every film that both have."""
    columns = ("ml_id", "movie_id", "ml_title", "ml_year", "plot")
    for movie, mark, title, year, plot in _film_rows(path, columns):
        yield mark, movie, f"{title} ({year})" if year.isdigit() else title, plot


def _film_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """The fields of a packed CSV, the first of `columns` a MovieLens id as an int."""
    text = "\n".join(line for _, line in read_lines(path)[0])
    for line, movie, *others in csv_rows(path, text, columns):
        if not movie.isdigit():
            raise DataError(path, line, f"{movie!r} is no MovieLens id", "Write a whole number")
        yield int(movie), *others
