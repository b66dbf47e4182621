"""Items as a page shows them, and the search for titles while somebody types them."""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cached_property
from itertools import takewhile
from typing import Any

from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.prompts import Item
from ilm_lib.model.reply import own_words
from ilm_lib.model.titles import names_of, one_error, words_of

LEAST_NEAR = 4  # letters of a word in which a typing error is looked for
GENRE = 3  # words of a genre, at most


class Cards:
    """Shows and finds items. What is searched is made when it is first asked for, a second for some 50,000 titles.

    Args:
        names: the catalogue of the model.
    """

    def __init__(self, names: Catalogue):
        self.names = names

    def card(self, item: Item) -> dict[str, Any]:
        """What is known of an item: id, title, name, year, genres and text.

        The name is the title as one says it, without its year; the year is None where the title has none. Genres are
        what the item's text begins with, where it is a list of words that other texts begin with too, else []. The text
        is the first sentences of the rest, some 40 words of them; "" where there are none.
        """
        row = item.row
        title, text = self.names.titles[row], self.names.texts[row] if self.names.texts else ""
        year, names = names_of(title)
        genres = self._genres(row)
        about = own_words(text, title).removeprefix(", ".join(genres)).lstrip(". ")
        known = {"id": self.names.item_ids[row], "title": title, "name": names[0][0] or title, "year": year}
        return known | {"genres": genres, "text": about}

    def search(self, query: str, limit: int) -> list[Item]:
        """The items whose titles have all words of a query, or begin so; those that begin with it first, then the best
        known. A word that no title has may hold one typing error.

        Args:
            query: without a word: all items are found.
            limit: how many, at most.

        Example:
            >>> [cards.names.title(item) for item in cards.search("toy st", 2)]
            ['Toy Story (1995)', 'Toy Story 2 (1999)']
        """
        words = [word.key for word in words_of(query)]
        if query.strip() and not words:
            return []
        rows = set(range(len(self.names.titles)))
        for word in words:
            rows &= self._having(word)
        weights, begins = self.names.weights or [0] * len(self.names.titles), " ".join(words)
        far = lambda row: (not any(name.startswith(begins) for name in self._said[row]), -weights[row], row)
        return [Item(row) for row in heapq.nsmallest(limit, rows, key=far)]

    def _having(self, word: str) -> set[int]:
        """Rows of the titles that have a word that begins so, or nearly so."""
        found = [other for other in self._from(word) if other.startswith(word)]
        if not found and len(word) >= LEAST_NEAR:
            near = lambda other: one_error(word, other) or one_error(word, other[: len(word)])
            found = [other for other in self._from(word[0]) if near(other)]
        return {row for other in found for row in self._rows[other]}

    def _from(self, start: str) -> Iterator[str]:
        """The words of titles that begin like this."""
        at = bisect_left(self._words, start)
        return takewhile(lambda word: word.startswith(start), (self._words[n] for n in range(at, len(self._words))))

    def _genres(self, row: int) -> list[str]:
        parts = self._opening(row)
        return parts if all(len(part.split()) <= GENRE and self._openings[part] > 1 for part in parts) else []

    def _opening(self, row: int) -> list[str]:
        """The parts, between commas, of the first sentence after the title."""
        text = self.names.texts[row] if self.names.texts else ""
        first = text.removeprefix(self.names.titles[row]).lstrip(". ").partition(". ")[0].rstrip(".")
        return first.split(", ") if first else []

    @cached_property
    def _openings(self) -> Counter[str]:
        """How many items' texts begin with a part."""
        return Counter(part for row in range(len(self.names.texts)) for part in {*self._opening(row)})

    @cached_property
    def _said(self) -> list[list[str]]:
        """(I, 1 to n) the names of each item as they are compared, with and without article, no year."""
        names = ([name for name, far in names_of(title)[1] if far < 2] for title in self.names.titles)
        return [[" ".join(word.key for word in words_of(name)) for name in found] for found in names]

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        """By word of a title, its year and other names among them, the rows that have it."""
        rows: dict[str, list[int]] = defaultdict(list)
        for row, title in enumerate(self.names.titles):
            for word in {word.key for word in words_of(title)}:
                rows[word].append(row)
        return dict(rows)

    @cached_property
    def _words(self) -> list[str]:
        return sorted(self._rows)
