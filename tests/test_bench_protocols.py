"""The measurement of protocols on small worlds: it says who was asked, and finds what is planted."""

import json

import numpy as np
import pytest

from bench import protocols


@pytest.fixture
def folder(tmp_path):
    """60 users who go round 40 items; the last three of each share a second."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "user_sequence.txt", "w") as items, open(tmp_path / "user_time.txt", "w") as times:
        for u in range(60):
            start, n = rng.integers(40), rng.integers(9, 14)
            items.write(f"u{u} {' '.join(f'i{(start + i) % 40}' for i in range(n))}\n")
            when = np.sort(rng.integers(0, 900, n - 2))
            times.write(f"u{u} {' '.join(map(str, [*when, when[-1], when[-1]]))}\n")
    (tmp_path / "item_text.jsonl").write_text(
        "".join(json.dumps({"id": f"i{i}", "title": f"F{i}"}) + "\n" for i in range(40))
    )
    return tmp_path


def test_both_splits_and_how_many_were_asked(folder, capsys):
    protocols.dates(folder, seeds=2, steps=2)
    out = capsys.readouterr().out
    assert "leave one out 60 dev and 60 test users" in out and "temporal .8 .9" in out
    for name in ("popularity", "iALS", "iALS, history folded in", "SASRec"):
        assert out.count(f": {name}  ") == 4  # two splits, two measures


def test_ties_move_what_is_asked_for(folder, capsys):
    protocols.ties(folder, seeds=2, steps=0)
    out = capsys.readouterr().out
    assert "the last two items tie for 100.0% of 60 users" in out and "SASRec" not in out
    assert 0.4 < float(out.split("test item of ")[1].split("%")[0]) / 100 < 0.9  # two of three, but for chance


def test_texts_that_follow_the_order_find_cold_items(folder, capsys, monkeypatch):
    """Neighbours in the circle read alike, so the nearest text is right where popularity cannot be."""
    angle = 2 * np.pi * np.arange(40) / 40
    circle = lambda data: np.stack([np.cos(angle), np.sin(angle)], 1)[[int(i[1:]) for i in data.items]].astype(
        np.float32
    )
    monkeypatch.setattr(protocols, "text_vectors", circle)
    protocols.cold(folder, seeds=1, steps=None, share=0.3)
    lines = [line for line in capsys.readouterr().out.splitlines() if "HR@10" in line and "among all" in line]
    found = {line.split(",")[0].split()[0]: float(line.split("HR@10")[1].split()[0]) for line in lines}
    assert found["nearest"] > 0.5 and found["popularity"] == 0
