"""The vector of somebody in a conversation: made of the items that were named, and of what was said."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ilm_lib.model.dialogue import AskedPrompt
    from ilm_lib.model.finder import Finder
    from ilm_lib.model.fold_in import Factorised, FoldIn

SAID = 600  # characters of what was said that a sentence vector is made of, the last ones
KEPT = 1 << 15  # texts whose sentence vectors are kept, 48 MiB of MiniLM's


class Seekers:
    """Vectors of those who ask, like those of items: factors, then a text's part.

    The factors are those of a user who had the items named (`FoldIn`). In the place of an item's text stands the sum of
    two directions: of what was said, by the linear map that takes the sentence vectors of items' texts to that part of
    their vectors, and of the texts of the items named. On ReDial's valid both find more than what was said alone (R@10
    .155 and .130, without an LLM, two folds); the user's own words as a third find no more (.147).

    Args:
        items: (I, D) vectors of all items, as the model has them.
        fold_in: None: nothing is made of the items named.
        finder: whose sentence vectors are those of the text part. None: nothing is made of what was said.
    """

    def __init__(self, items: Tensor, fold_in: FoldIn | None, finder: Finder | None):
        self.items, self.fold_in, self.finder = items.float().cpu().numpy(), fold_in, finder
        self.factors = int(fold_in.factors if fold_in is not None else 0) or items.shape[1]
        self.device = items.device
        self._read: dict[str, np.ndarray] = {}

    def of_places(self, asked: Sequence[AskedPrompt]) -> Tensor:
        """(A, D) of those who ask at all places of dialogues, in order."""
        return self.vectors([rows for one in asked for rows in one.named], [said for one in asked for said in one.said])

    def vectors(self, named: Sequence[Sequence[int]], said: Sequence[str]) -> Tensor:
        """(A, D) of each who asks, zero where nothing was named and nothing said.

        Args:
            named: rows of the items named, the oldest first.
            said: in words.
        """
        found = np.zeros((len(named), self.items.shape[1]), np.float32)
        if self.fold_in is not None:
            found = self.fold_in.many(self.items, named, self._factorised)
        if self.finder is not None and self.factors < self.items.shape[1]:
            texts, length = self._texts
            of_named = np.zeros((len(named), texts.shape[1]))
            for own, rows in zip(of_named, named):
                own += texts[list(rows)].sum(0)
            found[:, self.factors :] = length * _unit(_unit(self._spoken(said)) + _unit(of_named))
        return torch.from_numpy(found).to(self.device)

    def _spoken(self, texts: Sequence[str]) -> np.ndarray:
        """(A, D - F) where items' texts would lie that say this, their mean left out; zero where nothing is said."""
        (centre, to_part), texts = self._map, [words[-SAID:] for words in texts]
        spoken = [n for n, words in enumerate(texts) if words.strip()]
        found = np.zeros((len(texts), to_part.shape[1]))  # in double precision: the same, whoever stands beside
        if spoken:
            found[spoken] = (self._sentences([texts[n] for n in spoken]) - centre).astype(np.float64) @ to_part
        return found

    def _sentences(self, texts: Sequence[str]) -> np.ndarray:
        """(n, T) sentence vectors. What was read stays: in training a dialogue comes again every epoch."""
        assert self.finder is not None
        new = [text for text in dict.fromkeys(texts) if text not in self._read]
        if len(self._read) + len(new) > KEPT:
            self._read = {text: self._read[text] for text in texts if text in self._read}
        self._read.update(zip(new, self.finder.encode(new)) if new else ())
        return np.stack([self._read[text] for text in texts])

    @cached_property
    def _factorised(self) -> Factorised:
        assert self.fold_in is not None
        return self.fold_in.factorised(self.items)

    @cached_property
    def _texts(self) -> tuple[np.ndarray, float]:
        """(I, D - F) the directions of the items' text parts, and how long these are on average."""
        parts = self.items[:, self.factors :].astype(np.float64)
        lengths = np.linalg.norm(parts, axis=1)
        return _unit(parts), float(lengths[lengths > 0].mean())

    @cached_property
    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) the mean of sentence vectors, and (T, D - F) from what is left of them to the text part."""
        assert self.finder is not None
        having = self.finder.texts.any(1)
        texts = self.finder.texts[having]
        centre = texts.mean(0)
        return centre, np.linalg.lstsq(texts - centre, self.items[having, self.factors :], rcond=None)[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; those of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
