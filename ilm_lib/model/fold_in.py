"""The vector of a user from a history, beside items that are already factorised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class FoldIn:
    """How the vector x of a user is found whose items S, n in number, are known, with all items' vectors held fixed.

    x solves (unobserved Y'Y + sum over S of y y' + (ridge + ridge_per_item n) I) x = observed * sum over S of y: the
    least squares of one user, as iALS and WALS solve it in every sweep (Hu, Koren and Volinsky 2008). A user whose
    items are those before a target has a vector that has not seen it.

    Attributes:
        unobserved: weight of the pairs that are not observed, beside 1 for observed ones.
        observed: what an observed pair pulls with.
        ridge: the penalty on x.
        ridge_per_item: what every item of the history adds to it.
        item_scale, user_scale: by what the factorisation's vectors were divided for the model (`scaled_table`).
        factors: how many of a vector's numbers are factors, the first ones; of the others, as of a text, a user has the
            mean over the history. 0: all are.
        mean_scale: by what such a mean is divided.
    """

    unobserved: float
    observed: float
    ridge: float
    ridge_per_item: float
    item_scale: float
    user_scale: float
    factors: int = 0
    mean_scale: float = 1.0

    def __call__(self, items: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """(d,) float32 vector of a user; arguments as of `many`."""
        return self.many(items, [history])[0]

    def many(self, items: np.ndarray, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """(n, d) float32 vectors of users; zeros where nothing is known.

        Args:
            items: (I, d) vectors of all items, as the model has them.
            histories: rows of items, of each user; one that comes twice counts once.
        """
        width = int(self.factors) or items.shape[1]
        table = items[:, :width].astype(np.float64) * self.item_scale
        common = self.unobserved * table.T @ table + self.ridge * np.eye(width)
        found = np.zeros((len(histories), items.shape[1]), np.float32)
        for vector, history in zip(found, histories):
            if not len(rows := np.unique(np.asarray(history, dtype=np.int64))):
                continue
            own = table[rows]  # (n, width)
            system = common + own.T @ own + self.ridge_per_item * len(own) * np.eye(width)
            vector[:width] = np.linalg.solve(system, self.observed * own.sum(0)) / self.user_scale
            vector[width:] = items[rows, width:].mean(0) / self.mean_scale
        return found
