"""What a model knows of its data besides embeddings: the names of items and users, and the prompts of `recommend`."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Item, User

MAX_COMPARED = 100_000  # names that close matches are sought among in a second or two


@dataclass(frozen=True)
class Catalogue:
    """Looks up items by title or original id and users by original id, and back.

    Attributes:
        indexing: names of items and users in text, `item_1234`.
        item_ids, user_ids: (I,) and (U,) the ids of the data that the model was made from.
        titles: (I,) for display; the id where an item has no title.
        sequential, straightforward, target: the templates `recommend` uses.

    Example:
        >>> catalogue.item("Toy Story"), catalogue.user("alice")
        (Item(row=17), User(row=5))
        >>> catalogue.title(Item(17)), catalogue.id(Item(17)), catalogue.id(User(5))
        ('Toy Story (1995)', 'tt0114709', 'alice')
    """

    indexing: Indexing
    item_ids: Sequence[str]
    user_ids: Sequence[str]
    titles: Sequence[str]
    sequential: str
    straightforward: str
    target: str

    def item(self, name: str) -> Item:
        """The item of an original id or a title.

        An id wins over a title that reads the same. A title may be given as it is or, where that leaves one item,
        without its year and in any case: "toy story" finds "Toy Story (1995)".

        Raises:
            LookupError: no item has the name, or several have; the message names some that come close.
        """
        _check(name, "item")
        if (row := self._item_rows.get(name)) is not None:
            return Item(row)
        rows = self._title_rows.get(name) or self._plain_rows.get(_plain(name), [])
        if len(rows) == 1:
            return Item(rows[0])
        if rows:
            found = ", ".join(f"{self.titles[r]!r} (id {self.item_ids[r]!r})" for r in rows[:5])
            more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
            raise LookupError(f"{len(rows)} items are called {name!r}: {found}{more}. Give the id of one")
        raise LookupError(f"no item has the title or id {name!r}.{self._close_items(name)}")

    def user(self, name: str) -> User:
        """The user of an original id; LookupError, with close ones, where nobody has it."""
        _check(name, "user")
        if (row := self._user_rows.get(name)) is None:
            close = _close(name, self.user_ids)
            hint = f" Close: {', '.join(map(repr, close))}" if close else f" There are {len(self.user_ids):,} users"
            raise LookupError(f"no user has the id {name!r}.{hint}")
        return User(row)

    def title(self, item: Item) -> str:
        """The title of an item, or its id where it has none."""
        return _at(self.titles, item)

    def id(self, entity: Item | User) -> str:
        """The original id of an item or of a user."""
        return _at(self.item_ids if isinstance(entity, Item) else self.user_ids, entity)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `from_json`. Ids are a line each of one text: users may be millions."""
        return {
            "dataset": self.indexing.dataset,
            "user_index": self.indexing.user_index.tolist(),
            "item_index": self.indexing.item_index.tolist(),
            "history_separator": self.indexing.history_separator,
            "item_ids": _joined(self.item_ids),
            "user_ids": _joined(self.user_ids),
            "titles": list(self.titles),
            "sequential": self.sequential,
            "straightforward": self.straightforward,
            "target": self.target,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Catalogue:
        """The catalogue that `to_json` wrote."""
        if "item_ids" not in values:
            raise ValueError("the catalogue holds no ids, an earlier version saved it: save the model anew")
        return cls(
            Indexing(
                values["dataset"],
                np.array(values["user_index"]),
                np.array(values["item_index"]),
                values["history_separator"],
            ),
            item_ids=values["item_ids"].split("\n"),
            user_ids=values["user_ids"].split("\n"),
            **{k: values[k] for k in ("titles", "sequential", "straightforward", "target")},
        )

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {raw_id: row for row, raw_id in enumerate(self.item_ids)}

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {raw_id: row for row, raw_id in enumerate(self.user_ids)}

    @cached_property
    def _title_rows(self) -> dict[str, list[int]]:
        return _rows_by(self.titles)

    @cached_property
    def _plain_rows(self) -> dict[str, list[int]]:
        return _rows_by(map(_plain, self.titles))

    def _close_items(self, name: str) -> str:
        titles = [f"{self.titles[self._plain_rows[t][0]]!r}" for t in _close(_plain(name), self._plain_rows)]
        ids = [f"id {i!r}" for i in _close(name, self.item_ids) if repr(i) not in titles]
        if titles or ids:
            return f" Close: {', '.join([*titles, *ids][:5])}"
        return f" There are {len(self.item_ids):,} items, {self.titles[0]!r} (id {self.item_ids[0]!r}) for one"


def _plain(title: str) -> str:
    """A title as one types it, without case and year, the article in front: "Matrix, The (1999)" is "the matrix"."""
    title = unicodedata.normalize("NFKC", title).casefold()
    title = re.sub(r"\s*\(\d{4}\)\s*$", "", " ".join(title.split()))
    return re.sub(r"^(.+), (the|a|an)$", r"\2 \1", title)


def _rows_by(names: Iterable[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return rows


def _close(name: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if len(names) > MAX_COMPARED:
        names = [n for n in names if n[:2] == name[:2]][:MAX_COMPARED]
    return difflib.get_close_matches(name, names, 3)


def _check(name: object, kind: str) -> None:
    if not isinstance(name, str):
        made = f"{kind.title()}({name!r})"
        raise TypeError(f"{kind} {name!r} is no text: give an id as text, {str(name)!r}, or use {made} for a row")


def _at(values: Sequence[str], entity: Item | User) -> str:
    if not 0 <= entity.row < len(values):
        raise IndexError(f"{entity!r}: rows run from 0 to {len(values) - 1}")
    return values[entity.row]


def _joined(ids: Sequence[str]) -> str:
    if (bad := next((i for i in ids if "\n" in i), None)) is not None:
        raise ValueError(f"id {bad!r} holds a line break")
    return "\n".join(ids)
