"""Cold items: they are in nothing that is trained on, and they are asked for by text alone."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sasrec import SMALL, world

from ilm_lib.baselines.cf import fit_cf
from ilm_lib.baselines.nearest_text import factors_of_texts, nearest_text_scores, text_vectors
from ilm_lib.baselines.sasrec import training_batches
from ilm_lib.data.cold import ColdItems, ColdLeak, withhold
from ilm_lib.data.enough import TooSmall
from ilm_lib.data.splits import by_date
from ilm_lib.metrics import ranking_metrics
from ilm_lib.settings import SASRec, validate
from ilm_lib.study import inputs
from ilm_lib.tasks.cold import rank_cold

ITEMS = 20


def texts(data, without=()):
    return replace(data, texts=[{} if i in without else {"title": f"Film {i}"} for i in range(data.num_items)])


@st.composite
def worlds(draw):
    """Users with 3 to 9 of 20 items, and which items may be withheld: those with a text."""
    users = [draw(st.permutations(range(ITEMS)))[: draw(st.integers(3, 9))] for _ in range(draw(st.integers(2, 8)))]
    without = draw(st.sets(st.integers(0, ITEMS - 1), max_size=ITEMS - 2))
    return texts(world([np.array(u) for u in users], ITEMS), without), draw(st.sampled_from([0.05, 0.2, 0.5]))


@settings(max_examples=150, deadline=None)
@given(drawn=worlds())
def test_what_is_withheld_is_what_the_words_say(drawn):
    """A user at a time, against the definition, in any world."""
    data, share = drawn
    warm, cold = withhold(data, share)
    assert len(cold.items) == min(round(share * ITEMS), sum(map(bool, data.texts)))
    assert all(data.texts[i] for i in cold.items) and (np.diff(cold.items) > 0).all()
    gone = set(cold.items.tolist())
    questions = []
    for u in range(data.num_users):
        own = data.sequence(u).tolist()
        left = [i for i in own if i not in gone]
        assert warm.sequence(u).tolist() == left
        asked = [n for n, i in enumerate(own) if i in gone and set(own[:n]) - gone]
        if asked:
            questions.append((u, [i for i in own[: asked[-1]] if i not in gone], own[asked[-1]]))
        if len(left) < 3:
            assert (
                warm.train_sequence(u).tolist() == left
                and u not in warm.users_of("dev")
                and u not in warm.users_of("test")
            )
        else:
            assert (warm.dev_targets()[u], warm.test_targets()[u]) == (left[-2], left[-1])
    found = zip(cold.users.tolist(), (h.tolist() for h in cold.histories(warm)), cold.targets.tolist())
    assert list(found) == questions
    assert (warm.users, warm.items, warm.texts) == (data.users, data.items, data.texts)
    cold.refuse_in(sequences=warm.sequences, pairs=warm.item_pairs(), matrix=warm.train_matrix().indices)
    assert warm.notes["cold_interactions"] == data.num_interactions - warm.num_interactions
    assert (warm.notes["cold_items"], warm.notes["cold_questions"]) == (len(gone), len(questions))


@settings(max_examples=60, deadline=None)
@given(drawn=worlds(), date=st.integers(1, 6))
def test_a_date_goes_with_cold_items(drawn, date):
    """Times are places here, so the date can be told from what is left."""
    data, share = drawn
    times = np.concatenate([np.arange(n) for n in np.diff(data.offsets)])
    data = replace(data, held_out=by_date(times, data.offsets, date, date + 1))
    warm, cold = withhold(data, share)
    gone = set(cold.items.tolist())
    for u in range(data.num_users):
        own = data.sequence(u).tolist()
        assert warm.train_sequence(u).tolist() == [i for i in own[:date] if i not in gone]
        for split, place in (("dev", date), ("test", date + 1)):
            past = [i for i in own[:place] if i not in gone]
            has = place < len(own) and own[place] not in gone and past
            assert (u in warm.users_of(split)) == bool(has)
            if has:
                assert warm.history(u, split).tolist() == past and getattr(warm, f"{split}_targets")()[u] == own[place]


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    data = texts(world([rng.permutation(ITEMS)[:8] for _ in range(30)], ITEMS))
    return data, *withhold(data, 0.2)


def test_a_planted_leak_is_caught(split):
    """A cold item put back into a sequence is found in all that is made of it."""
    _, warm, cold = split
    batches = training_batches(warm, SASRec(**SMALL), 0)
    clean = {
        "sequences": warm.sequences,
        "item_pairs": warm.item_pairs(),
        "user_item_pairs": warm.user_item_pairs()[:, 1],
        "train_matrix": warm.train_matrix().indices,
        "SASRec's windows": batches(0).input_ids.unique().numpy()[1:],  # 0 is padding, too
        "histories": np.concatenate(cold.histories(warm)),
        "targets": warm.test_targets(),
    }
    cold.refuse_in(**clean)
    leaky = replace(warm, sequences=warm.sequences.copy())
    leaky.sequences[1] = cold.items[0]
    planted = {
        "sequences": leaky.sequences,
        "item_pairs": leaky.item_pairs(),
        "user_item_pairs": leaky.user_item_pairs()[:, 1],
        "train_matrix": leaky.train_matrix().indices,
    }
    for name, rows in planted.items():
        with pytest.raises(ColdLeak, match=f"{name} hold 1 of the 4 items .* first row {cold.items[0]}; train on"):
            cold.refuse_in(**{**clean, name: rows})


def test_collaborative_filtering_knows_nothing_of_them(split):
    _, warm, cold = split
    cf = fit_cf(warm.train_matrix(), dim=8, iterations=4)
    assert not cf.item[cold.items].any() and cf.item[np.setdiff1d(np.arange(ITEMS), cold.items)].any(1).all()


def test_the_draw_is_the_same_for_all(split, tmp_path):
    data, _, cold = split
    again = withhold(data, 0.2)[1]
    other = withhold(data, 0.2, seed=1)[1]
    assert np.array_equal(again.items, cold.items) and not np.array_equal(other.items, cold.items)
    cold.save(tmp_path / "cold.npz")
    opened = ColdItems.open(tmp_path / "cold.npz")
    assert all(np.array_equal(getattr(opened, name), value) for name, value in vars(cold).items())


@pytest.mark.parametrize(("share", "without"), [(0.01, ()), (0.2, range(ITEMS)), (0.99, ())])
def test_a_share_that_withholds_nothing_or_all(split, share, without):
    with pytest.raises(TooSmall, match=rf"data\.cold_items {share:g} of 20 items, .*Choose another share"):
        withhold(texts(split[0], without), share)


def test_rankings_leave_out_histories_and_warm_items(split):
    """A method that knows the answer is right among both; one that likes low rows names the lowest that is allowed."""
    _, warm, cold = split
    target = dict(zip(cold.users.tolist(), cold.targets.tolist()))
    oracle = lambda users, _: np.eye(ITEMS)[[target[u] for u in users.tolist()]]
    low = lambda users, _: np.tile(-np.arange(ITEMS, dtype=float), (len(users), 1))
    for top in rank_cold(oracle, warm, cold, batch_size=7).values():
        assert (top[:, 0] == cold.targets).all() and top.shape == (len(cold.users), 10)
    ranked = rank_cold(low, warm, cold, batch_size=7)
    assert (ranked["cold"] == [*cold.items, *[-1] * 6]).all()
    for row, history in zip(ranked["all"], cold.histories(warm)):
        assert row.tolist() == [i for i in range(ITEMS) if i not in history][:10]
    assert ranking_metrics(ranked["cold"], cold.targets)["HR@10"].all()  # only four are cold


def test_the_nearest_text_by_hand():
    vectors = np.array([[1, 0], [0, 1], [0.6, 0.8], [0, 0]], np.float32)
    histories = [np.array([0, 1]), np.array([1]), np.array([3])]
    mean = nearest_text_scores(vectors, histories)
    assert mean[0] == pytest.approx([0.5**0.5, 0.5**0.5, 1.4 * 0.5**0.5, 0]) and mean[1] == pytest.approx(
        [0, 1, 0.8, 0]
    )
    assert not mean[2].any()  # a history without texts says nothing
    best = nearest_text_scores(vectors, histories, pool="max")
    assert best[0] == pytest.approx([1, 1, 0.8, 0]) and np.allclose(best[1], mean[1])
    assert np.allclose(nearest_text_scores(vectors, histories, last=1)[0], mean[1])


@pytest.mark.slow
def test_text_finds_what_reads_alike(split):
    data = replace(split[0], texts=[{"title": "A horse"}, {}, {"title": "Tax law"}, {"title": "A pony"}, *[{}] * 16])
    vectors = text_vectors(data)
    assert vectors.shape == (ITEMS, 384) and not vectors[1].any() and vectors[0] @ vectors[3] > vectors[2] @ vectors[3]


def test_the_data_stage_withholds_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = validate({"profile": "x", "data": {"num_items": 100, "num_users": 60, "cold_items": 0.05}})
    artifact = inputs._data(params, True)
    data, cold = inputs.open_dataset(artifact), inputs.cold_items(artifact)
    assert len(cold.items) == 5 == data.notes["cold_items"] and data.num_items == 100 and len(cold.users) > 5
    cold.refuse_in(sequences=data.sequences)
    plain = inputs._data(params.with_(**{"data.cold_items": None}), True)
    assert plain.key != artifact.key and not plain.path("cold.npz").exists()
    assert inputs.open_dataset(plain).num_interactions > data.num_interactions


def test_factors_are_guessed_from_the_texts_of_others():
    """A linear map is found again, by the items with interactions alone, and says what the others' factors would be."""
    rng = np.random.default_rng(0)
    texts, map_, counts = rng.normal(size=(300, 6)), rng.normal(size=(6, 3)), rng.integers(1, 20, 300)
    factors = texts @ map_ + 0.5
    counts[::10] = 0
    shown = factors.copy()
    shown[::10] = 1e6  # what nobody had has no say
    guessed = factors_of_texts(texts, shown, counts, ridge=1e-9)
    np.testing.assert_allclose(guessed, factors, atol=1e-6)
    texts[5] = 0  # neither has what has no text
    shown[5] = 1e6
    assert abs(factors_of_texts(texts, shown, counts, ridge=1e-9) - factors)[np.arange(300) != 5].max() < 1e-6
