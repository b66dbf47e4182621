"""Conversations with simulated seekers, without an LLM: how soon a recommender that reads them finds the film.

    python -m bench.seekers 0     400 users of MovieLens, five turns of three films, one seed, write

Each seeker looks for the last film that its user rated (`tasks/seekers.py`). Another 1,000 users teach; nobody's last
film is in the factors. Rows go to reports/redial/seekers.csv, in the form of all results: success@t is the share of
seekers who have their film after t turns of recommendations.

Expected, written before the first run: popularity .02 after five turns, films alone .06, words alone .25, both .30;
with the words of another seeker no more than films alone. How well known a film is was counted by the teachers' wishes
at first, which hid the films that none of them had: words alone .407 then, and .445 by what users had.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from bench.redial import DROPOUT, TRAINING, markdown, measured, rows_of
from ilm_lib.baselines.cf import fit_cf
from ilm_lib.baselines.dialogue import Films, film_counts, train_words_and_films, unit
from ilm_lib.data.conversations import TAGS, FilmCatalogue, Turn, read_catalogue, read_tags
from ilm_lib.metrics import embed_sentences, sentence_encoder
from ilm_lib.profiles import ROOT
from ilm_lib.tasks.conversation import Question, words_of_turns
from ilm_lib.tasks.seekers import Conversation, Wish
from ilm_lib.tasks.simulated import SeekerWorld

RESULTS = ROOT / "reports" / "redial" / "seekers.csv"
TEACH, ASK, TURNS, SHOWN = 1000, 400, 5, 3
LEARNING = TRAINING.model_copy(update={"steps": 400})  # about as many passes as there
METRICS = [f"success@{turn}" for turn in range(1, TURNS + 1)]
METHODS = {
    "Popularity": "what teaching users looked for most",
    "Films alone": "trained, without words",
    "Words alone": "trained, without the films named",
    "Another's words": "words and films, told the words of another seeker",
    "Words and films": "trained (`baselines/dialogue.py`)",
}


class World:
    """The films, what may be said of them, and the wishes of users who teach, choose and are asked."""

    def __init__(self, catalogue: FilmCatalogue, tags: dict[int, list[str]], encoder: SentenceTransformer):
        self.catalogue, self.encoder = catalogue, encoder
        self.seekers = SeekerWorld.of(catalogue, tags)
        self.ask, self.teach = self.seekers.wishes(ASK, TEACH)
        self.texts = self.vectors([catalogue.text(row) for row in range(len(catalogue.ids))])
        self.before = [history[:-1] for history in catalogue.histories]  # nobody's last film

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(Q, D) unit sentence vectors."""
        return embed_sentences(self.encoder, texts, autocast=True)

    def known(self, films: Films, talks: Sequence[Sequence[Turn]], named: Sequence[Sequence[int]]) -> np.ndarray:
        """(Q, F + 3D) what is known at the end of each conversation."""
        said, sought = (self.vectors([words_of_turns(t, seeker_alone=alone) for t in talks]) for alone in (False, True))
        return films.known([Question(n, 0, 0, tuple(rows)) for n, rows in enumerate(named)], said, sought)


def lessons(world: World, films: Films, wishes: Sequence[Wish], seed: int) -> tuple[list[Question], np.ndarray]:
    """Questions of conversations that teach (`SeekerWorld.taught`), and what is known at each."""
    talks: list[list[Turn]] = []
    questions: list[Question] = []
    for question, talk in world.seekers.taught(wishes, films.factors, seed, turns=TURNS, shown=SHOWN):
        questions.append(question)
        talks.append([*talk.turns])
    return questions, world.known(films, talks, [q.named for q in questions])


def found_after(world: World, films: Films, scores: Callable[[np.ndarray], np.ndarray], seed: int) -> np.ndarray:
    """(S, TURNS) whether each seeker has its film after so many turns.

    Args:
        scores: from what is known, (Q, F + 3D), to (Q, M).
    """

    def recommend(talks: Sequence[Conversation], going: Sequence[int]) -> list[list[int]]:
        own = [talks[n] for n in going]
        best = []
        for talk, row in zip(own, scores(world.known(films, [t.turns for t in own], [t.named for t in own]))):
            row = row.copy()
            row[talk.named] = -np.inf
            best.append(np.argsort(-row)[:SHOWN].tolist())
        return best

    return world.seekers.found(world.ask, recommend, seed, turns=TURNS)


def methods(world: World, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Method and (S, TURNS) whether each seeker has its film after so many turns."""
    factors = unit(fit_cf(world.catalogue.matrix(world.before), dim=64, unobserved_weight=0.1, seed=seed).item)
    none = np.zeros(len(factors))
    taught, chosen = world.teach[: TEACH * 9 // 10], world.teach[TEACH * 9 // 10 :]
    train, known = lessons(world, Films(none, factors, world.texts), taught, seed)
    dev, known_dev = lessons(world, Films(none, factors, world.texts), chosen, seed)
    popular = film_counts(train, len(factors)).astype(float)
    # What users had, and not what the teachers looked for: more than half of the films asked for are no teacher's.
    films = Films(np.bincount(np.concatenate(world.before), minlength=len(factors)), factors, world.texts)
    yield "Popularity", found_after(world, films, lambda known: np.tile(popular, (len(known), 1)), seed)
    words = films.words
    for method, keep in (("Films alone", ~words), ("Words alone", words), ("Words and films", words | ~words)):
        model = train_words_and_films(
            films, (train, known * keep), (dev, known_dev * keep), LEARNING, dropout=DROPOUT, seed=seed
        )
        yield method, found_after(world, films, lambda known: model.scores(known * keep), seed)  # noqa: B023
    others = lambda known: np.where(words, np.roll(known, 1, axis=0), known)
    yield "Another's words", found_after(world, films, lambda known: model.scores(others(known)), seed)


def measure(root: Path, seeds: Sequence[int]) -> pd.DataFrame:
    """Rows of seekers.csv."""
    world = World(read_catalogue(root), read_tags(root / TAGS), sentence_encoder())
    rows = []
    for seed in seeds:
        for method, found in methods(world, seed):
            print(seed, method, *found.mean(0).round(3), flush=True)
            after = {metric: found[:, turn] for turn, metric in enumerate(METRICS)}
            rows += rows_of("MovieLens", "simulated", "excluded", method, seed, after)
    return pd.DataFrame(rows)


def table(results: pd.DataFrame) -> str:
    """The table of reports/README.md, in Markdown."""
    return markdown(results, METHODS, METRICS)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    print(table(measured("seekers", __doc__, measure, RESULTS, arguments)))


if __name__ == "__main__":
    main()
