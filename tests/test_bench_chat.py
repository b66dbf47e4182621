"""The benchmark of a conversation at a toy size: both sides say the same, or it stops."""

from dataclasses import replace

import pytest

from bench import chat


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return chat.setting(tmp_path_factory.mktemp("none") / "none", films=80)


def test_rows_of_a_conversation(small, monkeypatch, tmp_path):
    monkeypatch.setattr(chat, "setting", lambda *_: small)
    rows = chat.run(tmp_path / "none", turns=3)
    assert [row.case[0] for row in rows] == ["u"] * 4 and [row.main for row in rows] == [True, False, False, False]
    main, first, rate, ranks = rows
    assert main.case == "u a reply in turn 3, a small LLM" and main.ratio == pytest.approx(main.theirs / main.ours)
    assert (first.theirs, rate.theirs, ranks.theirs) == (1.5, 12, 50) and all(row.ours > 0 for row in rows)
    assert first.ours == pytest.approx(main.ours / 1e3)


def test_a_difference_is_an_error(small, monkeypatch):
    told = iter(range(100))
    real = chat.one_turn
    monkeypatch.setattr(chat, "one_turn", lambda *given: replace(real(*given), said=[next(told)]))
    with pytest.raises(AssertionError, match="turn 1: "):
        chat.conversation(small, turns=2)
