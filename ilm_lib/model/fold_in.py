"""A user's vector from a history and the vectors of items: one step of the factorisation that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FoldIn:
    """How the vector x of a user is found whose items S, n in number, are known, with all items' vectors held fixed.

    x solves (unobserved Y'Y + sum over S of y y' + (ridge + ridge_per_item n) I) x = observed * sum over S of y: the
    least squares of one user, as iALS and WALS solve it in every sweep (Hu, Koren and Volinsky 2008).

    Attributes:
        unobserved: weight of the pairs that are not observed, beside 1 for observed ones.
        observed: what an observed pair pulls with.
        ridge: the penalty on x.
        ridge_per_item: what every item of the history adds to it.
        item_scale, user_scale: by what the factorisation's vectors were divided for the model (`scaled_table`).
    """

    unobserved: float
    observed: float
    ridge: float
    ridge_per_item: float
    item_scale: float
    user_scale: float

    def __call__(self, items: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """(d,) float32 vector of a user.

        Args:
            items: (I, d) vectors of all items, as the model has them.
            history: rows of items; one that comes twice counts once.
        """
        table = items.astype(np.float64) * self.item_scale
        own = table[np.unique(np.asarray(history, dtype=np.int64))]  # (n, d)
        penalty = (self.ridge + self.ridge_per_item * len(own)) * np.eye(table.shape[1])
        x = np.linalg.solve(self.unobserved * table.T @ table + own.T @ own + penalty, self.observed * own.sum(0))
        return (x / self.user_scale).astype(np.float32)
