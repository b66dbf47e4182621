"""Films found by words alone, without an LLM: held-out tags of MovieLens are asked.

    python -m bench.find 0 1 2     rank all films of the catalogue for every test tag, three seeds, write

A tag that people gave to 5 to 500 films is a query (`tasks/finding.py`), and whole tags are held out: films are known
by title, genres and plot, by their training tags where a method's name says so, and by who rated them. Settings are
chosen on the dev tags; test tags are asked once. Rows go to reports/conversations/find.csv, in the form of all results,
and what the finder gains on others to find_gains.csv.

Tried on dev, one seed: 2, 3 and 6 layers, learning rates from 1e-4 to 2e-3, pairs of tags alone or of tags and texts,
factors as they are or of unit length. Expected of test before it was looked at, R@10: popularity .01, BM25 .20, MiniLM
.23, both a little more with training tags, phase 1 alone .08 and the linear map .06, the finder .265, without factors
.25, with the linear map .26, with the factors of other films less than without.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from bench.redial import markdown, measured, rows_of
from ilm_lib.baselines.bm25 import BM25
from ilm_lib.baselines.cf import fit_cf
from ilm_lib.baselines.dialogue import unit
from ilm_lib.data.conversations import TAGS, FilmCatalogue, read_catalogue, read_tags
from ilm_lib.metrics import embed_sentences, paired_bootstrap, sentence_encoder
from ilm_lib.model.finder import Aligned, Finder, Weights
from ilm_lib.profiles import ROOT
from ilm_lib.settings import Phase1, QFormerParams
from ilm_lib.tasks.finding import FINDING, Part, found, tag_task
from ilm_lib.train.pairs import Pairs
from ilm_lib.train.phase1 import train_phase1

Kept = dict[tuple[str, str], list[np.ndarray]]
RESULTS, GAINS = (ROOT / "reports" / "conversations" / name for name in ("find.csv", "find_gains.csv"))
COMPARED = ("BM25, tags", "MiniLM, tags", "Finder without factors", "Finder, linear map", "Another's vectors")
GAINED = ("R@10", "R@50", "R@50 unsaid")
LEAST_RATED = 3  # ratings under which factors say nothing of a film: it is as if nobody had it
QFORMER = QFormerParams(
    num_query_tokens=4, layers=6, width=384, heads=12, contrast_dim=128, text_tower="minilm", max_text_tokens=16
)
LEARNING = Phase1(steps=300, batch_size=128, lr=2e-4, optimizer="adamw", losses=("itc",), holdout=0.02)
RIDGE = 30.0  # of 10, 30 and 100
METHODS = {
    "Popularity": "how many rated a film",
    "BM25": "the words, in title, genres and plot",
    "BM25, tags": "and in the training tags",
    "MiniLM": "cosine of the words and title, genres and plot",
    "MiniLM, tags": "and the training tags",
    "Linear map": "of sentence vectors to factors, in the place of phase 1; no word of a film is read",
    "Phase 1": "the words' h_cls and the query outputs of films' factors; no word of a film is read",
    "Finder without factors": "MiniLM, tags and how many rated a film",
    "Finder, linear map": "these and the linear map",
    "Finder": "these and phase 1 (`model/finder.py`)",
    "Another's vectors": "the finder, with the factors of other films",
}


class World:
    """The films, what is known of each, and what is asked."""

    def __init__(self, catalogue: FilmCatalogue, tags: dict[int, list[str]], encoder: SentenceTransformer):
        rows = range(len(catalogue.ids))
        self.catalogue, self.encoder = catalogue, encoder
        self.texts = [catalogue.text(row) for row in rows]
        self.task = tag_task([tags.get(movie, []) for movie in catalogue.ids], self.texts)
        self.tagged = [text_with_tags(catalogue, row, self.task.known[row]) for row in rows]
        self.counts = np.bincount(np.concatenate(catalogue.histories), minlength=len(rows)).astype(np.float32)
        vectors = lambda texts: embed_sentences(encoder, texts, autocast=True)
        self.text_vectors, self.tagged_vectors = vectors(self.texts), vectors(self.tagged)
        self.asked = {part: vectors([q.words for q in asked]) for part, asked in self.task.queries.items()}

    def factors(self, seed: int) -> np.ndarray:
        """(M, 64) iALS, unit length, zero where too few rated a film."""
        made = fit_cf(self.catalogue.matrix(), dim=64, unobserved_weight=0.1, seed=seed).item
        return unit(made) * (self.counts >= LEAST_RATED)[:, None]

    def pairs(self) -> Pairs:
        """What phase 1 reads of films that were rated: title and genres, sentences of the plot, training tags."""
        texts = {int(row): self._sayings(int(row)) for row in np.flatnonzero(self.counts >= LEAST_RATED)}
        entity = np.array([row for row, said in texts.items() for _ in said])
        none = np.empty((0, 2), np.int64)
        return Pairs([text for said in texts.values() for text in said], entity, none, none)

    def _sayings(self, row: int) -> list[str]:
        films = self.catalogue
        plot = [sentence for sentence in re.split(r"(?<=[.!?])\s+", films.plots[row]) if sentence]
        return [". ".join(filter(None, (films.titles[row], films.genres[row]))), *plot, *self.task.known[row]]


def text_with_tags(catalogue: FilmCatalogue, row: int, tags: Sequence[str]) -> str:
    """A film in words, its tags before the plot, of which a sentence vector reads the beginning alone."""
    parts = (catalogue.titles[row], catalogue.genres[row], ", ".join(tags), catalogue.plots[row])
    return ". ".join(part.rstrip(".") for part in parts if part)


class LinearMap(Aligned):
    """Ridge regression from sentence vectors of texts and training tags to films' factors, in the place of phase 1."""

    def __init__(self, world: World, factors: np.ndarray):
        train = world.task.queries["train"]
        having = np.concatenate([query.rows for query in train])
        of_tags = np.repeat(world.asked["train"], [len(query.rows) for query in train], axis=0)
        said, target = np.concatenate([world.tagged_vectors, of_tags]), np.concatenate([factors, factors[having]])
        weight = np.log1p(np.concatenate([world.counts, world.counts[having]]))[:, None]
        system = (said * weight).T @ said + RIDGE * np.eye(said.shape[1])
        self.encoder, self.map = world.encoder, np.linalg.solve(system, (said * weight).T @ target)

    def words(self, texts: Sequence[str]) -> Tensor:
        """(Q, F) where in the space of the factors words point to."""
        return torch.from_numpy(unit(embed_sentences(self.encoder, texts) @ self.map).astype(np.float32))

    def items(self, cf: Tensor) -> Tensor:
        """(M, 1, F) unit vectors of factors (M, F), zero where they are."""
        return torch.nn.functional.normalize(cf, dim=1)[:, None]


