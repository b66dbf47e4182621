"""Items in plain text: `<item:ID>` with the catalogue's own ids, or titles."""

from __future__ import annotations

import re
import unicodedata

from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.prompts import Item, Prompt

_OPEN = re.compile("<item:")
#: What would move a terminal's cursor, or turn the order of what follows it.
_UNPRINTABLE = {"\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"}


class Marks:
    """Reads and writes items in text.

    Args:
        names: the catalogue of the model.
    """

    def __init__(self, names: Catalogue):
        self.names = names
        self._rows = {raw_id: row for row, raw_id in enumerate(names.item_ids)}
        self._longest = max(map(len, self._rows), default=0)

    def read(self, text: str) -> Prompt:
        """A text with Items in the place of their marks; one of an unknown id stays text.

        Example:
            >>> marks.read("Like <item:tt0114709>, but <item:none>")
            ['Like ', Item(row=17), ', but <item:none>']
        """
        found: list[str | Item] = []
        done = 0
        for mark in _OPEN.finditer(text):
            if mark.start() >= done and (closed := self._closed(text, mark.end())):
                row, end = closed
                found += [text[done : mark.start()], Item(row)]
                done = end
        return [part for part in [*found, text[done:]] if part != ""] or [""]

    def write(self, item: Item, *, ids: bool = False) -> str:
        """An item as its title, the way one says it, or as its mark."""
        return f"<item:{self.names.item_ids[item.row]}>" if ids else self.names.spoken[item.row]

    def _closed(self, text: str, start: int) -> tuple[int, int] | None:
        """Row and end of the mark whose id begins at `start`; an id may itself hold a `>`."""
        end = text.find(">", start, start + self._longest + 1)
        while end >= 0:
            if (row := self._rows.get(text[start:end])) is not None:
                return row, end + 1
            end = text.find(">", end + 1, start + self._longest + 1)
        return None


def printable(text: str) -> str:
    """A text without what a terminal would obey: a title may hold anything."""
    return "".join(
        c for c in text if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs") and c not in _UNPRINTABLE)
    )
