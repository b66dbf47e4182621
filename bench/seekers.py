"""Conversations with simulated seekers, without an LLM: how soon a recommender that reads them finds the film.

    python -m bench.seekers 0                  400 users of MovieLens, five turns of three films, one seed, write
    python -m bench.seekers 0 --llm FOLDER     the same, and again with seekers in an LLM's words

Each seeker looks for the last film that its user rated (`tasks/seekers.py`). Another 1,000 users teach, by rules in
both cases; nobody's last film is in the factors. Rows go to reports/conversations/seekers.csv, in the form of all
results: success@t is the share of seekers who have their film after t turns of recommendations, R@10@t the share
whose film is among the first ten before turn t, had it not been shown. What was said is checked, and the two
simulators compared, in seekers_checks.csv (`tasks/controls.py`); what seekers do stands beside what people do in
iard.csv (`bench/acts.py`).

Expected, written before the first run: popularity .02 after five turns, films alone .06, words alone .25, both .30;
with the words of another seeker no more than films alone. How well known a film is was counted by the teachers' wishes
at first, which hid the films that none of them had. Then words alone had .445: how one speaks was drawn by the film
that one looks for, so that a model knew a film by the turns of phrase of the teachers who had looked for it. Expected
of seekers who speak each in their own way, before that run: words alone .06 after one turn and .25 after five, films
alone .05; of words and films, told the opening alone .10, turns in another order the same, words in another order .03
less; in an LLM's words .05 less, methods in nearly the same order (Kendall .8), 85% of seekers with the same outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sentence_transformers import SentenceTransformer

from bench.acts import acted, acts_table, rows_of_acts
from bench.redial import DROPOUT, TRAINING, markdown, measured, rows_of
from ilm_lib.arguments import whole
from ilm_lib.baselines.cf import fit_cf
from ilm_lib.baselines.dialogue import Films, WordsAndFilms, film_counts, train_words_and_films, unit
from ilm_lib.data.conversations import TAGS, FilmCatalogue, Turn, read_catalogue, read_tags
from ilm_lib.data.iard import IARD, read_iard
from ilm_lib.metrics import embed_sentences, sentence_encoder
from ilm_lib.profiles import ROOT
from ilm_lib.tasks.controls import TOLD, Scores, agreement, checks, ranks_by_turn
from ilm_lib.tasks.conversation import Question, words_of_turns
from ilm_lib.tasks.seekers import Conversation, Wish
from ilm_lib.tasks.seekers_hf import Rewording
from ilm_lib.tasks.simulated import SeekerWorld, Told

RESULTS, CHECKS, ACTS = (ROOT / "reports" / "conversations" / f"{n}.csv" for n in ("seekers", "seekers_checks", "iard"))
ANSWERS = ROOT / "runs" / "seekers" / "answers.jsonl"
TEACH, ASK, TURNS, SHOWN = 1000, 400, 5, 3
LEARNING = TRAINING.model_copy(update={"steps": 400})  # about as many passes as there
METRICS = [f"success@{turn}" for turn in range(1, TURNS + 1)]
RANKED = [f"R@10@{turn}" for turn in range(1, TURNS + 1)]
METHODS = {
    "Popularity": "what teaching users looked for most",
    "Films alone": "trained, without words",
    "Words alone": "trained, without the films named",
    "Another's words": "words and films, told the words of another seeker",
    "Words and films": "trained (`baselines/dialogue.py`)",
}
DEAF = ("Popularity", "Films alone")  # who hears no word finds the same, whoever speaks
RULES, LLM = "simulated", "simulated, hf"  # tasks: who speaks
OPTIONS = {
    "--llm": dict(metavar="FOLDER", help="ask in the words of this causal LM as well, a folder or a name"),
    "--ask": dict(type=whole(ASK), default=ASK, metavar="N", help="seekers in an LLM's words (%(default)s)"),
}
Scored = dict[tuple[str, str], Scores]  # by method and what it is told


class Asked(NamedTuple):
    """Rows of seekers.csv, seekers_checks.csv and iard.csv; by method who has its film after the last turn, (S,)."""

    rows: list[dict]
    checked: list[dict]
    acts: list[dict]
    found: dict[str, np.ndarray]


class World:
    """The films, what may be said of them, and the wishes of users who teach, choose and are asked."""

    def __init__(self, catalogue: FilmCatalogue, tags: dict[int, list[str]], encoder: SentenceTransformer):
        self.catalogue, self.encoder = catalogue, encoder
        self._read: dict[str, np.ndarray] = {}
        self.seekers = SeekerWorld.of(catalogue, tags)
        self.ask, self.teach = self.seekers.wishes(ASK, TEACH)
        self.texts = self.vectors([catalogue.text(row) for row in range(len(catalogue.ids))])
        self.before = [history[:-1] for history in catalogue.histories]  # nobody's last film

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """(Q, D) unit sentence vectors; of a text that comes again, the one that was made."""
        new = [text for text in dict.fromkeys(texts) if text not in self._read]
        self._read.update(zip(new, embed_sentences(self.encoder, new, autocast=True)) if new else ())
        return np.stack([self._read[text] for text in texts])

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


def scorers(world: World, seed: int) -> Scored:
    """What each method makes of conversations, by method and by what it is told of them, "" for all."""
    factors = unit(fit_cf(world.catalogue.matrix(world.before), dim=64, unobserved_weight=0.1, seed=seed).item)
    none = np.zeros(len(factors))
    taught, chosen = world.teach[: TEACH * 9 // 10], world.teach[TEACH * 9 // 10 :]
    train, known = lessons(world, Films(none, factors, world.texts), taught, seed)
    dev, known_dev = lessons(world, Films(none, factors, world.texts), chosen, seed)
    popular = film_counts(train, len(factors)).astype(float)
    # What users had, and not what the teachers looked for: more than half of the films asked for are no teacher's.
    films = Films(np.bincount(np.concatenate(world.before), minlength=len(factors)), factors, world.texts)
    words = films.words

    def blind(model: WordsAndFilms) -> Scores:
        nothing = lambda talks: np.zeros((len(talks), world.texts.shape[1]), np.float32)
        named = lambda talks: [Question(n, 0, 0, tuple(talk.named)) for n, talk in enumerate(talks)]
        return lambda talks: model.scores(films.known(named(talks), nothing(talks), nothing(talks)))

    def reader(model: WordsAndFilms, keep: np.ndarray, told: Told = list, others: bool = False) -> Scores:
        def scores(talks: Sequence[Conversation]) -> np.ndarray:
            known = world.known(films, [told(talk.turns) for talk in talks], [talk.named for talk in talks]) * keep
            return model.scores(np.where(words, np.roll(known, 1, axis=0), known) if others else known)

        return scores

    made: Scored = {("Popularity", ""): lambda talks: np.tile(popular, (len(talks), 1))}
    for method, keep in (("Films alone", ~words), ("Words alone", words), ("Words and films", words | ~words)):
        model = train_words_and_films(
            films, (train, known * keep), (dev, known_dev * keep), LEARNING, dropout=DROPOUT, seed=seed
        )
        made[method, ""] = reader(model, keep) if keep[words].any() else blind(model)
    made["Another's words", ""] = reader(model, keep, others=True)
    return made | {("Words and films", told): reader(model, keep, show) for told, show in TOLD.items()}


def asked(task: str, world: SeekerWorld, wishes: Sequence[Wish], scored: Scored, seed: int) -> Asked:
    """What all methods find for seekers, and what these said and did."""
    talks: list[Conversation] = []
    out = Asked([], [], [], {})
    for (method, told), scores in scored.items():
        ranks, found, held = ranks_by_turn(world, wishes, scores, seed, turns=TURNS, shown=SHOWN)
        print(seed, task, method, told, *found.mean(0).round(3), flush=True)
        values = {metric: found[:, turn] for turn, metric in enumerate(METRICS)}
        values |= {metric: ranks[:, turn] <= 10 for turn, metric in enumerate(RANKED)}
        variant = {"variant": f"told={told}" if told else ""}
        out.rows.extend(row | variant for row in rows_of("MovieLens", task, "excluded", method, seed, values))
        out.found[f"{method}, {told}" if told else method] = found[:, -1]
        talks += held
        if (method, told) == ("Words and films", ""):
            out.acts.extend(rows_of_acts(task, acted(held, found, wishes, world.films)))
    said = checks(talks, world.facts, [*wishes] * len(scored), SHOWN)
    out.checked.extend(_check(task, seed, name, value, len(talks)) for name, value in said.items())
    return out


def _check(task: str, seed: int, measure: str, value: float, n: int) -> dict:
    return {"task": task, "seed": seed, "measure": measure, "value": round(float(value), 6), "n": n}


def measure(root: Path, seeds: Sequence[int], llm: str | None = None, ask: int = ASK) -> pd.DataFrame:
    """Rows of seekers.csv; those of the other two files are written."""
    world = World(read_catalogue(root), read_tags(root / TAGS), sentence_encoder())
    acts = rows_of_acts("people", read_iard(root / IARD))
    genres = {genre for facts in world.seekers.facts for genre in facts.genres}
    rows: list[dict] = []
    checked: list[dict] = []
    for seed in seeds:
        scored = scorers(world, seed)
        both = [asked(RULES, world.seekers, world.ask, scored, seed)]
        if llm is not None:
            words = Rewording(llm, ANSWERS, seed=seed, foreign=sorted(genres))
            both.append(asked(LLM, replace(world.seekers, speech=words), world.ask[:ask], scored, seed))
            n = sum(words.said.values())
            both[1].checked.extend(_check(LLM, seed, f"said: {how}", k / n, n) for how, k in words.said.most_common())
            hear = [name for name in both[1].found if name not in DEAF]
            same = agreement(*({name: one.found[name][:ask] for name in hear} for one in both))
            both[1].checked.extend(_check("both", seed, name, value, ask) for name, value in same.items())
        for one in both:
            rows, checked, acts = rows + one.rows, checked + one.checked, acts + one.acts
    CHECKS.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(checked).to_csv(CHECKS, index=False)
    pd.DataFrame(acts).to_csv(ACTS, index=False)
    return pd.DataFrame(rows)


def table(results: pd.DataFrame, task: str = RULES, metrics: Sequence[str] = METRICS) -> str:
    """The table of reports/README.md, in Markdown."""
    return markdown(results[(results["task"] == task) & (results["variant"] == "")], METHODS, metrics)


def control_table(results: pd.DataFrame, task: str = RULES) -> str:
    """What words and films find when they are told less, in Markdown."""
    own = results[(results["task"] == task) & (results["method"] == "Words and films")]
    named = own.assign(method=own["variant"].str.removeprefix("told=").replace("", "all"))
    return markdown(named, ("all", *TOLD), METRICS)


def check_table(checked: pd.DataFrame) -> str:
    """What was checked, means over seeds, in Markdown."""
    lines = ["| who speaks | measure | value | n |", "| --- | --- | --- | --- |"]
    for (task, name), part in checked.groupby(["task", "measure"], sort=False):
        lines.append(f"| {task} | {name} | {part['value'].mean():.3f} | {part['n'].sum():,} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    results = measured("seekers", __doc__, measure, RESULTS, arguments, OPTIONS)
    for task in dict.fromkeys(results["task"]):
        print(f"\n{task}", table(results, task), table(results, task, RANKED), control_table(results, task), sep="\n\n")
    print("", check_table(pd.read_csv(CHECKS)), "", acts_table(pd.read_csv(ACTS)), sep="\n")


if __name__ == "__main__":
    main()
