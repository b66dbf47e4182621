"""What a vector asks for by itself, before anything reads it.

    score of item i = sum_j w_j x_j . y_ij + q(x) . e(y_i)

x_j are the parts of who asks, say factors and a sentence vector, and y_ij the item's part of the same kind, each of
length 1 or zero. The first term finds items that are like it. In the second, q and e are linear maps to a few numbers,
which learn what "something scary" means beside items of that name. The sum is one product of two longer vectors, so
that whatever ranks by queries and a table ranks by this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PACE = 10  # the weights w_j move so many times faster than the maps, whose numbers are many and small


class Likeness(nn.Module):
    """(L, sum of parts) vectors of who asks and (I, sum of parts) of items to queries and rows, (L, R) and (I, R).

    Args:
        parts: (J,) sizes of the parts of a vector, end to end.
        weights: w_j at first; cosines of sentence vectors vary less than those of factors.
        dim: of q and e. R is the sum of the parts and dim.
        dropout: on what enters q, and on what leaves it.
    """

    def __init__(self, parts: Sequence[int], weights: Sequence[float], dim: int = 64, dropout: float = 0.5):
        super().__init__()
        self.parts = list(parts)
        self.weights = nn.Parameter(torch.tensor([*weights], dtype=torch.float32) / PACE)
        self.asks = nn.Linear(sum(parts), dim)
        self.item = nn.Linear(sum(parts), dim, bias=False)
        for layer in (self.asks, self.item):
            nn.init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
        self.dropout = nn.Dropout(dropout)

    def config(self) -> dict[str, Any]:
        """The arguments that make it again; the weights are learned."""
        return {
            "parts": self.parts,
            "weights": [0.0] * len(self.parts),
            "dim": self.item.out_features,
            "dropout": self.dropout.p,
        }

    @property
    def width(self) -> int:
        """R."""
        return self.item.in_features + self.item.out_features

    def queries(self, vectors: Tensor) -> Tensor:
        """(L, sum of parts) -> (L, R)."""
        own, scaled = self._unit(vectors)
        asks = self.dropout(self.asks(self.dropout(scaled)))
        weighted = [PACE * w * part for w, part in zip(self.weights, own)]
        return torch.cat([*weighted, asks], 1)

    def rows(self, vectors: Tensor) -> Tensor:
        """(I, sum of parts) -> (I, R)."""
        own, scaled = self._unit(vectors)
        return torch.cat([*own, self.item(scaled)], 1)

    def _unit(self, vectors: Tensor) -> tuple[list[Tensor], Tensor]:
        """The parts at length 1, those of zeros as they are; and end to end, each scaled to a variance near 1."""
        own = [nn.functional.normalize(part.float(), dim=1) for part in vectors.split(self.parts, 1)]
        return own, torch.cat([part * size**0.5 for part, size in zip(own, self.parts)], 1)
