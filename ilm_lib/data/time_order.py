"""The order of interactions in time, their times, and the tie rule.

OpenP5 sorts by time with an unstable sort, so its order among equal timestamps is arbitrary: for users whose last
ratings share a timestamp the held-out items here may differ from OpenP5's. `shuffle_ties` shows how much such an order
can move a figure. A temporal split parts interactions by time alone, and what happened at a date belongs to the period
that it opens (`splits.by_date`): ties change which item of a second is a user's first, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ilm_lib.data.lines import DataError, read_lines

if TYPE_CHECKING:
    from ilm_lib.data.dataset import Dataset

TIMES = "user_time.txt"  # <user> <time> <time> ..., the times of user_sequence.txt
NO_TIMES = f"{TIMES} holds a user's id and the times of its items; python -m ilm_lib.data writes it from raw files"


def in_time_order(interactions: pd.DataFrame) -> pd.DataFrame:
    """Sorted by timestamp; equal ones stay in the order of the rows."""
    return interactions.sort_values("timestamp", kind="stable", ignore_index=True)


def read_times(folder: Path, dataset: Dataset) -> tuple[np.ndarray, str]:
    """(E,) int64 times of the interactions of a dataset that was read from the folder, and the file's SHA-256.

    Raises:
        DataError: there is no user_time.txt, or it does not follow user_sequence.txt line by line; a time is no whole
            number, or earlier than the one before it.
    """
    path = folder / TIMES
    if not path.is_file():
        raise DataError(path, None, "is missing", NO_TIMES)
    lines, checksum, _ = read_lines(path)
    if len(lines) != dataset.num_users:
        wrong = f"has {len(lines):,} users, user_sequence.txt has {dataset.num_users:,}"
        raise DataError(path, None, wrong, "Write one line a user, in the same order")
    times = np.empty(dataset.num_interactions, np.int64)
    for (n, line), user, start, end in zip(lines, dataset.users, dataset.offsets, dataset.offsets[1:]):
        name, *fields = line.split()
        if name != user or len(fields) != end - start:
            wrong = f"{name!r} with {len(fields)} times, user_sequence.txt has {user!r} with {end - start} items"
            raise DataError(path, n, wrong, "Write the users in the same order, with one time for each item")
        if bad := next(
            (f for f in fields if not (f.isascii() and f.removeprefix("-").isdigit() and len(f) < 19)), None
        ):
            raise DataError(path, n, f"{bad!r} is no time", "Write whole numbers, as 964982703, of at most 18 digits")
        times[start:end] = np.array(fields, np.int64)
        if (np.diff(times[start:end]) < 0).any():
            raise DataError(
                path, n, f"the times of {user!r} do not rise", "Sort the user's items by time, in both files"
            )
    return times, checksum


def shuffle_ties(dataset: Dataset, times: np.ndarray, seed: int) -> Dataset:
    """The dataset with every user's items of equal time in another order, drawn by `seed`.

    Args:
        times: (E,) of `read_times`.
    """
    user = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    order = np.lexsort((np.random.default_rng(seed).random(len(times)), times, user))
    return replace(dataset, sequences=dataset.sequences[order])
