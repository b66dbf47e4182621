"""Titles as they are compared: the names that an item of a catalogue goes by, and the words of a text.

Case, accents, blanks and punctuation do not count ("spider man" is "Spider-Man"), nor how a number is written
("Rocky 2" is "Rocky II").
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

ROMAN = dict(ii="2", iii="3", iv="4", vi="6", vii="7", viii="8", ix="9")
NUMBERS = dict(one="1", two="2", three="3", four="4", five="5", six="6", seven="7", eight="8", nine="9")
PARTS = {"part", "episode", "chapter", "vol", "volume"}  # left out before a number: "Kill Bill: Vol. 2"

_WORD = re.compile(r"[^\W_]+(?:['’`][^\W_]+)*|&")
_HALF = re.compile("[\ud800-\udfff]")
_TITLE_YEAR = re.compile(r"\s*\((\d{4})\)\s*$")
_ASIDE = re.compile(r"\s*\(([^()]*)\)")
_LATE_ARTICLE = re.compile(r"^(.*), (the|a|an|le|la|les|l'|el|los|las|il|der|die|das|un|une)$", re.IGNORECASE)
_ARTICLE = re.compile(r"^(?:the|a|an)\s+", re.IGNORECASE)


class Word(NamedTuple):
    """Characters `start` to `end` of a text, and how they are compared: no case, accents and apostrophes."""

    key: str
    start: int
    end: int


def readable(text: str) -> str:
    """A text that UTF-8 can write: half a character, as JSON may hold, is "\ufffd"."""
    return text if text.isascii() else _HALF.sub("\ufffd", text)


def names_of(title: str) -> tuple[int | None, list[tuple[str, int]]]:
    """The year of a title, and the names it goes by with how far each is from the whole.

    0: the title, or another in brackets; 1: without its article; 2: up to a colon or dash; 3: what follows that.

    >>> names_of("Lord of the Rings: The Two Towers, The (2002)")[1][:2]
    [('The Lord of the Rings: The Two Towers', 0), ('Lord of the Rings: The Two Towers', 1)]
    """
    found = _TITLE_YEAR.search(title)
    plain = title[: found.start()] if found else title
    others = [re.sub(r"^a\.?k\.?a\.?:?\s+", "", aside, flags=re.IGNORECASE) for aside in _ASIDE.findall(plain)]
    main = _turned(_ASIDE.sub("", plain)) or plain
    names = [(name, 0) for name in (main, *map(_turned, others))]
    names += [(_ARTICLE.sub("", name), 1) for name, _ in names]
    for mark in (": ", " - "):
        head, found_mark, tail = main.partition(mark)
        if found_mark:
            names += [(_turned(head), 2), (_turned(tail), 3), (_ARTICLE.sub("", _turned(tail)), 3)]
            names += [(_ARTICLE.sub("", _turned(head)), 3)]
    return int(found[1]) if found else None, list(dict.fromkeys(names))


def key_of(words: Sequence[str]) -> str:
    """What names are compared by: words in one piece, numbers in digits, "part" left out before them.

    >>> key_of(["rocky", "part", "ii"]), key_of(["rocky", "2"])
    ('rocky2', 'rocky2')
    """
    kept = list(words[:1])
    for word in words[1:]:
        word = ROMAN.get(word, word)
        after_part = kept[-1] in PARTS
        if after_part and len(kept) > 1 and (word in NUMBERS or word.isdigit()):
            kept.pop()
        kept.append(NUMBERS.get(word, word) if after_part else word)
    return "".join(kept)


def one_error(a: str, b: str) -> bool:
    """Whether two words differ by one letter more, less or other, or by two neighbours in each other's place.

    Digits must agree: "Rocky 2" is no error for "Rocky 3".
    """
    if len(a) > len(b):
        a, b = b, a
    same = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
    if a == b or any(letter.isdigit() for letter in (*a[same : same + 1], b[same])):
        return False
    if len(a) < len(b):
        return a[same:] == b[same + 1 :]
    return a[same + 1 :] == b[same + 1 :] or a[same:] == b[same : same + 2][::-1] + b[same + 2 :]


def words_of(text: str) -> Iterator[Word]:
    """The words of a text in order; "&" is "and"."""
    for found in _WORD.finditer(text):
        plain = found[0].casefold()
        if not plain.isascii():
            plain = "".join(c for c in unicodedata.normalize("NFKD", plain) if not unicodedata.combining(c))
        plain = plain.replace("'", "").replace("’", "").replace("`", "")
        yield Word("and" if plain == "&" else plain, found.start(), found.end())


def _turned(name: str) -> str:
    """A name with its article in front: "Matrix, The" is "The Matrix"."""
    name = name.strip()
    found = _LATE_ARTICLE.match(name)
    return f"{found[2]} {found[1]}" if found else name


def shorter(key: str) -> Iterator[str]:
    """A word with one letter left out, for each of its letters."""
    return (key[:at] + key[at + 1 :] for at in range(len(key)))
