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

    The factors are those of a user who had the items named (`FoldIn`). In the place of an item's text stands what was
    said, by the linear map that takes the sentence vectors of items' texts to that part of their vectors.

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
            text = [words[-SAID:] for words in said]
            spoken = [n for n, words in enumerate(text) if words.strip()]
            found[:, self.factors :] = 0
            if spoken:
                centre, to_part = self._map
                vectors = self._sentences([text[n] for n in spoken])
                # In double precision a vector is the same, however many are made with it
                found[spoken, self.factors :] = (vectors - centre).astype(np.float64) @ to_part
        return torch.from_numpy(found).to(self.device)

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
    def _map(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) the mean of sentence vectors, and (T, D - F) from what is left of them to the text part."""
        assert self.finder is not None
        having = self.finder.texts.any(1)
        texts = self.finder.texts[having]
        centre = texts.mean(0)
        return centre, np.linalg.lstsq(texts - centre, self.items[having, self.factors :], rcond=None)[0]
