"""Asking for items that nobody has had: any method that scores items from a history can be held against any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix

from ilm_lib.baselines.cf import top_k
from ilm_lib.data import Dataset
from ilm_lib.data.cold import ColdItems

Candidates = Literal["cold", "all"]


def rank_cold(
    score: Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray],
    data: Dataset,
    cold: ColdItems,
    k: int = 10,
    batch_size: int = 1024,
) -> dict[Candidates, np.ndarray]:
    """The items that a method ranks first for every question, among the cold items alone and among all.

    Both leave out the history. `metrics.ranking_metrics(ranked[...], cold.targets)` has the measures.

    Args:
        score: from (B,) user rows and their B histories, item rows in time order, to (B, I) scores.
        data: the dataset without the cold items.

    Returns:
        (Q, k) item rows by candidates, best first, -1 where no item is left.
    """
    histories = cold.histories(data)
    others = np.setdiff1d(np.arange(data.num_items), cold.items)
    ranked: dict[Candidates, list[np.ndarray]] = {"cold": [], "all": []}
    for start in range(0, len(cold.users), batch_size):
        rows = slice(start, start + batch_size)
        scores = score(cold.users[rows], histories[rows])
        seen = _rows(histories[rows], data.num_items)
        ranked["all"].append(top_k(scores, k, exclude=seen))
        scores = scores.astype(np.float32)  # a copy; cold items are in no history
        scores[:, others] = -np.inf
        ranked["cold"].append(top_k(scores, k))
    return {which: np.concatenate(tops) for which, tops in ranked.items()}


def _rows(items: Sequence[np.ndarray], width: int) -> csr_matrix:
    """(B, width) bool, true for the items of each row."""
    ends = np.concatenate([[0], np.cumsum([len(i) for i in items])])
    return csr_matrix((np.ones(ends[-1], bool), np.concatenate(items), ends), (len(items), width))
