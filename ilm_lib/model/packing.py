"""Which prompts share a row of a batch, so that little of it is padding, and what all begin with."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SHORTEST = 8  # tokens that are worth being read by themselves


class Layout(NamedTuple):
    """Where (P,) prompts stand in the rows of a batch."""

    row: np.ndarray  # (P,)
    offset: np.ndarray  # (P,) in the row
    number: np.ndarray  # (P,) within the row, from 1
    width: int  # of all rows

    @property
    def rows(self) -> int:
        return int(self.row.max()) + 1


def best_fit(length: np.ndarray, width: int) -> Layout:
    """Lay prompts of `length` (P,) into rows of `width`, the longest first, each where it leaves the least room."""
    row, offset, number = np.zeros((3, len(length)), dtype=np.int64)
    rooms: list[tuple[int, int, int]] = []  # (what is left, row, prompts in it), sorted
    rows = 0
    for prompt in np.argsort(-length, kind="stable").tolist():
        needed = int(length[prompt])
        fits = bisect_left(rooms, (needed,))
        if fits == len(rooms):
            left, its_row, count, rows = width, rows, 0, rows + 1
        else:
            left, its_row, count = rooms.pop(fits)
        row[prompt], offset[prompt], number[prompt] = its_row, width - left, count + 1
        insort(rooms, (left - needed, its_row, count + 1))
    return Layout(row, offset, number, width)


def pack_rows(length: np.ndarray, packs: Callable[[int], bool]) -> Layout:
    """`best_fit` in rows as wide as the longest prompt or up to a quarter wider, whichever leaves least empty;
    in rows up to twice as wide where all of these leave more than a tenth empty.

    Prompts of like length, which fill rows badly, often fill wider ones well; but in wide rows every token pays for
    attention to prompts that it does not see. Widths are multiples of 16 where the LLM allows it: sizes come again, and
    a CPU's matrix kernels, compiled for each size in bfloat16, are found and not compiled.

    Args:
        length: (P,) of the prompts.
        packs: whether rows of a width may be packed.
    """
    longest = int(length.max())
    first = _round_up(longest) if packs(_round_up(longest)) else longest
    best = best_fit(length, first)
    for shares in (range(33, 41), range(42, 65, 2)):  # in 32nds of the longest
        widths = {_round_up(longest * share // 32) for share in shares} - {first}
        for width in filter(packs, sorted(widths)):
            best = min(best, best_fit(length, width), key=_area)
        if length.sum() >= 0.9 * _area(best):
            break
    return best


def one_a_row(length: np.ndarray, width: int, side: str) -> Layout:
    """A row for every prompt, padded on the right or the left."""
    offset = width - length if side == "left" else np.zeros_like(length)
    return Layout(np.arange(len(length)), offset, np.ones_like(length), width)


def token_places(length: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of (P,) prompts, one after another: where it is in its prompt, and in the flattened (B, T)."""
    inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return inside, np.repeat(layout.row * layout.width + layout.offset, length) + inside


def common_start(rows: Sequence[array], most: Sequence[int]) -> int:
    """How many ids rows have in common at their start, no more than `most` of each; 0 where it is not worth it."""
    length = min(most)
    for row in rows:
        while row[:length] != rows[0][:length]:
            length -= 1
    return length if length >= SHORTEST and len(rows) > 1 else 0


def _round_up(width: int) -> int:
    return -(-width // 16) * 16


def _area(layout: Layout) -> int:
    return layout.rows * layout.width
