"""The global temporal split: what lies after the date is in nothing trained; users are asked for what comes next."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from conftest import said_under
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sasrec import SMALL, world

from ilm_lib.baselines import sasrec
from ilm_lib.baselines.cf import fit_cf
from ilm_lib.baselines.popularity import popularity_top_k
from ilm_lib.baselines.sasrec import sasrec_top_k, train_sasrec, training_batches
from ilm_lib.data import DataError, Dataset, load_openp5, missing_data
from ilm_lib.data.enough import TooSmall
from ilm_lib.data.splits import SPLITS, Places, by_date, leave_one_out
from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.data.temporal import split_by_date
from ilm_lib.data.time_order import read_times, shuffle_ties
from ilm_lib.metrics import ranking_metrics
from ilm_lib.model.indexing import Indexing
from ilm_lib.settings import SASRec, validate
from ilm_lib.study import inputs, openp5
from ilm_lib.study.artifacts import SourceFile
from ilm_lib.tasks.openp5 import RecommendationTasks

# Training ends at 20, the test period starts at 30. A tie at either date belongs to what follows.
WORLD = {
    "ann": [("a", 1), ("b", 5), ("c", 20), ("d", 20), ("e", 30), ("f", 31)],  # dev c, test e
    "bob": [("b", 2), ("a", 3), ("e", 19), ("g", 40)],  # no dev, test g, which training has not
    "cat": [("c", 21), ("a", 22), ("b", 35)],  # no training; nothing before c, so no dev; test b
    "dan": [("a", 4), ("b", 6), ("c", 7)],  # all training
    "eve": [("f", 30), ("a", 33), ("b", 34)],  # begins in the test period: no target
    "fay": [("d", 8), ("b", 25), ("a", 26)],  # dev b, no test
}


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, WORLD)


@pytest.fixture
def data(folder):
    """Dates as shares: 9 of 22 interactions lie before 20, 15 before 30."""
    return split_by_date(load_openp5(folder, name="Tiny"), folder, 9 / 22, 15 / 22)


def write(folder, users):
    for name, part in (("user_sequence.txt", 0), ("user_time.txt", 1)):
        lines = (" ".join([user, *(str(one[part]) for one in events)]) for user, events in users.items())
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def names(data, rows):
    return ["-" if row < 0 else data.items[row] for row in rows]


def trained_on(data):
    """Item rows of everything that any training reads, by what it is."""
    batches = training_batches(data, SASRec(**SMALL), 0)
    examples = data.sequences[np.add(*(a for a in _example_places(data)))]
    return {
        "sequences": np.concatenate([data.train_sequence(u) for u in range(data.num_users)]),
        "examples": examples,
        "matrix": data.train_matrix().indices,
        "item pairs": data.item_pairs().ravel(),
        "user pairs": data.user_item_pairs()[:, 1],
        "SASRec": np.concatenate([batches(step).input_ids.unique().numpy() for step in range(3)]),
    }


def _example_places(data):
    user, position = data.train_example(range(data.num_train_examples))
    return data.offsets[user], position


# ------------------------------------------------------------ known answers


def test_everyone_is_asked_about_the_first_item_of_a_period(data):
    assert "".join(names(data, data.dev_targets())) == "c----b"
    assert "".join(names(data, data.test_targets())) == "egb---"
    assert data.users_of("dev").tolist() == [0, 5] and data.users_of("test").tolist() == [0, 1, 2]
    parts = ["".join(names(data, data.train_sequence(u))) for u in range(6)]
    assert parts == ["ab", "bae", "", "abc", "", "d"]
    histories = ["".join(names(data, data.history(u, "test"))) for u in data.users_of("test")]
    assert histories == ["abcd", "bae", "ca"]  # what lies between the dates is the past by then
    assert "".join(names(data, data.history(5, "dev"))) == "d"
    with pytest.raises(ValueError, match=r"user row 3 has no test target; ask users_of\('test'\)"):
        data.history(3, "test")


def test_what_is_trained_on_ends_at_the_date(data):
    user, position = data.train_example(range(data.num_train_examples))
    assert list(zip(user.tolist(), position.tolist())) == [(0, 1), (1, 1), (1, 2), (3, 1), (3, 2)]
    pairs = {"".join(names(data, pair)) for pair in data.item_pairs()}
    assert pairs == {"ab", "ba", "ae", "bc"}
    dense = data.train_matrix().toarray()
    assert dense.sum() == len(data.user_item_pairs()) == 9 and not dense[[2, 4]].any()
    assert data.train_matrix(np.array([3, 1])).toarray().tolist() == dense[[3, 1]].tolist()
    seen = data.seen_matrix("test").toarray()
    assert "".join(sorted(names(data, np.flatnonzero(seen[0])))) == "abcd" and not seen[[3, 4, 5]].any()


def test_what_has_no_target_or_no_training_is_counted(data):
    assert {k: v for k, v in data.notes.items() if "target" in k or "training" in k} == {
        "users_without_a_dev_target": 4,
        "users_without_a_test_target": 3,
        "items_not_in_training": 2,
        "dev_targets_not_in_training": 0,
        "test_targets_not_in_training": 1,
    }
    assert data.num_items == 7 and "user_time.txt" in data.checksums


def test_dates_are_days_in_utc(tmp_path):
    day = 86_400
    folder = write(tmp_path, {"ann": [("a", 0), ("b", day - 1), ("c", day), ("d", 2 * day)]})
    data = split_by_date(load_openp5(folder), folder, "1970-01-02", "1970-01-03")
    assert names(data, [*data.train_sequence(0), *data.dev_targets(), *data.test_targets()]) == ["a", "b", "c", "d"]


def test_saving_keeps_the_split(data, tmp_path):
    data.save(tmp_path / "kept")
    again = Dataset.open(tmp_path / "kept")
    for split in SPLITS:
        assert np.array_equal(again.places.of(split), data.places.of(split))
    assert np.array_equal(again.places.train, data.places.train) and again.notes == data.notes
    replace(data, held_out=None).save(tmp_path / "kept")  # over it
    assert Dataset.open(tmp_path / "kept").held_out is None


# ------------------------------------------------------------ no future in anything trained


@st.composite
def worlds(draw):
    """Users with 3 to 9 of 12 items at rising times, many of them equal, and two dates."""
    users = draw(st.integers(2, 8))
    events = []
    for _ in range(users):
        items = draw(st.permutations(range(12)))[: draw(st.integers(3, 9))]
        times = sorted(draw(st.lists(st.integers(0, 9), min_size=len(items), max_size=len(items))))
        events.append(list(zip(items, times)))
    early = draw(st.integers(1, 8))
    return events, early, draw(st.integers(early + 1, 10))


def built(events, dates, target="first"):
    data = world([np.array([item for item, _ in own]) for own in events], 12)
    times = np.array([time for own in events for _, time in own])
    return replace(data, held_out=by_date(times, data.offsets, *dates, target)), times


@settings(max_examples=150, deadline=None)
@given(drawn=worlds(), which=st.sampled_from(["first", "last"]))
def test_a_split_is_what_its_words_say(drawn, which):
    """Every array against the definition, a user at a time, in any world."""
    events, *dates = drawn
    data, _ = built(events, dates, which)
    early, late = dates
    examples, pairs = [], set()
    for u, own in enumerate(events):
        past = [item for item, time in own if time < early]
        assert data.train_sequence(u).tolist() == past
        examples += [(u, p) for p in range(1, len(past))]
        pairs |= set(pairwise(past))
        for split, start, end in (("dev", early, late), ("test", late, 99)):
            within = [(n, item) for n, (item, time) in enumerate(own) if start <= time < end]
            target = within[0 if which == "first" else -1] if within else None
            target = target if target and target[0] else None  # the first interaction of all has no history
            row = getattr(data, f"{split}_targets")()[u]
            assert row == (target[1] if target else -1) and (u in data.users_of(split)) == (target is not None)
            if target:
                assert data.history(u, split).tolist() == [item for item, _ in own[: target[0]]]
            seen = [item for item, _ in own[: target[0]]] if target else []
            assert data.seen_matrix(split)[u].indices.tolist() == sorted(seen)
        assert data.train_matrix()[u].indices.tolist() == sorted(past)
    assert list(zip(*(a.tolist() for a in data.train_example(range(data.num_train_examples))))) == examples
    assert set(map(tuple, data.item_pairs().tolist())) == pairs


@settings(max_examples=40, deadline=None)
@given(drawn=worlds())
def test_leave_one_out_is_the_last_two(drawn):
    """The default against the slices that stood here before there was another split."""
    data, _ = built(drawn[0], drawn[1:])
    data = replace(data, held_out=None)
    ends = data.offsets[1:]
    assert np.array_equal(data.dev_targets(), data.sequences[ends - 2]) and data.dev_targets().dtype == np.int32
    assert np.array_equal(data.test_targets(), data.sequences[ends - 1])
    assert data.num_train_examples == data.num_interactions - 3 * data.num_users
    for u in range(data.num_users):
        own = data.sequence(u)
        assert np.array_equal(data.train_sequence(u), own[:-2]) and np.array_equal(data.history(u, "test"), own[:-1])
        assert np.array_equal(data.history(u, "dev"), own[:-2])
    assert data.users_of("dev").tolist() == data.users_of("test").tolist() == list(range(data.num_users))


def test_a_planted_future_item_is_in_nothing_trained():
    """Item 29 is all that anybody has from the date on, and leave-one-out would train on it."""
    rng = np.random.default_rng(0)
    events = [[*zip(rng.permutation(29)[:8].tolist(), range(8)), (29, 8), (28, 9), (27, 10)] for _ in range(40)]
    sequences = [np.array([item for item, _ in own]) for own in events]
    data, times = world(sequences, 30), np.tile(np.arange(11), 40)
    split = replace(data, held_out=by_date(times, data.offsets, 8, 9))
    assert (split.dev_targets() == 29).all() and (split.test_targets() == 28).all()
    assert all(29 in rows for rows in trained_on(data).values())  # the plant can be found
    assert not any(29 in rows for rows in trained_on(split).values())
    cf = fit_cf(split.train_matrix(), dim=8, iterations=4)
    assert not cf.item[29].any() and cf.item[28].any()
    top = popularity_top_k(split.train_matrix(), 29)
    assert not (top[:, :-1] == 29).any()
    tasks = RecommendationTasks(split, OUR_TEMPLATES, Indexing("Cycle", data.user_index, data.item_index), 4)
    assert not any("item_1030" in answer for _, answer in tasks.draw(np.random.default_rng(0), 500))


def test_sasrec_asks_only_whom_there_is_something_to_ask():
    rng = np.random.default_rng(1)
    sequences = [(rng.integers(30) + np.arange(n)) % 30 for n in rng.integers(3, 21, 80)]
    data = world(sequences, 30)
    times = np.concatenate([np.sort(rng.integers(0, 100, len(s))) for s in sequences])
    data = replace(data, held_out=by_date(times, data.offsets, 60, 80))
    users = data.users_of("test")
    assert 20 < len(users) < 80
    model, _ = train_sasrec(data, SASRec(**{**SMALL, "steps": 40, "eval_every": 40}), seed=0)
    top = sasrec_top_k(model, data, "test", 10, exclude=True, users=users)
    assert ranking_metrics(top, data.test_targets()[users])["HR@10"].mean() > 0.8
    with pytest.raises(ValueError, match="has no test target"):
        sasrec_top_k(model, data, "test", 10, exclude=True, users=np.arange(80))
    with pytest.raises(TooSmall, match="no user has a dev target"):
        train_sasrec(replace(data, held_out=by_date(times, data.offsets, 60, 60)), SASRec(**SMALL), seed=0)


# ------------------------------------------------------------ the study


def test_the_stages_of_the_baselines_follow_the_split(tmp_path, monkeypatch):
    """Of a profile with a date: who is asked, what for, and what the data stage notes."""
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    rng = np.random.default_rng(2)
    (folder := tmp_path / "data" / "mine").mkdir(parents=True)
    users = {
        f"u{u}": [(f"i{i}", t) for i, t in zip(rng.permutation(40), np.sort(rng.integers(0, 1000, 12)))]
        for u in range(60)
    }
    write(folder, users)
    params = validate(
        {
            "profile": "mine",
            "data": {"source": "openp5", "name": "Mine", "folder": "mine", "split": "temporal", "test_from": 0.95},
            "embeddings": {"dim": 4, "iterations": 2},
            "phase1": {"losses": ["ui", "ii"]},
            "methods": ["OpenP5-R"],
            "sasrec": {**SMALL, "steps": 4, "eval_every": 4},
            "elm24": {"enabled": False},
            "ablations": {"readings": {}},
        }
    )
    inputs.data(params, build=True)
    data = inputs.dataset(params)
    asked = data.users_of("test")
    assert 20 <= len(asked) < 60 and data.notes["users_without_a_test_target"] == 60 - len(asked)
    inputs.embeddings(params, 0, build=True)
    for method in ("Popularity", "iALS", "SASRec"):
        with np.load(openp5.evaluation(params, 0, method, build=True).path("tops.npz")) as saved:
            assert saved["users"].tolist() == asked.tolist() and (saved["target"] >= 0).all()
            assert len(saved["sequential|seen|excluded"]) == len(asked)
    with pytest.raises(TooSmall, match=r"users of 60 have a test target; .*data\.test_from 0\.999"):
        inputs.data(params.with_(**{"data.test_from": 0.999}), build=True)
    (folder / "user_time.txt").unlink()
    with pytest.raises(DataError, match=r"user_time\.txt: is missing\. .*python -m ilm_lib\.data"):
        inputs.data(params, build=True)
    assert "user_time.txt is missing" in missing_data(params)


def test_the_key_of_the_data_knows_the_dates(tmp_path, monkeypatch, folder):
    made = []
    monkeypatch.setattr(inputs, "stage", lambda *a, given, **k: made.append(given))
    base = {"source": "openp5", "name": "Tiny", "folder": str(folder)}
    for more in ({}, {"split": "temporal"}, {"split": "temporal", "dev_from": 0.5}):
        inputs._data(validate({"profile": "x", "data": {**base, **more}}), False)
    assert "dev_from" not in made[0] and (made[1]["dev_from"], made[2]["dev_from"]) == (0.8, 0.5)
    assert isinstance(made[1]["files"]["user_time.txt"], SourceFile)


# ------------------------------------------------------------ times


def test_ties_are_shuffled_and_nothing_else(folder):
    data = load_openp5(folder)
    times, _ = read_times(folder, data)
    orders = {tuple(names(data, shuffle_ties(data, times, seed).sequences)) for seed in range(20)}
    plain = tuple(names(data, data.sequences))
    assert len(orders) == 2 and plain in orders  # ann's c and d, both at 20
    assert {(*o[:2], "d", "c", *o[4:]) for o in orders if o != plain} == orders - {plain}
    assert np.array_equal(shuffle_ties(data, times, 3).sequences, shuffle_ties(data, times, 3).sequences)


@pytest.mark.slow
def test_independent_of_hash_seed(folder):
    code = (
        "import sys; from pathlib import Path; from ilm_lib.data import load_openp5;"
        "from ilm_lib.data.temporal import split_by_date; from ilm_lib.data.time_order import read_times, shuffle_ties;"
        "f = Path(sys.argv[1]); d = split_by_date(load_openp5(f), f, 9 / 22, 15 / 22);"
        "print(d.items, d.train_matrix().indices, d.dev_targets(), d.test_targets(), d.item_pairs(), d.notes,"
        "shuffle_ties(d, read_times(f, d)[0], 1).sequences)"
    )
    outputs = {said_under(seed, code, str(folder)) for seed in ("0", "1", "2")}
    assert len(outputs) == 1 and "users_without_a_dev_target" in outputs.pop()


def test_places_of_users_without_three_items():
    places = leave_one_out(np.array([0, 1, 2, 3, 5]))
    assert places.train.tolist() == [0, 1, 2, 1, 3]
    assert places.dev.tolist() == [-1, -1, -1, 1, 3] and places.test.tolist() == [-1, -1, -1, 2, 4]
    some = Places(*np.arange(12).reshape(3, 4))[np.array([2, 0])]
    assert [a.tolist() for a in (some.train, some.dev, some.test)] == [[2, 0], [6, 4], [10, 8]]


def test_sasrec_learns_from_users_with_two_training_items_alone(data, monkeypatch):
    drawn = []
    monkeypatch.setattr(sasrec, "pack", lambda windows, places: (drawn.append(list(windows)), None))
    training_batches(data, SASRec(**SMALL), 0)(0)
    assert sorted("".join(names(data, window)) for window in drawn[0]) == ["ab", "abc", "bae"]
