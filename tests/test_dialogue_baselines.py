"""Questions of dialogues, their measures, and what answers them without an LLM."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bench import redial, seekers
from bench.acts import acts_table
from ilm_lib.baselines.bm25 import BM25
from ilm_lib.baselines.dialogue import Films, WordsAndFilms, film_counts, named_likeness, train_words_and_films, unit
from ilm_lib.data.conversations import Dialogue, Film, Turn
from ilm_lib.profiles import ROOT
from ilm_lib.sections import Optim
from ilm_lib.tasks.conversation import Question, questions_of, recall_metrics, target_ranks, words_of_turns

ROWS = {name: row for row, name in enumerate("abcde")}
FILM = {name: Film(name, name) for name in "abcdez"}


def dialogue(*turns) -> Dialogue:
    """Turns as "seeker words a b" with letters of films in brackets: ("s", "I like ", "[a]")."""
    said = [Turn(who == "r", tuple(FILM[s[1]] if s[0] == "[" else s for s in content)) for who, *content in turns]
    return Dialogue("1", tuple(said), {})


TALK = dialogue(
    ("s", "I like ", "[a]"),
    ("r", "[b]", " or ", "[a]", " or ", "[z]"),
    ("s", "seen ", "[c]"),
    ("r", "then ", "[c]", " and ", "[d]", " and ", "[d]"),
    ("r", "or ", "[b]"),
)


def test_strict_questions_are_films_that_the_recommender_is_first_to_name():
    assert questions_of([TALK], ROWS) == [Question(0, 1, 1, (0,)), Question(0, 3, 3, (0, 1, 2))]


def test_usual_questions_are_all_films_that_the_recommender_names():
    asked = questions_of([TALK], ROWS, "usual")
    assert [(q.turn, q.target) for q in asked] == [(1, 1), (1, 0), (3, 2), (3, 3), (4, 1)]
    assert asked[-1].named == (0, 1, 2, 3)


def test_words_come_from_before_the_turn_and_hold_no_film():
    assert words_of_turns(TALK.turns[:0]) == ""
    assert words_of_turns(TALK.turns[:3]) == "I like or or seen"
    assert words_of_turns(TALK.turns[:3], seeker_alone=True) == "I like seen"
    assert "then" not in words_of_turns(TALK.turns[:3]), "what is asked for is in this turn"


def test_ranks_leave_out_what_was_named_and_ties_count_against():
    asked = [Question(0, 1, 2, (0,)), Question(0, 1, 2, ())]
    scores = np.array([[9.0, 1, 2, 3], [9.0, 1, 2, 3]])
    assert target_ranks(scores, asked).tolist() == [2, 3]
    assert target_ranks(scores, asked, "usual").tolist() == [3, 3]
    assert target_ranks(np.zeros((2, 4)), asked).tolist() == [3, 4], "who cannot tell films apart finds nothing"
    oracle = np.eye(4)[[2, 2]]
    assert recall_metrics(target_ranks(oracle, asked))["MRR"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="scores of 1 questions for 2"):
        target_ranks(scores[:1], asked)
    with pytest.raises(ValueError, match="no number"):
        target_ranks(scores * np.nan, asked)


def test_recall_counts_from_one():
    found = recall_metrics(np.array([1, 2, 10, 11, 50, 51]))
    assert [found[m].sum() for m in ("R@1", "R@10", "R@50")] == [1, 3, 5]
    assert found["MRR"][1] == 0.5


def test_bm25_agrees_with_its_formula_by_hand():
    texts = ["red car", "blue car car", "green"]
    scores = BM25(texts, k=1.2, b=0.75).scores(["car CAR", "red", "nothing", ""])
    idf = np.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    norm = lambda length: 1.2 * (1 - 0.75 + 0.75 * length / 2)
    expected = [idf * 1 * 2.2 / (1 + norm(2)), idf * 2 * 2.2 / (2 + norm(3)), 0]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert scores[1].argmax() == 0 and not scores[2:].any()
    assert BM25(["", ""]).scores(["a"]).tolist() == [[0, 0]]


def world(seed: int = 0, films: int = 60, questions: int = 600):
    """Films of 6 kinds; what is said tells the kind, the film named tells the number within it."""
    rng = np.random.default_rng(seed)
    kind, number = np.arange(films) % 6, np.arange(films) // 6
    texts, factors = unit(rng.normal(size=(6, 16)))[kind], unit(rng.normal(size=(films // 6, 8)))[number]
    target = rng.integers(films, size=questions)
    # The film named has the number of the answer, and any kind but its own.
    named = (target - target % 6) + (target % 6 + rng.integers(1, 6, questions)) % 6
    asked = [Question(n, 1, int(t), (int(m),)) for n, (t, m) in enumerate(zip(target, named))]
    meaning = unit(rng.normal(size=(6, 16)))  # how one speaks of a kind is not how it is described
    said = meaning[kind[target]]
    return Films(film_counts(asked[:400], films), factors, texts), asked, said.astype(np.float32)


OPTIM = Optim(steps=200, batch_size=40, lr=0.01, optimizer="adamw")


def hits(model: WordsAndFilms, known, asked) -> float:
    return float((target_ranks(model.scores(known), asked) == 1).mean())


def test_words_and_films_together_find_what_neither_finds_alone():
    films, asked, said = world()
    known = films.known(asked, said, said)
    words = np.zeros(known.shape[1], np.float32)
    words[8 + 16 :] = 1
    found = {}
    for name, keep in (("both", np.ones_like(words)), ("words", words), ("films", 1 - words)):
        parts = [(asked[a:b], known[a:b] * keep) for a, b in ((0, 400), (400, 500))]
        model = train_words_and_films(films, *parts, OPTIM, dropout=0.0)
        found[name] = hits(model, known[500:] * keep, asked[500:])
    other = np.where(words > 0, known[500:][::-1], known[500:])
    assert found["both"] > 0.95
    assert found["words"] < 0.3 and found["films"] < 0.45
    model = train_words_and_films(
        films, (asked[:400], known[:400]), (asked[400:500], known[400:500]), OPTIM, dropout=0.0
    )
    assert hits(model, other, asked[500:]) < 0.4, "the words of another dialogue lose the gain"


def test_shuffled_answers_teach_nothing():
    films, asked, said = world()
    known = films.known(asked, said, said)
    target = np.random.default_rng(1).permutation([q.target for q in asked])
    mixed = [Question(q.dialogue, q.turn, int(t), ()) for q, t in zip(asked, target)]
    model = train_words_and_films(films, (mixed[:400], known[:400]), (mixed[400:500], known[400:500]), OPTIM)
    ranks = target_ranks(model.scores(known[500:]), mixed[500:])
    assert 20 < ranks.mean() < 41, "chance is 30.5"


def test_equal_seeds_are_equal_and_others_differ():
    films, asked, said = world()
    known = films.known(asked, said, said)
    short = OPTIM.model_copy(update={"steps": 20})
    parts = (asked[:400], known[:400]), (asked[400:500], known[400:500])
    one, same, other = (train_words_and_films(films, *parts, short, seed=s).scores(known[500:]) for s in (0, 0, 1))
    assert (one == same).all() and (one != other).any()


def test_a_film_named_counts_by_its_likeness_and_none_by_nothing():
    table = unit(np.array([[1.0, 0], [1, 1], [0, 1]]))
    likeness = named_likeness(table, [Question(0, 1, 1, (0,)), Question(0, 1, 1, ()), Question(0, 1, 1, (0, 2))])
    np.testing.assert_allclose(likeness[0], [1, 0.5**0.5, 0], atol=1e-6)
    assert not likeness[1].any() and likeness[2].argmax() == 1
    assert not unit(np.zeros((1, 3))).any()


@pytest.mark.parametrize("command", [redial, seekers])
def test_missing_data_and_wrong_seeds_are_one_line(tmp_path, monkeypatch, command):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="ml-latest-small"):
        command.main(["0"])
    with pytest.raises(SystemExit, match="'x' is no whole number"):
        command.main(["x"])


def test_the_page_shows_the_numbers_that_were_written():
    written = pd.read_csv(redial.RESULTS, keep_default_na=False)
    assert set(written["seed"]) == {0, 1, 2} and set(written["method"]) == set(redial.METHODS)
    page = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    assert redial.table(written) in page and redial.table(written, "usual") in page
    simulated = pd.read_csv(seekers.RESULTS, keep_default_na=False)
    assert set(simulated["method"]) == set(seekers.METHODS) and seekers.table(simulated) in page
    assert {row["task"] for _, row in simulated.iterrows()} <= {seekers.RULES, seekers.LLM}
    for task in dict.fromkeys(simulated["task"]):
        assert seekers.table(simulated, task) in page and seekers.control_table(simulated, task) in page
    success = simulated.set_index(["task", "method", "variant", "metric"])["value"]
    for about in dict.fromkeys((task, method, variant) for task, method, variant, _ in success.index):
        by_turn = [success[(*about, f"success@{turn}")] for turn in range(1, seekers.TURNS + 1)]
        assert by_turn == sorted(by_turn), "what was found stays found"
    checked = pd.read_csv(seekers.CHECKS).groupby(["task", "measure"])["value"]
    for task in dict.fromkeys(simulated["task"]):
        assert (
            checked.max()[task, "leaks"] == 0 == checked.max()[task, "repeated"] and checked.min()[task, "valid"] == 1
        )
    acts = pd.read_csv(seekers.ACTS)
    assert set(acts["who"]) == {"people", *simulated["task"]} and acts_table(acts) in page
