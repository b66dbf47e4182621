"""What a model knows of its data besides embeddings: the names of items and users, and the prompts of `recommend`."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from ilm_lib.model.indexing import Indexing
from ilm_lib.model.linker import Linker
from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.model.refusals import OutOfRange, UnknownName, WrongKind, WrongValue, brief
from ilm_lib.model.titles import names_of, readable

MAX_COMPARED = 100_000  # names that close matches are sought among in a second or two


@dataclass(frozen=True)
class Catalogue:
    """Looks up items by title or original id and users by original id, and back.

    Attributes:
        indexing: names of items and users in text, `item_1234`.
        item_ids, user_ids: (I,) and (U,) the ids of the data that the model was made from.
        titles: (I,) for display; the id where an item has no title.
        sequential, straightforward, target: the templates `recommend` uses.
        texts: (I,) each item in words, "" where nothing is known; () where no item has any.
        weights: (I,) how well known each is, for one how many users had it; () where that is not known.

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
    texts: Sequence[str] = ()
    weights: Sequence[float] = ()

    def item(self, name: str) -> Item:
        """The item of an original id or a title.

        An id wins over a title that reads the same. A title may be given as it is or, where that leaves one item,
        without its year and in any case: "toy story" finds "Toy Story (1995)".

        Raises:
            UnknownName: no item has the name, or several have; the message names some that come close.
            WrongKind: the name is no text.
        """
        _check(name, "item")
        if (row := self._item_rows.get(name)) is not None:
            return Item(row)
        rows = self._title_rows.get(name) or self._plain_rows.get(_plain(name), [])
        if len(rows) == 1:
            return Item(rows[0])
        if rows:
            found = _list(f"{brief(self.titles[r])} (id {brief(self.item_ids[r])})" for r in rows[:5])
            shown = found.count(" (id ")
            more = f" and {len(rows) - shown:,} more" if len(rows) > shown else ""
            raise UnknownName(f"{len(rows)} items are called {brief(name)}: {found}{more}. Give the id of one")
        raise UnknownName(f"no item has the title or id {brief(name)}.{self._close_items(name)}")

    def link(self, text: str) -> Prompt:
        """A text with the items in the place of their titles, for a prompt: see `linker.Linker`.

        Example:
            >>> catalogue.link("Something like Toy Story, please")
            ['Something like ', Item(row=17), ', please']
        """
        return self.linker.link(text)

    def user(self, name: str) -> User:
        """The user of an original id; UnknownName, with close ones, where nobody has it."""
        _check(name, "user")
        if (row := self._user_rows.get(name)) is None:
            close = _close(name, self.user_ids)
            hint = f" Close: {_list(map(brief, close))}" if close else f" There are {len(self.user_ids):,} users"
            raise UnknownName(f"no user has the id {brief(name)}.{hint}")
        return User(row)

    def title(self, item: Item) -> str:
        """The title of an item, or its id where it has none."""
        if not isinstance(item, Item):
            made = f"Item({brief(item)})" if isinstance(item, int) and not isinstance(item, bool) else "an Item"
            raise WrongKind(f"{brief(item)} is no Item: give {made}")
        return _at(self.titles, item)

    def id(self, entity: Item | User) -> str:
        """The original id of an item or of a user."""
        if not isinstance(entity, (Item, User)):
            raise WrongKind(f"{brief(entity)} is neither Item nor User: give one of them, e.g. Item(3)")
        return _at(self.item_ids if isinstance(entity, Item) else self.user_ids, entity)

    def without_users(self) -> Catalogue:
        """The same items and templates, and nobody's id."""
        nobody = replace(self.indexing, user_index=self.indexing.user_index[:0])
        return replace(self, indexing=nobody, user_ids=[])

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
            "texts": list(self.texts),
            "weights": list(self.weights),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Catalogue:
        """The catalogue that `to_json` wrote."""
        if "item_ids" not in values:
            raise WrongValue("the catalogue holds no ids, an earlier version saved it: save the model anew")
        return cls(
            Indexing(
                values["dataset"],
                np.array(values["user_index"]),
                np.array(values["item_index"]),
                values["history_separator"],
            ),
            item_ids=values["item_ids"].split("\n"),
            user_ids=values["user_ids"].split("\n") if values["user_index"] else [],
            **{k: values[k] for k in ("titles", "sequential", "straightforward", "target")},
            **{k: values.get(k, ()) for k in ("texts", "weights")},
        )

    @cached_property
    def spoken(self) -> list[str]:
        """(I,) titles as one says them, and an LLM can read them: "The Matrix (1999)" of "Matrix, The (1999)"."""
        named = (names_of(readable(title)) for title in self.titles)
        return [names[0][0] + (f" ({year})" if year else "") for year, names in named]

    @cached_property
    def linker(self) -> Linker:
        """Finds the items that a text names; what their texts say tells a title from words of every day."""
        return Linker(self.titles, self.weights or None, self.texts or None)

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
        titles = [brief(self.titles[self._plain_rows[t][0]]) for t in _close(_plain(name), self._plain_rows)]
        ids = [f"id {brief(i)}" for i in _close(name, self.item_ids) if brief(i) not in titles]
        if titles or ids:
            return f" Close: {_list([*titles, *ids][:5])}"
        return (
            f" There are {len(self.item_ids):,} items, {brief(self.titles[0])} (id {brief(self.item_ids[0])}) for one"
        )


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


def _list(names: Iterable[str], length: int = 150) -> str:
    """Names in a row, the first and as many more as there is room for."""
    shown = ""
    for name in names:
        if shown and len(shown) + len(name) > length:
            break
        shown += f", {name}" if shown else name
    return shown


def _close(name: str, names: Iterable[str]) -> list[str]:
    names = list(names)
    if len(names) > MAX_COMPARED:
        names = [n for n in names if n[:2] == name[:2]][:MAX_COMPARED]
    return difflib.get_close_matches(name, names, 3)


def _check(name: object, kind: str) -> None:
    if not isinstance(name, str):
        made = f"{kind.title()}({brief(name)})"
        raise WrongKind(
            f"{kind} {brief(name)} is no text: give an id as text, {brief(str(name))}, or use {made} for a row"
        )


def _at(values: Sequence[str], entity: Item | User) -> str:
    if entity.row >= len(values):
        where = f"rows run from 0 to {len(values) - 1}" if values else "this model was saved without its users"
        raise OutOfRange(f"{brief(entity)}: {where}")
    return values[entity.row]


def _joined(ids: Sequence[str]) -> str:
    if (bad := next((i for i in ids if "\n" in i), None)) is not None:
        raise WrongValue(f"id {brief(bad)} holds a line break")
    return "\n".join(ids)
