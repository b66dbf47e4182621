"""The vector of a user from a history, beside items that are already factorised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Factorised(NamedTuple):
    """Items as they were factorised, turned to the axes on which what all users have in common is diagonal.

    Attributes:
        table: (I, F) float64 Y Q; products x . y are those of Y.
        values: (F,) of G = unobserved Y'Y + ridge I = Q diag(values) Q'.
        axes: (F, F) Q.
    """

    table: np.ndarray
    values: np.ndarray
    axes: np.ndarray


@dataclass(frozen=True)
class FoldIn:
    """How the vector x of a user is found whose items S, n in number, are known, with all items' vectors held fixed.

    x solves (unobserved Y'Y + sum over S of y y' + (ridge + ridge_per_item n) I) x = observed * sum over S of y: the
    least squares of one user, as iALS and WALS solve it in every sweep (Hu, Koren and Volinsky 2008). A user whose
    items are those before a target has a vector that has not seen it.

    With a half-life each item of S counts by its age, w = 2^(-age / half_life), in both sums and in n: the vector is
    then of what the user does now.

    Attributes:
        unobserved: weight of the pairs that are not observed, beside 1 for observed ones.
        observed: what an observed pair pulls with.
        ridge: the penalty on x.
        ridge_per_item: what every item of the history adds to it.
        item_scale, user_scale: by what the factorisation's vectors were divided for the model (`scaled_table`).
        factors: how many of a vector's numbers are factors, the first ones; of the others, as of a text, a user has the
            mean over the history. 0: all are.
        mean_scale: by what such a mean is divided.
        half_life: how many items later one counts half; 0: all count alike.
    """

    unobserved: float
    observed: float
    ridge: float
    ridge_per_item: float
    item_scale: float
    user_scale: float
    factors: int = 0
    mean_scale: float = 1.0
    half_life: float = 0.0

    def __call__(self, items: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """(d,) float32 vector of a user; arguments as of `many`."""
        return self.many(items, [history])[0]

    def many(
        self, items: np.ndarray, histories: Sequence[Sequence[int]], items_of: Factorised | None = None
    ) -> np.ndarray:
        """(n, d) float32 vectors of users; zeros where nothing is known.

        Args:
            items: (I, d) vectors of all items, as the model has them.
            histories: rows of items, the oldest first, of each user; one that comes twice counts once, as the later.
            items_of: what `factorised` makes of the items; None: it is made now.
        """
        items_of = items_of or self.factorised(items)
        width, found = len(items_of.values), np.zeros((len(histories), items.shape[1]), np.float32)
        found[:, :width] = self.factors_of(items_of, histories) @ items_of.axes.T / self.user_scale
        for vector, history in zip(found, histories):
            rows, weight = self._weighted(history)
            if len(rows):
                vector[width:] = weight @ items[rows, width:] / (weight.sum() * self.mean_scale)
        return found

    def factorised(self, items: np.ndarray) -> Factorised:
        """Of (I, d) vectors of all items, as the model has them."""
        width = int(self.factors) or items.shape[1]
        table = items[:, :width].astype(np.float64) * self.item_scale
        values, axes = np.linalg.eigh(self.unobserved * table.T @ table + self.ridge * np.eye(width))
        return Factorised(table @ axes, np.maximum(values, self.ridge), axes)  # no smaller, but for rounding

    def factors_of(self, items: Factorised, histories: Sequence[Sequence[int]]) -> np.ndarray:
        """(n, F) float64 x of users along the same axes: x . y says how much a user wants an item.

        Args:
            histories: as in `many`.
        """
        found = np.zeros((len(histories), len(items.values)))
        for vector, history in zip(found, histories):
            rows, weight = self._weighted(history)
            if not len(rows):
                continue
            right = np.sqrt(weight)
            own = right[:, None] * items.table[rows]  # (n, F)
            penalty = items.values + self.ridge_per_item * weight.sum()  # (F,), all that is there without `own`
            if len(own) < len(penalty):  # (D + A'A)^-1 A'b = D^-1 A' (I + A D^-1 A')^-1 b, n equations in place of F
                small = own / penalty
                vector[:] = np.linalg.solve(np.eye(len(own)) + small @ own.T, self.observed * right) @ small
            else:
                vector[:] = np.linalg.solve(np.diag(penalty) + own.T @ own, self.observed * right @ own)
        return found

    def _weighted(self, history: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) distinct items and their weights."""
        rows, age = np.unique(np.asarray(history, dtype=np.int64)[::-1], return_index=True)  # where each came last
        return rows, 0.5 ** (age / self.half_life) if self.half_life else np.ones(len(rows))