def aligned(world: World, cf: Tensor, seed: int) -> Aligned:
    """Phase 1, trained on what films say."""
    model, codec, _ = train_phase1(world.pairs(), cf, QFORMER, LEARNING, LEARNING.losses, seed=seed)
    return Aligned(model, codec)


def anothers(items: Tensor, seed: int) -> Tensor:
    """(M, N, C) in which each film that was rated has what belongs to another one, in any order."""
    rated = items.any(2).any(1).nonzero()[:, 0]
    mixed = items.clone()
    mixed[rated] = items[rated[torch.from_numpy(np.random.default_rng(seed).permutation(len(rated)))]]
    return mixed


def methods(world: World, seed: int, part: Part = "test") -> Iterator[tuple[str, np.ndarray]]:
    """Method and (Q, M) scores for the tags of a part."""
    words, said, dev = [q.words for q in world.task.queries[part]], world.asked[part], world.task.queries["dev"]
    yield "Popularity", np.broadcast_to(world.counts, (len(words), len(world.texts)))
    yield "BM25", BM25(world.texts).scores(words)
    yield "BM25, tags", BM25(world.tagged).scores(words)
    yield "MiniLM", said @ world.text_vectors.T
    yield "MiniLM, tags", said @ world.tagged_vectors.T

    def chosen(finder: Finder, method: str) -> Finder:
        finder = finder.chosen([q.words for q in dev], [q.rows for q in dev])
        print(seed, method, finder.weights, flush=True)
        return finder

    scores = lambda finder: finder.log_probabilities(words).numpy()
    base = Finder(world.tagged_vectors, world.counts)
    yield "Finder without factors", scores(chosen(base, "Finder without factors"))
    factors = world.factors(seed)
    cf = torch.from_numpy(factors * factors.shape[1] ** 0.5)  # an RMS of 1, as phase 1 is given
    finder = base
    for towers, alone, together in (
        (LinearMap(world, factors), "Linear map", "Finder, linear map"),
        (aligned(world, cf, seed), "Phase 1", "Finder"),
    ):
        finder = replace(base, aligned=towers, items=towers.items(cf), weights=Weights(0, 1, 0))
        yield alone, scores(finder)
        finder = chosen(finder, together)
        yield together, scores(finder)
    assert finder.items is not None
    yield "Another's vectors", scores(replace(finder, items=anothers(finder.items, seed)))


def measure(root: Path, seeds: Sequence[int], part: Part = "test", kept: Kept | None = None) -> pd.DataFrame:
    """Rows of find.csv; `kept` gets the values of every query, by method and measure, an array for each seed."""
    world = World(read_catalogue(root), read_tags(root / TAGS), sentence_encoder())
    rows = []
    for seed in seeds:
        for method, scores in methods(world, seed, part):
            values = found(scores, world.task.queries[part])
            print(seed, method, *(f"{name} {v.mean():.3f}" for name, v in values.items()), flush=True)
            rows += rows_of("MovieLens", "find", "", method, seed, values)
            for name, each in values.items() if kept is not None else ():
                kept.setdefault((method, name), []).append(each)
    return pd.DataFrame(rows)


def gains_of(kept: Kept) -> pd.DataFrame:
    """What the finder gains, a row for each method and measure, with a bootstrap over tags, values mean over seeds."""
    rows = []
    for method in COMPARED:
        for metric in GAINED:
            ours, theirs = (np.mean(kept[name, metric], axis=0) for name in ("Finder", method))
            gain, low, high, p = paired_bootstrap(ours, theirs)
            about = {"method": "Finder", "against": method, "metric": metric, "n": len(ours)}
            rows.append(about | {"gain": round(gain, 6), "low": round(low, 6), "high": round(high, 6), "p": p})
    return pd.DataFrame(rows)


def table(results: pd.DataFrame) -> str:
    """The table of reports/README.md, in Markdown."""
    return markdown(results, METHODS, FINDING)


def gain_table(gains: pd.DataFrame) -> str:
    """The table of gains of reports/README.md, in Markdown: the mean and its 95% interval."""
    lines = [f"| the finder gains on | {' | '.join(GAINED)} |", "| --- |" + " --- |" * len(GAINED)]
    by = gains.set_index(["against", "metric"])
    cell = lambda row: f"{row['gain']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
    lines += [f"| {m} | {' | '.join(cell(by.loc[(m, metric)]) for metric in GAINED)} |" for m in COMPARED]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    kept: Kept = {}
    results = measured("find", __doc__, partial(measure, kept=kept), RESULTS, arguments)
    gains = gains_of(kept)
    gains.to_csv(GAINS, index=False)
    print(table(results), gain_table(gains), sep="\n\n")


if __name__ == "__main__":
    main()
