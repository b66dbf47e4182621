"""From a raw table of interactions to the OpenP5 form: time order, k-core, files.

OpenP5's item numbers are one random draw, which cannot be had again from the raw files; nor can its order of equal
timestamps (`time_order`).
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ilm_lib.data.lines import DataError, is_id
from ilm_lib.data.openp5 import FIRST_ITEM, FIRST_USER
from ilm_lib.data.splits import MIN_ITEMS
from ilm_lib.data.time_order import TIMES, in_time_order


def k_core(interactions: pd.DataFrame, k: int = 5) -> pd.DataFrame:
    """The largest part in which every user and every item has at least `k` rows, rows in order.

    Users and items below k are dropped until none is left: the result does not depend on the
    order. OpenP5's 5-core of MovieLens-1M has 6,040 users, 3,416 items, 999,611 interactions.
    """
    user, _ = pd.factorize(interactions["user"])
    item, _ = pd.factorize(interactions["item"])
    rows = np.arange(len(interactions))
    while True:
        u, i = user[rows], item[rows]
        stays = (np.bincount(u)[u] >= k) & (np.bincount(i)[i] >= k)
        if stays.all():
            return interactions.iloc[rows].reset_index(drop=True)
        rows = rows[stays]


def prepare(interactions: pd.DataFrame, core: int = 5) -> tuple[pd.DataFrame, dict[str, int]]:
    """What stays of a raw table, in time order, and how many interactions each step dropped.

    Steps: of a repeated pair of user and item the first in time stays; the `core`-core (0 for
    none); users with fewer than three items go, who cannot be split in training, dev and test.
    """
    table = in_time_order(interactions)
    notes, before = {}, len(table)

    def count(step: str) -> None:
        nonlocal before
        notes[step], before = before - len(table), len(table)

    table = table[~table.duplicated(["user", "item"])]
    count("repeated pairs")
    table = k_core(table, core)
    count(f"below the {core}-core")
    user, _ = pd.factorize(table["user"])
    table = table[np.bincount(user)[user] >= MIN_ITEMS].reset_index(drop=True)
    count(f"of users with fewer than {MIN_ITEMS} items")
    return table, notes


def write_openp5(
    folder: Path,
    interactions: pd.DataFrame,
    texts: Mapping[str, dict],
    *,
    seed: int = 0,
    catalogue: Collection[str] = (),
) -> None:
    """Write a table and its item texts as a dataset folder; equal input gives equal bytes.

    Sequences are in order of (timestamp, row); user_time.txt has their times. A table without
    timestamps is in time order, and has no such file. Users stand in the order of their first
    interaction and are numbered from 1. Items are numbered from 1001 by a permutation that `seed`
    draws over the sorted ids (as numbers where all are whole numbers), those of `catalogue` among
    them, had by somebody or not. Texts of other items are left out. The folder appears complete
    or not at all.

    Raises DataError where the folder exists, for an empty table, for an id that is no text or
    holds blanks, and for a user with fewer than three items; OSError where it cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(folder, None, "is there already", "Remove it or choose another name")
    if interactions.empty:
        remedy = "Lower the core or give more interactions"
        raise DataError(folder, None, "no interactions are left to write", remedy)
    timed = "timestamp" in interactions
    table = in_time_order(interactions) if timed else interactions
    user, users = pd.factorize(table["user"])  # coded by first appearance
    item, items = pd.factorize(table["item"])
    if (bad := next((i for i in (*users, *items, *catalogue) if not is_id(i)), None)) is not None:
        raise DataError(folder, None, f"{bad!r} is no id", "Write ids as text without blanks")
    lengths = np.bincount(user)
    if (least := lengths.min()) < MIN_ITEMS:
        wrong = f"user {users[lengths.argmin()]!r} has {least} items, {MIN_ITEMS} are needed"
        raise DataError(folder, None, wrong, "Filter the table with prepare()")
    order = np.argsort(user, kind="stable")
    columns = {"user_sequence.txt": np.array(items.tolist(), object)[item[order]]}
    columns |= {TIMES: table["timestamp"].to_numpy().astype(str)[order]} if timed else {}
    ends = np.cumsum(lengths)
    ids = _sorted(list({*items, *catalogue}))
    numbers = np.random.default_rng(seed).permutation(len(ids)) + FIRST_ITEM
    records = ({"id": i, **texts[i]} for i in ids if texts.get(i))
    body = "".join(json.dumps(r) + "\n" for r in records)

    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        for file, fields in columns.items():
            lines = (" ".join([u, *fields[end - n : end]]) for u, n, end in zip(users, lengths, ends))
            _write(partial / file, lines)
        _write(partial / "user_indexing.txt", (f"{u} {n}" for n, u in enumerate(users, FIRST_USER)))
        by_number = sorted(zip(numbers.tolist(), ids, strict=True))
        _write(partial / "item_random_indexing.txt", (f"{i} {n}" for n, i in by_number))
        if body:
            (partial / "item_text.jsonl.gz").write_bytes(gzip.compress(body.encode(), mtime=0))
        partial.rename(folder)  # fails where someone else has filled it meanwhile
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sorted(ids: list[str]) -> list[str]:
    if all(i.isascii() and i.isdigit() for i in ids):
        return sorted(ids, key=lambda i: (int(i), i))  # "007" and "7" are two ids
    return sorted(ids)


def _write(path: Path, lines: Iterable[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
