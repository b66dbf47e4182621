import math

import pytest
import torch

from bench import encoder
from bench.peers import PeerQFormer, negatives
from ilm_lib.train import losses as o

TINY = encoder.Sizes(
    rows=2,
    positions=24,
    llm_width=16,
    slots=3,
    history_rows=3,
    history=4,
    catalogue=20,
    batch=6,
    queries=2,
    text=7,
    layers=2,
    width=16,
    vocab=40,
    cf_dim=6,
)


def test_the_encoders_benchmark_runs():
    rows = encoder.run(TINY, repeats=1)
    assert [r.case[0] for r in rows if r.main] == ["a", "b", "c"] and {r.case[0] for r in rows} == {"a", "b", "c"}
    assert all(math.isfinite(r.ratio) and r.ours > 0 and r.theirs > 0 for r in rows)


def test_a_comparison_of_unlike_sides_is_refused(monkeypatch):
    losses = PeerQFormer.losses
    monkeypatch.setattr(PeerQFormer, "losses", lambda *a, **k: {n: v * 1.01 for n, v in losses(*a, **k).items()})
    with pytest.raises(ValueError, match="differ by"):
        encoder.phase1_step(TINY, 1)


def test_negatives_one_by_one_follow_the_same_rule():
    torch.manual_seed(0)
    similarity, items = torch.eye(6) * 0.3, torch.tensor([0, 1, 2, 0, 3, 4])
    similarity[1, 4] = 0.9
    for draw in (negatives, o.hard_negatives):
        text, item = (torch.stack(side) for side in zip(*(draw(similarity, items, 0.07) for _ in range(50))))
        assert not (items[text] == items).any() and not (items[item] == items).any()
        assert (text[:, 1] == 4).float().mean() > 0.9
