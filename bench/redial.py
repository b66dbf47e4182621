"""Recommendation in ReDial's dialogues without an LLM: what one that reads them has to be held against.

    python -m bench.redial 0 1 2     rank all films of the catalogue at every question of test, three seeds, write

Trained on 800 of the dialogues of valid, chosen on the other 200, asked on test once. Rows go to
reports/conversations/redial.csv, in the form of all results. The settings are those of a trial on the 200 (two learning
rates, three dropouts, two sizes), with R@10 .17 and R@50 .35 in the strict protocol, where popularity has .04 and .16.

Expected of test before it was looked at: .15 for words and films together, .12 for words alone, .09 for films alone;
with the words of another dialogue no more than films alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from ilm_lib.arguments import Parser, whole
from ilm_lib.baselines.bm25 import BM25
from ilm_lib.baselines.cf import fit_cf
from ilm_lib.baselines.dialogue import Films, film_counts, named_likeness, train_words_and_films, unit
from ilm_lib.data.conversations import TEST, VALID, Dialogue, FilmCatalogue, read_catalogue, read_redial
from ilm_lib.errors import Refusal
from ilm_lib.metrics import embed_sentences, sentence_encoder
from ilm_lib.profiles import ROOT, data_dir
from ilm_lib.sections import Optim
from ilm_lib.tasks.conversation import Protocol, questions_of, recall_metrics, target_ranks, words_of_turns
from ilm_lib.values import MOST

RESULTS = ROOT / "reports" / "conversations" / "redial.csv"
TRAINING = Optim(steps=312, batch_size=64, lr=2e-3, weight_decay=0.1, optimizer="adamw")
DROPOUT = 0.5
LAST = 600  # characters of what was said that a sentence vector is made of, the last ones
METHODS = {
    "Popularity": "how often a film is recommended in the training dialogues",
    "iALS": "cosine to the films named",
    "BM25": "the words said, in the films' texts",
    "MiniLM": "cosine of the words said and the films' texts",
    "Films alone": "trained, without words",
    "Words alone": "trained, without the films named",
    "Another's words": "words and films, asked with the words of another dialogue",
    "Words and films": "trained (`baselines/dialogue.py`)",
}


class Asked:
    """The questions of dialogues and what was said before each."""

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        catalogue: FilmCatalogue,
        encoder: SentenceTransformer,
        protocol: Protocol = "strict",
    ):
        self.questions, self.protocol = questions_of(dialogues, catalogue.rows, protocol), protocol
        before = lambda alone: [
            words_of_turns(dialogues[q.dialogue].turns[: q.turn], seeker_alone=alone) for q in self.questions
        ]
        vectors = lambda texts: embed_sentences(encoder, [text[-LAST:] for text in texts], autocast=True)
        self.words = before(False)
        self.said, self.sought = vectors(self.words), vectors(before(True))

    def known(self, films: Films) -> np.ndarray:
        """(Q, F + 3D) what is known at each question."""
        return films.known(self.questions, self.said, self.sought)


def rankings(
    texts: np.ndarray, bm25: BM25, factors: np.ndarray, train: Asked, dev: Asked, tests: Sequence[Asked], seed: int
) -> Iterator[tuple[str, Asked, np.ndarray]]:
    """Method, test questions and the (Q, M) scores of these."""
    films = Films(film_counts(train.questions, len(texts)), factors, texts)
    for asked in tests:
        yield "Popularity", asked, np.broadcast_to(films.counts, (len(asked.questions), len(texts)))
        yield "iALS", asked, named_likeness(factors, asked.questions)
        yield "BM25", asked, bm25.scores(asked.words)
        yield "MiniLM", asked, asked.said @ texts.T
    words = films.words
    for method, keep in (("Films alone", ~words), ("Words alone", words), ("Words and films", words | ~words)):
        given = [(part.questions, part.known(films) * keep) for part in (train, dev)]
        model = train_words_and_films(films, *given, TRAINING, dropout=DROPOUT, seed=seed)
        for asked in tests:
            yield method, asked, model.scores(asked.known(films) * keep)
    for asked in tests:
        known, other = asked.known(films), np.random.default_rng(seed).permutation(len(asked.questions))
        yield "Another's words", asked, model.scores(np.where(words, known[other], known))


def measure(root: Path, seeds: Sequence[int]) -> pd.DataFrame:
    """Rows of results.csv."""
    catalogue, encoder = read_catalogue(root), sentence_encoder()
    valid, test = read_redial(root / VALID), read_redial(root / TEST)
    train, dev = (Asked(part, catalogue, encoder) for part in ([d for n, d in enumerate(valid) if n % 5], valid[::5]))
    tests = [Asked(test, catalogue, encoder, protocol) for protocol in ("strict", "usual")]
    films = [catalogue.text(row) for row in range(len(catalogue.ids))]
    texts, bm25 = embed_sentences(encoder, films, autocast=True), BM25(films)
    rows = []
    for seed in seeds:
        factors = unit(fit_cf(catalogue.matrix(), dim=64, unobserved_weight=0.1, seed=seed).item)
        for method, asked, scores in rankings(texts, bm25, factors, train, dev, tests, seed):
            found = recall_metrics(target_ranks(scores, asked.questions, asked.protocol))
            print(seed, asked.protocol, method, *(f"{n} {v.mean():.3f}" for n, v in found.items()), flush=True)
            history = "excluded" if asked.protocol == "strict" else "kept"
            rows += rows_of("ReDial", asked.protocol, history, method, seed, found)
    return pd.DataFrame(rows)


def rows_of(dataset: str, task: str, history: str, method: str, seed: int, found: dict[str, np.ndarray]) -> list[dict]:
    """Rows of results.csv, one a metric, of values (Q,) each."""
    about = {"table": "conversation", "dataset": dataset, "task": task, "prompt": "", "history": history}
    about |= {"readout": "", "method": method, "variant": "", "seed": seed}
    value = lambda values: round(float(values.mean()), 6)
    return [{**about, "metric": name, "value": value(values), "n": len(values)} for name, values in found.items()]


def markdown(results: pd.DataFrame, methods: Iterable[str], metrics: Sequence[str]) -> str:
    """Means over seeds, a line a method."""
    means = results.pivot_table(index="method", columns="metric", values="value")
    lines = [f"| | {' | '.join(metrics)} |", "| --- |" + " --- |" * len(metrics)]
    lines += [f"| {method} | {' | '.join(f'{means.loc[method, m]:.3f}' for m in metrics)} |" for method in methods]
    return "\n".join(lines)


def table(results: pd.DataFrame, protocol: str = "strict") -> str:
    """The table of reports/README.md, in Markdown."""
    return markdown(results[results["task"] == protocol], METHODS, ["R@1", "R@10", "R@50", "MRR"])


def measured(
    module: str, says: str | None, measure: Callable[..., pd.DataFrame], path: Path, arguments: list[str] | None,
    options: Mapping[str, dict[str, Any]] | None = None,
) -> pd.DataFrame:  # fmt: skip
    """What a bench finds for the seeds of its arguments, written to a file.

    Args:
        measure: of the data folder, the seeds and, by name, what `options` gives.
        options: further arguments, as `add_argument` takes them.

    SystemExit with one line where the data or the arguments cannot be used.
    """
    parser = Parser(prog=f"python -m bench.{module}", description=says)
    parser.add_argument("seeds", nargs="+", type=whole(MOST, 0), metavar="SEED")
    for name, settings in (options or {}).items():
        parser.add_argument(name, **settings)
    try:
        given = vars(parser.parse_args(arguments))
        results = measure(data_dir(), given.pop("seeds"), **given)
    except Refusal as error:
        raise SystemExit(f"✗ {error}") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    results.to_csv(path, index=False)
    return results


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    results = measured("redial", __doc__, measure, RESULTS, arguments)
    print(table(results), table(results, "usual"), sep="\n\n")


if __name__ == "__main__":
    main()
