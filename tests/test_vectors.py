"""Item vectors put end to end, and the whitened parts of text vectors."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from ilm_lib.baselines.cf import CFEmbeddings
from ilm_lib.baselines.vectors import fuse, parts_of, principal_parts


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8)).astype(np.float32) * [9, 3, 3, 2, 1, 1, 1, 1] + 5  # texts have much in common
    vectors[[3, 7]] = 0  # items without a text
    return vectors.astype(np.float32)


def test_the_parts_do_not_correlate_and_span_the_widest_directions(table):
    some = table.any(1)
    parts = principal_parts(table, 3)
    assert parts.shape == (50, 3) and parts.dtype == np.float32 and not parts[~some].any()
    np.testing.assert_allclose(parts[some].T @ parts[some] / 48, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(parts[some].mean(0), 0, atol=1e-5)
    values, directions = np.linalg.eigh(np.cov(table[some].T))
    theirs = (table[some] - table[some].mean(0)) @ directions[:, :-4:-1] / values[:-4:-1] ** 0.5
    np.testing.assert_allclose(np.abs(np.corrcoef(parts[some].T, theirs.T)[:3, 3:]), np.eye(3), atol=1e-3)


@pytest.mark.parametrize("items, dim, found", [(50, 3, 3), (50, 64, 8), (6, 64, 4)])
def test_there_are_no_more_parts_than_numbers_and_texts(table, items, dim, found):
    assert parts_of(table[:items], dim) == found == principal_parts(table[:items], dim).shape[1]


def test_every_part_of_a_fused_vector_counts_alike_and_a_user_has_the_mean_of_the_history():
    rng = np.random.default_rng(0)
    cf = CFEmbeddings(rng.normal(size=(4, 2)) * 100, rng.normal(size=(5, 2)) * 0.01)
    text = rng.normal(size=(5, 3)) * 7
    train = csr_matrix(np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1]]))
    fused = fuse(cf, [text], train)
    for part in (fused.item[:, :2], fused.item[:, 2:], fused.user[:, :2]):
        assert np.sqrt(np.mean(part**2)) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(fused.user[0, 2:], fused.item[:2, 2:].mean(0), rtol=1e-5)
    np.testing.assert_allclose(fused.user[1, 2:], fused.item[3, 2:], rtol=1e-5)
    assert not fused.user[2, 2:].any()
    assert fuse(None, [text], train).item.shape == (5, 3)
