"""The benchmarks of the score read-out at toy sizes: rows follow the contract, and a side that is wrong is an error."""

import pytest
import torch

from bench import head, serving


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(serving, "beauty", lambda: serving.synthetic(40, 30, 400))
    return {"users": 12, "layers": 1, "width": 32}


def test_rows_of_serving(small, monkeypatch):
    monkeypatch.setattr(serving, "in_turn", lambda ours, theirs, repeats=1: (ours(), theirs()) and (10.0, 20.0))
    rows = serving.run(items=500, by_beam=2, **small)
    assert [row.case[0] for row in rows if row.main] == ["o", "p", "q"]
    first = rows[0]
    assert first.ours == pytest.approx(1200) and first.ratio == pytest.approx(1200 / 500)
    beam = next(row for row in rows if "beam" in row.case)
    assert beam.theirs == pytest.approx(100) and beam.ratio == pytest.approx(12)


def test_both_read_the_same_histories(small):
    world = serving.setting(**small)
    found = world.ours("score", 12)
    assert len(found) == 12 and world.theirs().shape == (12, 10)
    for user, items in zip(world.users, found):
        assert not {r.item.row for r in items} & set(world.data.history(user, "test")[-serving.HISTORY :].tolist())


def test_a_difference_is_an_error(monkeypatch):
    monkeypatch.setattr(serving, "at_once", lambda *given: (torch.zeros(256, 10, dtype=torch.long), None))
    with pytest.raises(AssertionError, match="are the same"):
        serving.catalogue(500)


def test_the_losses_of_both_sides_are_compared(monkeypatch):
    monkeypatch.setattr(serving, "whole_loss", lambda *given: serving.blocked_loss(*given) * 1.2)
    with pytest.raises(AssertionError, match="not close"):
        serving.training(50)


def test_rows_of_training_the_head(small, monkeypatch):
    """Both sides have the same loss and gradients, or the comparison stops."""
    monkeypatch.setattr(head, "in_turn", lambda ours, theirs: (ours(), theirs()) and (10.0, 40.0))
    rows = head.run(**small)
    assert [(row.case[0], row.main) for row in rows] == [("r", True), ("r", False)]  # of one token and of four
    assert rows[0].ours == pytest.approx(1200) and rows[0].ratio == pytest.approx(4)
    plain = head.plain_loss
    monkeypatch.setattr(head, "plain_loss", lambda *given: 1.1 * plain(*given))
    with pytest.raises(AssertionError, match="not close"):
        head.run(**small)
