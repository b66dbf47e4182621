"""Users, items and their interactions as arrays, in memory or mapped from a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix

from ilm_lib.data.splits import Places, Split, leave_one_out

TEXT_FIELDS = ("title", "genres", "brand", "categories", "overview", "description", "tags")
ARRAYS = ("sequences", "offsets", "user_index", "item_index")
HELD_OUT = "held_out.npy"  # (3, U), there unless one is left out


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and their time-ordered interactions. E interactions, U users, I items.

    Everything refers to users and items by row, the position in `users` and `items`.
    """

    name: str
    users: list[str]  # raw ids in file order
    items: list[str]  # raw ids by rising index number
    sequences: np.ndarray  # (E,) int32 item rows in time order, users concatenated
    offsets: np.ndarray  # (U + 1,) int64 where each user starts in `sequences`
    user_index: np.ndarray  # (U,) int64 the n of user_<n>
    item_index: np.ndarray  # (I,) int64 the n of item_<n>
    texts: list[dict]  # (I,) text records, {} where there is none
    notes: dict[str, int]  # what was counted or dropped on loading
    checksums: dict[str, str]  # file name -> sha256 of its bytes
    held_out: Places | None = None  # where training ends and targets stand; None: leave one out

    @classmethod
    def open(cls, folder: Path) -> Dataset:
        """What `save` wrote. The arrays are mapped: only what is read of them comes into memory.

        Raises FileNotFoundError where the folder holds no dataset.
        """
        with open(folder / "texts.jsonl", encoding="utf-8") as file:
            texts = [json.loads(line) for line in file]
        # Copy on write: PyTorch warns of arrays that cannot be written to, and the files stay as they are.
        arrays: dict[str, Any] = {a: np.asarray(np.load(folder / f"{a}.npy", mmap_mode="c")) for a in ARRAYS}
        held_out = Places(*np.load(path)) if (path := folder / HELD_OUT).is_file() else None
        rest = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        return cls(**rest, texts=texts, held_out=held_out, **arrays)

    def save(self, folder: Path) -> None:
        """Write the dataset to a folder, made where it is missing, for `open`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in ARRAYS:
            path = folder / f"{name}.npy"
            path.unlink(missing_ok=True)  # a file that someone has mapped must not be cut short
            np.save(path, getattr(self, name))
        (folder / HELD_OUT).unlink(missing_ok=True)
        if (p := self.held_out) is not None:
            np.save(folder / HELD_OUT, np.stack([p.train, p.dev, p.test]))
        with open(folder / "texts.jsonl", "w", encoding="utf-8") as file:
            file.writelines(f"{json.dumps(text)}\n" for text in self.texts)
        rest = {name: getattr(self, name) for name in ("name", "users", "items", "notes", "checksums")}
        (folder / "dataset.json").write_text(json.dumps(rest), encoding="utf-8")

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_interactions(self) -> int:
        return len(self.sequences)

    @cached_property
    def places(self) -> Places:
        """Where training ends and where the targets stand, of every user."""
        return leave_one_out(np.diff(self.offsets)) if self.held_out is None else self.held_out

    @property
    def num_train_examples(self) -> int:
        """E - 3U where one is left out. Times 2 tasks and 10 templates this is the number of training
        examples of Table 2 (Beauty 2,628,260, ML1M 19,629,820, Clothing 3,210,320)."""
        return int(self._first_example[-1])

    def train_example(self, index: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """User row and target position, both (n,) int64, of (n,) indices into the training examples.

        They are the positions of each training part in turn but for the first, which has no
        history (1 .. len - 3 where one is left out). Raises IndexError for an index out of range.
        """
        index = np.asarray(index)
        if ((index < 0) | (index >= self.num_train_examples)).any():
            raise IndexError(f"training examples are counted from 0 to {self.num_train_examples - 1}")
        user = np.searchsorted(self._first_example, index, side="right") - 1
        return user, index - self._first_example[user] + 1

    def sequence(self, u: int) -> np.ndarray:
        """(n,) item rows of user row u in time order, targets included."""
        return self.sequences[self.offsets[u] : self.offsets[u + 1]]

    def train_sequence(self, u: int) -> np.ndarray:
        """Item rows of user row u that are for training; (n - 2,) where one is left out."""
        return self.sequence(u)[: self.places.train[u]]

    def history(self, u: int, split: Split) -> np.ndarray:
        """Item rows before the target of the split; (n - 2,) for dev, (n - 1,) for test where one is left out.

        Raises ValueError for a user without a target.
        """
        if (end := self.places.of(split)[u]) < 0:
            raise ValueError(f"{self.name}: user row {u} has no {split} target; ask users_of({split!r}) alone")
        return self.sequence(u)[:end]

    def users_of(self, split: Split) -> np.ndarray:
        """(U',) rows of the users that have a target in the split: everybody where one is left out."""
        return np.flatnonzero(self.places.of(split) >= 0)

    def dev_targets(self) -> np.ndarray:
        """(U,) item row of each user's dev target (the last item but one where one is left out), -1 without one."""
        return self._targets("dev")

    def test_targets(self) -> np.ndarray:
        """(U,) item row of each user's test target (the last item where one is left out), -1 without one."""
        return self._targets("test")

    def train_matrix(self, users: np.ndarray | None = None) -> csr_matrix:
        """(U, I) float32, 1 where the user has the item in the training part.

        With `users`, (U',) user rows, it has their U' rows only, in the order given.
        """
        return self._matrix(self.places.train, np.float32, np.arange(self.num_users) if users is None else users)

    def item_counts(self) -> np.ndarray:
        """(I,) int64 how many users have each item in the training part."""
        return np.bincount(self.train_matrix().indices, minlength=self.num_items)

    def seen_matrix(self, split: Split) -> csr_matrix:
        """(U, I) bool, true for the items of `history(u, split)`; none for a user without a target."""
        return self._matrix(np.maximum(self.places.of(split), 0), bool, np.arange(self.num_users))

    def item_pairs(self) -> np.ndarray:
        """(P, 2) int32 distinct ordered pairs (earlier, later) of training neighbours.

        Ordered, because only that reading gives the count behind Table 2 (Beauty 114,582;
        without order it would be 111,649).
        """
        train, lengths = self.places.train, np.diff(self.offsets)
        first = np.minimum(train, 1)  # of the user's training part, which follows nothing
        parts = np.stack([first, train - first, lengths - train], axis=1)
        later = np.repeat(np.tile([False, True, False], self.num_users), parts.ravel())  # (E,)
        pairs = self.sequences[:-1][later[1:]] * np.int64(self.num_items) + self.sequences[1:][later[1:]]
        return np.stack(np.divmod(np.unique(pairs), self.num_items), axis=1).astype(np.int32)

    def user_item_pairs(self) -> np.ndarray:
        """(P, 2) int32 distinct (user row, item row) of the training part (Beauty 153,776)."""
        matrix = self.train_matrix().tocoo()
        return np.stack([matrix.row, matrix.col], axis=1).astype(np.int32, copy=False)

    def item_text(self, i: int, max_words: int | None = None) -> str:
        """One text for item row i: title, genres / brand / categories, overview / tags.

        Fields that are absent are left out; the text is "" when none is there. `max_words`
        cuts after that many words (split at blanks).
        """
        fields = (self.texts[i].get(field) for field in TEXT_FIELDS)
        parts = (", ".join(map(str, f)) if isinstance(f, list) else str(f) for f in fields if f)
        text = " ".join(p if p.endswith((".", "!", "?")) else f"{p}." for p in parts)
        return " ".join(text.split()[:max_words])

    @cached_property
    def _first_example(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(np.maximum(self.places.train - 1, 0))])  # (U + 1,)

    def _targets(self, split: Split) -> np.ndarray:
        at, targets = self.places.of(split), np.full(self.num_users, -1, self.sequences.dtype)
        has = at >= 0
        targets[has] = self.sequences[(self.offsets[:-1] + at)[has]]
        return targets

    def _matrix(self, lengths: np.ndarray, dtype: type, users: np.ndarray) -> csr_matrix:
        """The first `lengths` (U,) items of each of `users`."""
        starts, ends = self.offsets[users], self.offsets[users] + lengths[users]
        items = np.concatenate([self.sequences[start:end] for start, end in zip(starts, ends)])
        rows = np.concatenate([[0], np.cumsum(ends - starts)])
        matrix = csr_matrix((np.ones(len(items), dtype), items, rows), (len(users), self.num_items))
        matrix.sum_duplicates()  # an item that a user has twice
        matrix.data[:] = 1
        return matrix
