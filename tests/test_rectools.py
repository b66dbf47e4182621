"""RecTools' metrics and ours, where RecTools is installed; a case of theirs by hand where it is not."""

import json
import os

import numpy as np
import pytest
from test_sasrec import cycle  # noqa: F401  (a fixture)

from bench import rectools_check
from bench.rectools_check import VARIABLE, NoRecTools, ask, interpreter, like_settings
from ilm_lib.metrics import hits_at, ndcg_at
from ilm_lib.settings import SASRec


@pytest.fixture(scope="module")
def rectools():
    try:
        return interpreter()
    except NoRecTools as error:
        pytest.skip(str(error))


def test_their_figures_for_a_small_case():
    """HitRate(10) and NDCG(10, divide_by_achievable=True) of RecTools 0.19.0, user by user."""
    top = np.tile(np.arange(10), (5, 1))
    top[4, 2:] = -1  # a list of two items
    target = np.array([0, 1, 9, 10, 5])
    assert hits_at(top, target, 10).tolist() == [1, 1, 1, 0, 0]
    theirs = [1.0, 0.6309297535714575, 0.2890648263178879, 0.0, 0.0]
    assert np.abs(ndcg_at(top, target, 10) - theirs).max() < 1e-9


def test_both_sides_measure_a_ranking_alike(rectools):
    rng = np.random.default_rng(0)
    top = np.stack([rng.permutation(30)[:10] for _ in range(300)])
    top[::7, 4:] = -1
    target = rng.integers(30, size=300)
    found = ask(rectools, top=top, target=target)
    assert 0.2 < found["hits"].mean() < 0.5
    assert np.abs(found["hits"] - hits_at(top, target, 10)).max() < 1e-9
    assert np.abs(found["ndcg"] - ndcg_at(top, target, 10)).max() < 1e-9


@pytest.mark.slow
def test_their_sasrec_learns_a_planted_order_from_our_split(rectools, cycle):  # noqa: F811
    """It can only if histories, dev items and targets arrive as they are here."""
    asked = like_settings(SASRec(steps=400, batch_size=32, width=32, dropout=0.1, max_length=8), cycle, [0])
    asked["model"]["lr"] = 5e-3
    target = cycle.test_targets()
    found = ask(
        rectools,
        top=np.zeros((cycle.num_users, 10), int),
        target=target,
        sequences=cycle.sequences,
        offsets=cycle.offsets,
        settings=np.array(json.dumps(asked)),
    )
    top = found["top.0"]
    assert hits_at(top, target, 1).mean() > 0.9
    seen = cycle.seen_matrix("test")
    assert not any(seen[user, item] for user, row in enumerate(top) for item in row if item >= 0)


def test_a_missing_package_is_told_with_its_remedy(monkeypatch, tmp_path):
    for python in (tmp_path / "python", "/bin/false"):
        monkeypatch.setenv(VARIABLE, str(python))
        with pytest.raises(NoRecTools, match=f"pip install 'rectools.*{VARIABLE}=DIR/bin/python") as caught:
            interpreter()
        assert len(str(caught.value)) <= 300 and os.sep in str(caught.value)


def test_their_model_is_asked_for_as_many_looks_at_a_user(cycle):  # noqa: F811
    asked = like_settings(SASRec(steps=300, batch_size=64, layers=3, dropout=0.4, max_length=7), cycle, [5])
    assert asked["rounds"] * asked["epochs"] == 160 == 300 * 64 // cycle.num_users
    assert {k: asked["model"][k] for k in ("n_blocks", "dropout_rate", "session_max_len", "batch_size")} == {
        "n_blocks": 3,
        "dropout_rate": 0.4,
        "session_max_len": 7,
        "batch_size": 64,
    }
    assert rectools_check.ROUNDS == asked["rounds"] and asked["seeds"] == [5]
