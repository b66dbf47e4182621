"""Words to items: where a text names items of a catalogue by their titles.

The hard part is to tell a title from the same words in their everyday sense: "It", "Saw" and "Get Out" are films, and
are said all day. So the more often the words of a title stand in ordinary texts, the more has to speak for it in this
one (`Linker._needed`, `Linker._given`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from ilm_lib.model.prompts import Item, Prompt
from ilm_lib.model.refusals import WrongKind, WrongValue, brief
from ilm_lib.model.titles import PARTS, Word, key_of, names_of, one_error, shorter, words_of

#: Words that often stand before a title, in English.
CUES = set(
    "about and called enjoy enjoyed film like liked love loved movie or original recommend recommended saw see seen "
    "suggest suggested try watch watched watching".split()
)
#: Words that follow a title at the start of a sentence: "Alien is my favourite".
FOLLOW = {"is", "was", "and", "or", "with", "has"}

FEW, OFTEN = 3, 100  # times that ordinary texts have a title's words: up to FEW rare, from OFTEN words of every day
NEARBY = 30  # words and characters around a name that tell how its text is written
LEAST_NEAR, MOST_NEAR = 5, 40  # letters of a name in which typing errors are looked for
KEPT = 512  # texts whose items are kept
SURE_NEAR = 11  # letters from which one is taken for an error even where all the words exist: "Finding Memo"

_YEAR = re.compile(r"\s*\(\s*((?:18|19|20)\d\d)\s*\)|,?\s+(?:from\s+)?((?:19|20)\d\d)\b")
_SENTENCE_END = re.compile(r"[.!?…:]\W*$")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "*": "*", "_": "_"}


@dataclass(frozen=True)
class Mention:
    """The characters from `start` up to `end` of a text name an item, its year among them where it is given."""

    start: int
    end: int
    item: Item


@dataclass(frozen=True)
class _Run:
    """Neighbouring words of a text that may name an item."""

    text: str
    words: list[Word]
    first: int
    length: int

    @property
    def own(self) -> list[Word]:
        return self.words[self.first : self.first + self.length]

    @property
    def start(self) -> int:
        return self.words[self.first].start

    @property
    def end(self) -> int:
        return self.words[self.first + self.length - 1].end

    @property
    def key(self) -> str:
        return key_of([w.key for w in self.own])

    def neighbour(self, step: int) -> Word | None:
        """The word before (-1) or after (1) the run."""
        at = self.first - 1 if step < 0 else self.first + self.length
        return self.words[at] if 0 <= at < len(self.words) else None

    def in_one_piece(self) -> bool:
        """Blanks and hyphens alone between its words."""
        return all(not self.text[a.end : b.start].strip(" -") for a, b in pairwise(self.own))

    def quoted(self) -> bool:
        """In quotes, or between stars as Markdown has it."""
        before, after = self.text[self.start - 1 : self.start], self.text[self.end : self.end + 1]
        return before in _QUOTES and after == _QUOTES[before]

    def capital(self) -> bool:
        """Written as titles are, where nothing else explains the capital letters."""
        large = lambda word: not self.text[word.start].islower()
        longer = [w for w in self.own if w.end - w.start > 3] or self.own
        end = self.first + self.length
        others = self.words[max(0, self.first - NEARBY) : self.first] + self.words[end : end + NEARBY]
        if not all(map(large, longer)) or (len(others) > 3 and sum(map(large, others)) > 0.6 * len(others)):
            return False
        after = self.neighbour(1)
        follows = after is not None and after.key in FOLLOW
        return not self._opens(self.start) or sum(map(large, self.own)) > 1 or follows

    def part_of_a_name(self) -> bool:
        """One word beside another with a capital letter: "Jack" in "Jack Black"."""
        if self.length > 1 or self.text[self.start].islower():
            return False
        before, after = self.neighbour(-1), self.neighbour(1)
        if before is not None and self._named(before, self.text[before.end : self.start]):
            return not self._opens(before.start)  # the first word of a sentence has a capital letter anyway
        return after is not None and self._named(after, self.text[self.end : after.start])

    def _named(self, other: Word, between: str) -> bool:
        long = other.end - other.start > 1
        return between == " " and long and self.text[other.start].isupper() and other.key not in CUES

    def _opens(self, at: int) -> bool:
        """Whether a sentence begins at a character."""
        before = self.text[max(0, at - NEARBY) : at]
        return not before.strip() or bool(_SENTENCE_END.search(before))


class Linker:
    """Finds the items that a text names.

    Args:
        titles: (I,) as catalogues have them: "Matrix, The (1999)", "Seven (a.k.a. Se7en) (1995)".
        weights: (I,) how well known each item is. Of items of the same name the best known is meant, unless a year is
            given. None: all alike, and the first is.
        texts: ordinary sentences, the descriptions of items for one, which show what words mean by themselves. None:
            every title of one word is taken to be a word of every day.

    Raises:
        WrongValue: there are no titles, or not one weight for each.

    Example:
        >>> linker = Linker(["Toy Story (1995)", "Matrix, The (1999)"])
        >>> linker.mentions("loved the matrix")
        [Mention(start=6, end=16, item=Item(row=1))]
        >>> linker.link("Something like Toy Story, please")
        ['Something like ', Item(row=0), ', please']
    """

    def __init__(
        self, titles: Sequence[str], weights: Sequence[float] | None = None, texts: Iterable[str] | None = None
    ):
        if not titles or (weights is not None and len(weights) != len(titles)):
            given = f"{len(titles)} titles" + ("" if weights is None else f" and {len(weights)} weights")
            raise WrongValue(f"a linker was given {given}: give the title, and if any the weight, of each item")
        self.weights = np.ones(len(titles)) if weights is None else np.asarray(weights, dtype=float)
        self.known_well = self.weights >= self.weights.mean()
        self.years: list[int | None] = []
        self._names: list[str] = []  # titles without years, articles in front
        self._rows: dict[str, dict[int, int]] = {}  # key -> rows of that name, and how far the name is from the title
        self._longest, title_words = 1, set()
        for row, title in enumerate(titles):
            year, names = names_of(title)
            self.years.append(year)
            self._names.append(names[0][0])
            for name, far in names:
                words = [w.key for w in words_of(name)]
                title_words.update(words)
                self._longest = max(self._longest, len(words))
                rows = self._rows.setdefault(key_of(words), {})
                rows[row] = min(rows.get(row, far), far)
        self._rows.pop("", None)
        self._said: Counter[str] | None = None
        self._words = title_words
        if texts is not None:
            self._said, self._words = _ordinary(texts, self._rows)
        self._near = _without_one(k for k in self._rows if LEAST_NEAR <= len(k) <= MOST_NEAR)
        self._found = lru_cache(KEPT)(self._look)  # a conversation comes again with every turn

    def mentions(self, text: str) -> list[Mention]:
        """The items that a text names, in its order; none overlap.

        Long names come first ("Toy Story 2" before "Toy Story"). A year after the name decides between items that
        share it; a year in brackets that none of them has says that another item is meant.
        """
        if not isinstance(text, str):
            raise WrongKind(f"{brief(text)} is no text: give the text in which items are looked for")
        return [*self._found(text)]

    def _look(self, text: str) -> list[Mention]:
        words = list(words_of(text))
        free, found = [True] * len(words), []
        for surely in (True, False):  # typing errors that are words themselves come last
            for length in range(min(self._longest + 1, len(words)), 0, -1):
                for first in range(len(words) - length + 1):
                    if not all(free[first : first + length]):
                        continue
                    if mention := self._mention(_Run(text, words, first, length), surely):
                        found.append(mention)
                        free[first : first + length] = [False] * length
        return sorted(found, key=lambda m: m.start)

    def link(self, text: str) -> Prompt:
        """The text with the items in the place of their names: a prompt for an ILM."""
        prompt: list = []
        at = 0
        for mention in self.mentions(text):
            prompt += [text[at : mention.start], mention.item]
            at = mention.end
        return [segment for segment in [*prompt, text[at:]] if segment != ""]

    def _mention(self, run: _Run, surely: bool) -> Mention | None:
        key = run.key
        if surely and key in self._rows:
            return self._chosen(run, {key: self._rows[key]}, misspelt=False)
        strange = any(w.key not in self._words and len(w.key) > 2 for w in run.own)
        clear = strange or (run.length > 1 and len(key) >= SURE_NEAR and run.in_one_piece())
        if not LEAST_NEAR <= len(key) <= MOST_NEAR + 1 or strange is not surely or not clear:
            return None
        near = {other for part in shorter(key) for other in self._near.get(part, ())}
        near = {other for other in near | self._near.get(key, set()) if other != key and one_error(key, other)}
        return self._chosen(run, {other: self._rows[other] for other in near}, misspelt=True) if near else None

    def _chosen(self, run: _Run, named: Mapping[str, Mapping[int, int]], misspelt: bool) -> Mention | None:
        """The item meant among those of one name or of a few, if there is one and enough speaks for it."""
        far: dict[int, tuple[int, str]] = {}
        for key, rows in named.items():
            far.update({row: (d, key) for row, d in rows.items() if row not in far or d < far[row][0]})
        end, found = run.end, _YEAR.match(run.text, run.end)
        year = int(found[1] or found[2]) if found else None
        if found and year:
            # Catalogues differ by a year at times: a film is shown in one and released in the next.
            same = {row: d for row, d in far.items() if abs((self.years[row] or 0) - year) <= 1}
            if not same and found[1]:
                return None
            far, year, end = (same, year, found.end()) if same else (far, None, end)
        least = min(d for d, _ in far.values())
        as_written = lambda row: self._names[row].startswith(run.text[run.start : run.end + 1].rstrip())
        row = max(
            (r for r, (d, _) in far.items() if d == least),
            key=lambda r: (self.years[r] == year, as_written(r), self.weights[r]),
        )
        if year is None and not run.quoted():
            needed = self._needed(far[row][1], least, run.length) + misspelt
            if needed > self._given(run, row) or run.part_of_a_name() or _bracketed_number(run):
                return None
        return Mention(run.start, end, Item(row))

    def _needed(self, key: str, far: int, words: int) -> int:
        """How much has to speak for a name, the more its words are said anyway and the farther it is from the title."""
        times = self._said[key] if self._said is not None else FEW + 1 if words == 1 else 0
        everyday = 0 if not times else 1 if words > 1 and times <= FEW else 2 if times < OFTEN else 3
        short = len(key) <= 2 and everyday < 3  # a letter or two by accident
        return everyday + (0, 0, 1, 1)[far] + (words == 1 and far > 0) + short + 2 * key.isdigit()

    def _given(self, run: _Run, row: int) -> int:
        """How much speaks for an item: it is well known, its name is written as one, words before it announce it."""
        before = run.neighbour(-1)
        alone = 1 < run.length == len(run.words)
        return int(self.known_well[row]) + run.capital() + (alone or (before is not None and before.key in CUES))


def _ordinary(texts: Iterable[str], names: Collection[str], longest: int = 6) -> tuple[Counter[str], set[str]]:
    """How often names of up to `longest` words stand in texts without capital letters, and all words of the texts."""
    said: Counter[str] = Counter()
    all_words: set[str] = set()
    starts = {name[:length] for name in names for length in range(1, len(name) + 1)}
    for text in texts:
        run: list[str] = []
        for word in (*words_of(text), None):
            if word is not None:
                all_words.add(word.key)
                if not text[word.start].isupper():
                    run.append(word.key)
                    continue
            for i in range(len(run)):
                for j in range(i + 1, min(i + longest, len(run)) + 1):
                    key = key_of(run[i:j])
                    if key in names:
                        said[key] += 1
                    elif key not in starts and run[j - 1] not in PARTS:  # which may be left out yet
                        break
            run = []
    return said, all_words


def _without_one(keys: Iterable[str]) -> dict[str, set[str]]:
    """Keys by themselves with any one letter left out: two that differ by one error share such a form."""
    near: dict[str, set[str]] = {}
    for key in keys:
        for form in (key, *shorter(key)):
            near.setdefault(form, set()).add(key)
    return near


def _bracketed_number(run: _Run) -> bool:
    """A year in brackets is the year of what stands before it, and no item."""
    return run.key.isdigit() and run.text[run.start - 1 : run.start] == "(" and run.text[run.end : run.end + 1] == ")"
