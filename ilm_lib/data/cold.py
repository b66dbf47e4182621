"""Cold items: a share of the catalogue is withheld from all interactions, and asked for by its texts alone.

The catalogue keeps all items, so rows stay what they are. Cold items leave every sequence, be it for training, as
history or as a target: nothing that is made from interactions can know them. What a user did after a cold item may be
trained on, as the future of others is where one is left out; the item itself is in nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ilm_lib.data.dataset import Dataset
from ilm_lib.data.enough import TooSmall
from ilm_lib.data.splits import MIN_ITEMS, Places
from ilm_lib.errors import Refusal

COLD_SEED = 0  # of the draw, whatever the run's seed: all methods and seeds are asked for the same items


class ColdLeak(Refusal, ValueError):
    """Something that is trained on holds an item that was withheld."""


@dataclass(frozen=True, eq=False)
class ColdItems:
    """What was withheld, and one question for each user who had some of it: the last cold item after a warm one.

    The history of question q is `dataset.sequence(users[q])[: lengths[q]]` of the dataset without the cold items: all
    that the user had before, but for other cold items.
    """

    items: np.ndarray  # (C,) item rows, rising
    users: np.ndarray  # (Q,) user rows, rising
    lengths: np.ndarray  # (Q,) items of the history, 1 or more
    targets: np.ndarray  # (Q,) item rows, each one of `items`

    @classmethod
    def open(cls, path: Path) -> ColdItems:
        """What `save` wrote."""
        with np.load(path) as saved:
            return cls(**saved)

    def save(self, path: Path) -> None:
        """Write an .npz file."""
        np.savez_compressed(path, **vars(self))

    def histories(self, dataset: Dataset) -> list[np.ndarray]:
        """(Q,) item rows in time order, of the dataset without the cold items."""
        return [dataset.sequence(u)[:n] for u, n in zip(self.users, self.lengths)]

    def refuse_in(self, **rows: np.ndarray) -> None:
        """Hold what is trained on against what was withheld.

        Args:
            rows: item rows by what they are of, e.g. `item_pairs=dataset.item_pairs()`.

        Raises:
            ColdLeak: one of them holds a cold item.
        """
        for name, held in rows.items():
            if len(found := np.intersect1d(held, self.items)):
                raise ColdLeak(
                    f"{name} hold {len(found):,} of the {len(self.items):,} items that data.cold_items withholds, "
                    f"first row {found[0]}; train on the dataset of `withhold` alone, or leave out data.cold_items"
                )


def withhold(dataset: Dataset, share: float, seed: int = COLD_SEED) -> tuple[Dataset, ColdItems]:
    """The dataset without the interactions of some items, and the questions that ask for them.

    Users keep their rows. Where one is left out, the last two of the warm items are; a user with fewer than three of
    them trains with all and is asked for none. Where a date splits, a user whose target is cold has no other one.

    `notes` gains the counts of cold items, of their interactions and questions, and of users with too few warm items.

    Args:
        share: of all items, drawn by `seed` among those that have a text.

    Raises:
        TooSmall: no item is drawn, or none is left.
    """
    with_text = np.flatnonzero([bool(dataset.item_text(i)) for i in range(dataset.num_items)])
    count = min(round(share * dataset.num_items), len(with_text))
    if not 0 < count < dataset.num_items:
        raise TooSmall(
            f"{dataset.name}: data.cold_items {share:g} of {dataset.num_items:,} items, {len(with_text):,} with text, "
            f"withholds {count:,}; it takes one at least, and leaves one. Choose another share or add texts"
        )
    items = np.sort(np.random.default_rng(seed).choice(with_text, count, replace=False))
    is_cold = np.isin(dataset.sequences, items)  # (E,)
    before = np.concatenate([[0], np.cumsum(~is_cold)])  # (E + 1,) warm interactions before each
    offsets = before[dataset.offsets]
    warm = replace(
        dataset,
        sequences=dataset.sequences[~is_cold],
        offsets=offsets,
        held_out=None if dataset.held_out is None else _moved(dataset.held_out, dataset.offsets, is_cold, before),
    )
    cold = _questions(dataset, items, is_cold, before)
    notes = {
        "cold_items": count,
        "cold_interactions": int(is_cold.sum()),
        "cold_questions": len(cold.users),
        "users_with_too_few_warm_items": int((np.diff(offsets) < MIN_ITEMS).sum()),
    }
    return replace(warm, notes=dataset.notes | notes), cold


def _questions(dataset: Dataset, items: np.ndarray, is_cold: np.ndarray, before: np.ndarray) -> ColdItems:
    at = np.flatnonzero(is_cold)
    user = np.searchsorted(dataset.offsets, at, side="right") - 1
    last = np.flatnonzero(
        np.diff(user, append=-1)
    )  # of each user's cold items; if one has a warm item before it, it has
    at, user = at[last], user[last]
    lengths = before[at] - before[dataset.offsets[user]]
    asked = lengths > 0
    return ColdItems(items, user[asked], lengths[asked], dataset.sequences[at[asked]])


def _moved(places: Places, offsets: np.ndarray, is_cold: np.ndarray, before: np.ndarray) -> Places:
    """Places of a date's split in the sequences without cold items."""
    starts = offsets[:-1]

    def target(at: np.ndarray) -> np.ndarray:
        where = starts + np.maximum(at, 0)
        moved = before[where] - before[starts]
        kept = (at >= 0) & ~np.append(is_cold, True)[where] & (moved > 0)  # a target needs a history
        return np.where(kept, moved, -1)

    return Places(before[starts + places.train] - before[starts], target(places.dev), target(places.test))
