"""Finding items by words alone: which tags are asked, what may be known of the others, and how answers are measured.

Every tag that people gave to 5 to 500 items is a query, and the items that have it are to be found. Whole tags are
held out. Spellings of one tag ("Sci-Fi", "scifi", "sequels", "sequel") are held out together, and a training tag that
holds a held-out one ("teen movie" where "teen" is held out) is left out of the items' texts. What an item's own words
happen to say, a plot or a genre, stays as it is: `Query.unsaid` are the items whose words do not say the tag.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Part = Literal["train", "dev", "test"]
LEAST, MOST = 5, 500  # items that a tag must have to be asked: of fewer little is measured, of more it tells nothing
FINDING = ("R@10", "R@50", "NDCG@10", "MRR", "R@50 unsaid")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Query:
    """Attributes:
    words: the tag.
    rows: of the items that have it.
    unsaid: those of `rows` whose texts do not hold the tag's words.
    """

    words: str
    rows: np.ndarray
    unsaid: np.ndarray


@dataclass(frozen=True)
class TagTask:
    """Attributes:
    queries: of each part, in alphabetical order.
    known: (I,) the training tags of every item.
    """

    queries: Mapping[Part, list[Query]]
    known: list[list[str]]


def spelling(tag: str) -> str:
    """What all spellings of a tag have in common: its letters and digits, no word in the plural."""
    return "".join(_words(tag))


def part_of(tag: str) -> Part:
    """Where a tag belongs, by a hash of its spelling: a fifth each to dev and test."""
    fifth = int.from_bytes(hashlib.sha256(spelling(tag).encode()).digest()[:4], "big") % 5
    return "test" if fifth == 0 else "dev" if fifth == 1 else "train"


def holds(text: str, spellings: set[str]) -> bool:
    """Whether some words of a text, one after another, are one of the tags that are spelt so."""
    words, longest = _words(text), max(map(len, spellings), default=0)
    return any(run in spellings for run in _runs(words, longest))


def tag_task(tags: Sequence[Sequence[str]], texts: Sequence[str]) -> TagTask:
    """Queries and training tags.

    Args:
        tags: (I,) of every item.
        texts: (I,) of every item, without its tags.
    """
    rows: dict[str, list[int]] = {}
    for row, given in enumerate(tags):
        for tag in dict.fromkeys(given):
            rows.setdefault(tag, []).append(row)
    held = {spelling(tag) for tag in rows if part_of(tag) != "train"}
    usable = {tag for tag in rows if not holds(tag, held)}
    queries: dict[Part, list[Query]] = {"train": [], "dev": [], "test": []}
    for tag, having in sorted(rows.items()):
        if LEAST <= len(having) <= MOST:
            own = {spelling(tag)}
            unsaid = [row for row in having if not holds(texts[row], own)]
            queries[part_of(tag)].append(Query(tag, np.array(having), np.array(unsaid, dtype=np.int64)))
    return TagTask(queries, [[tag for tag in dict.fromkeys(given) if tag in usable] for given in tags])


def found(scores: np.ndarray, queries: Sequence[Query]) -> dict[str, np.ndarray]:
    """Measures of rankings, an array each; equal scores count against.

    R@k is the share of a query's n items that are among the first k, of min(k, n) that can be. "R@50 unsaid" is that of
    the items whose texts do not say the tag; the others are left out of the ranking, and queries without such items out
    of the array.

    Args:
        scores: (Q, I), higher is better.

    Raises:
        ValueError: scores of other queries, or no number.
    """
    if len(scores) != len(queries):
        raise ValueError(f"scores of {len(scores)} queries for {len(queries)}")
    if np.isnan(scores).any():
        raise ValueError("a score is no number")
    values: dict[str, list[float]] = {name: [] for name in FINDING}
    for row, query in zip(scores, queries):
        hit = _hits(row, query.rows)
        values["R@10"].append(_recall(hit, 10))
        values["R@50"].append(_recall(hit, 50))
        gains = 1 / np.log2(np.arange(2, 12))
        values["NDCG@10"].append(float(hit[:10] @ gains[: len(hit[:10])] / gains[: len(query.rows)].sum()))
        values["MRR"].append(1 / (1 + int(hit.argmax())))
        if len(query.unsaid):
            said = np.setdiff1d(query.rows, query.unsaid)
            values["R@50 unsaid"].append(_recall(_hits(np.delete(row, said), _moved(query.unsaid, said)), 50))
    return {name: np.array(each) for name, each in values.items()}


def _hits(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(I,) whether what stands at each rank is one of `rows`."""
    wanted = np.isin(np.arange(len(scores)), rows)
    return wanted[np.lexsort((wanted, -scores))]


def _recall(hit: np.ndarray, k: int) -> float:
    return float(hit[:k].sum() / min(k, hit.sum()))


def _moved(rows: np.ndarray, deleted: np.ndarray) -> np.ndarray:
    """Where rows are after others were deleted."""
    return rows - np.searchsorted(deleted, rows)


def _words(text: str) -> list[str]:
    """Words without case and plural; "'s" is a word of its own and goes as well."""
    return [w.rstrip("s") or w for w in _WORD.findall(text.casefold()) if w != "s"]


def _runs(words: Sequence[str], longest: int) -> Iterator[str]:
    """All words that follow each other, as one, of at most so many characters."""
    for start in range(len(words)):
        run = ""
        for word in words[start:]:
            run += word
            if len(run) > longest:
                break
            yield run
