"""The measurement of data at scale, at a thousandth of the scale."""

import numpy as np
import pytest

from bench import data as bench
from ilm_lib.data import load_openp5


def test_synthetic_interactions(tmp_path):
    bench.synthesise(tmp_path, 100_000, users_a_block=300)
    data = load_openp5(tmp_path)
    lengths = np.diff(data.offsets)
    assert (data.num_users, data.num_interactions) == (1000, 100_000)
    assert lengths.min() >= 4 and 40 < lengths.std() < 100
    counts = np.sort(np.bincount(data.sequences))[::-1]
    # Zipf: item r has a share of ln(1 + 1/r) / ln(200,000)
    np.testing.assert_allclose(counts[:3] / 1e5, np.log([2, 1.5, 4 / 3]) / np.log(bench.ITEMS), rtol=0.05)


@pytest.mark.slow
def test_rows(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    time, memory = bench.run(interactions=100_000)
    assert "h is left out" in capfd.readouterr().out
    assert (time.case, time.unit, time.target) == ("i 0.1 M interactions: load and first batch", "s", 1)
    assert time.main and not memory.main and 0 < time.ours < 60 and 100 < memory.ours < 2048


def test_first_batch(tmp_path):
    bench.synthesise(tmp_path, 20_000)
    batch = bench.first_batch(tmp_path, tmp_path / "cache")
    assert sum(batch.segment.amax(1).tolist()) == 32 and (batch.labels != -100).any(1).all()
    assert len(batch.slot_row) >= 32  # each prompt holds its user, at least
