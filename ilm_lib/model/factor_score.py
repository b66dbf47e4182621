"""What a user's factors say of every item, beside what the read-out says.

    score of item i = q(h) . t_i + b_i  +  weight * x . y_i

y_i are the item's factors (iALS, WALS), x those of whoever asks: the least squares of the whole history, in which
recent items count more (`FoldIn.half_life`). The sum is one product of longer vectors, [q, weight * x] and [t_i, y_i],
so whatever ranks by queries and a table ranks by both.

Weight and half-life are chosen on dev and not trained: the factors have seen the items that training asks for, and a
trained weight would trust them for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ilm_lib.model.recent import Factorised, FoldIn


@dataclass
class FactorScore:
    """The factors' own score of every item.

    Attributes:
        fold_in: makes x of a history.
        weight: of x . y beside the logits of the read-out.
    """

    fold_in: FoldIn
    weight: float
    _kept: tuple[Tensor, int, Factorised] | None = field(default=None, init=False, repr=False, compare=False)

    def config(self) -> dict[str, Any]:
        """What `from_config` needs."""
        return {"weight": self.weight, "fold_in": asdict(self.fold_in)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FactorScore:
        return cls(FoldIn(**config["fold_in"]), float(config["weight"]))

    def queries(self, asked: Tensor, items: Tensor, histories: Sequence[Sequence[int]]) -> Tensor:
        """(B, d) queries of the read-out -> (B, d + F), with the users' own behind them.

        Args:
            items: (I, D) vectors of all items, as the model has them.
            histories: of whoever asks, item rows, the oldest first.
        """
        users = self.fold_in.factors_of(self._factorised(items), histories)
        return torch.cat([asked, torch.from_numpy(self.weight * users).to(asked)], 1)

    def table(self, table: Tensor, items: Tensor) -> Tensor:
        """(I, d) rows of the read-out's table -> (I, d + F)."""
        return torch.cat([table, torch.from_numpy(self._factorised(items).table).to(table)], 1)

    def _factorised(self, items: Tensor) -> Factorised:
        """Kept while the items stay; as the tensor is kept as well, no other can lie where it lies."""
        version = 0 if items.is_inference() else items._version
        if self._kept is None or not items.is_set_to(self._kept[0]) or version != self._kept[1]:
            self._kept = items, version, self.fold_in.factorised(items.float().cpu().numpy())
        return self._kept[2]
