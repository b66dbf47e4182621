"""The items that most users have had: what personalisation has to beat."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from ilm_lib.baselines.cf import top_k


def popularity_top_k(train: csr_matrix, k: int, *, exclude: csr_matrix | None = None) -> np.ndarray:
    """(U, k) int64 item rows with the most training users, as `top_k` ranks them."""
    counts = np.asarray((train != 0).sum(axis=0), np.float32).ravel()  # (I,)
    return top_k(np.broadcast_to(counts, train.shape), k, exclude=exclude)
