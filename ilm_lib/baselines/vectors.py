"""Item vectors of several kinds end to end: who had what, what a sequential recommender learned, what a text says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, diags

from ilm_lib.baselines.cf import CFEmbeddings, rms


def centred(table: np.ndarray) -> np.ndarray:
    """(I, D) vectors less their mean; rows of zeros stay so."""
    some = table.any(1, keepdims=True)
    return np.where(some, table - table[some[:, 0]].mean(0), 0).astype(np.float32)


def principal_parts(table: np.ndarray, dim: int) -> np.ndarray:
    """(I, D) vectors to (I, dim) numbers that do not correlate, each with a variance of 1; rows of zeros stay so.

    The first principal components, whitened: sentence encoders give all texts much in common, and what tells like items
    apart is in the directions that vary little (UniSRec learns its whitening, Hou et al., arXiv 2206.05941).

    Args:
        dim: as many, if there are: see `parts_of`.
    """
    some = table.any(1)
    own = table[some] - table[some].mean(0)
    found = np.zeros((len(table), parts_of(table, dim)), np.float32)
    found[some] = np.linalg.svd(own, full_matrices=False)[0][:, : found.shape[1]] * len(own) ** 0.5
    return found


def parts_of(table: np.ndarray, dim: int) -> int:
    """How many principal parts (I, D) vectors have, `dim` at most."""
    return min(dim, int(table.any(1).sum()) - 1, table.shape[1])  # centred, they span a dimension less


def fuse(cf: CFEmbeddings | None, others: Sequence[np.ndarray], train: csr_matrix) -> CFEmbeddings:
    """One vector an item and a user, each part scaled to an RMS of 1 so that none drowns another.

    Of the parts that have items alone, as texts do, a user has the mean over the items of the training part.

    Args:
        cf: factors, which come first; None leaves them out.
        others: (I, d_k) each.
        train: (U, I) interactions.
    """
    share = diags(1 / np.maximum(1, np.diff(train.indptr))) @ train  # (U, I), rows that sum to 1
    item, user = [], []
    if cf is not None:
        item, user = [cf.item / rms(cf.item)], [cf.user / rms(cf.user)]
    for part in others:
        part = part / rms(part)
        item.append(part)
        user.append(share @ part)
    return CFEmbeddings(np.concatenate(user, 1), np.concatenate(item, 1))
