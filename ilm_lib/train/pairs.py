"""What phase 1 learns from: item-text, item-item and user-item pairs, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ilm_lib import processes

TEXT_KINDS = {"text": 1, "texts of two": 2}  # kinds of item-text batches, by the items that a text is about


@dataclass(frozen=True)
class Pairs:
    """The three kinds of pairs of Table 2. Entities are items 0..I-1, then users I..I+U-1.

    Attributes:
        texts: (P,) the text of each item-text pair.
        entity: (P,) the entity it describes; (P, 2) where some texts are about two entities, the second -1 for those
            that are about one.
        ii: (M, 2) items that are consecutive in a history.
        ui: (M, 2) a user and an item of theirs.
    """

    texts: Sequence[str]
    entity: np.ndarray
    ii: np.ndarray
    ui: np.ndarray

    def about(self, count: int) -> np.ndarray:
        """Rows of the texts that are about one entity, or about two."""
        if self.entity.ndim == 1:
            return np.arange(len(self.entity)) if count == 1 else np.empty(0, dtype=np.int64)
        return np.flatnonzero((self.entity >= 0).sum(1) == count)

    def split(self, holdout: float, seed: int) -> tuple[Pairs, Pairs]:
        """Keep `holdout` of every kind out of training (Table 2 counts the other 90%)."""
        rng = np.random.default_rng(seed)

        def cut(n: int) -> tuple[np.ndarray, np.ndarray]:
            order = rng.permutation(n)
            held = round(holdout * n)
            return np.sort(order[held:]), np.sort(order[:held])

        # Entities, not rows, are split: a held-out item has no text in training at all, and a text about one of
        # each kind is in neither part.
        entities = np.unique(self.entity[self.entity >= 0])
        train_e, held_e = (entities[i] for i in cut(len(entities)))
        (ii, ii_held), (ui, ui_held) = cut(len(self.ii)), cut(len(self.ui))

        def part(keep: np.ndarray, i: np.ndarray, u: np.ndarray) -> Pairs:
            within = np.isin(self.entity, keep) | (self.entity < 0)
            rows = np.flatnonzero(within if within.ndim == 1 else within.all(1))
            return Pairs([self.texts[r] for r in rows], self.entity[rows], self.ii[i], self.ui[u])

        return part(train_e, ii, ui), part(held_e, ii_held, ui_held)


@dataclass(frozen=True)
class Batches:
    """Draws batches of pairs as tensors, each of one kind: "text", "texts of two", "ii" or "ui".

    Attributes:
        pairs: what is drawn from.
        ids: (P, L) the texts of `pairs`, of `TextCodec.encode`.
        cf: (I + U, d) embeddings of all entities.
        pad: id of padding.
    """

    pairs: Pairs
    ids: Tensor
    cf: Tensor
    pad: int

    def text(self, rows: np.ndarray) -> dict[str, Any]:
        """Item-text pairs, all about one item or all about two.

        "entity" (B,) tells who or which two it is. "targets" are the flat positions in ids[:, 1:], of this process' own
        rows, of the tokens that it generates, and "share" is `processes.share` of them.
        """
        ids = self.ids[torch.from_numpy(rows)]
        ids = ids[:, : int((ids != self.pad).sum(1).max())]
        entity = self.pairs.entity[rows]
        if entity.ndim == 2 and (entity[:, 1] < 0).all():
            entity = entity[:, 0]
        cf = self.cf[torch.from_numpy(entity)]
        if entity.ndim == 2:
            entity = np.unique(np.sort(entity, 1), axis=0, return_inverse=True)[1].ravel()
        real = ids[:, 1:] != self.pad
        mine = real[processes.own(range(len(ids)))]
        targets = mine.flatten().nonzero()[:, 0]  # counted on the host: a device would wait
        share = processes.share(len(targets), int(real.sum()))
        return {"cf": cf, "ids": ids, "entity": torch.from_numpy(entity), "targets": targets, "share": share}

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of the texts of each kind."""
        return {kind: self.pairs.about(count) for kind, count in TEXT_KINDS.items()}

    def one_text_an_entity(self) -> np.ndarray:
        """The row of a text about each entity, among those about one."""
        rows = self.rows["text"]
        if not len(rows):
            return rows
        entity = self.pairs.entity.reshape(len(self.pairs.texts), -1)[rows, 0]
        return rows[np.unique(entity, return_index=True)[1]]

    def interaction(self, kind: str, rows: np.ndarray) -> dict[str, Any]:
        a, b = torch.from_numpy(getattr(self.pairs, kind)[rows].astype(np.int64)).T
        return {"cf_a": self.cf[a], "cf_b": self.cf[b], "ids_a": a, "ids_b": b, "kind": kind}

    def draw(self, kind: str, rng: np.random.Generator, size: int) -> dict[str, Any]:
        texts = self.rows.get(kind)
        count = len(getattr(self.pairs, kind) if texts is None else texts)
        if count < 4 * size:
            rows = rng.choice(count, size=min(size, count), replace=False)
        else:  # a repetition is rare, and the whole range need not be laid out
            rows = rng.integers(count, size=size)
        return self.interaction(kind, rows) if texts is None else self.text(texts[rows])
