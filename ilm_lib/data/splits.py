"""What is held out of each user's sequence: by place (leave one out, section 4.2) or by date (a global temporal split).

By place, the last item of a user is the test target and the one before it dev's: of a user's own future nothing is
trained on, but of that of others all is. By date, training ends for all users at one moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from ilm_lib.sections import Target

Split = Literal["dev", "test"]

SPLITS: tuple[Split, ...] = ("dev", "test")

MIN_ITEMS = 3  # of a user who is left out one of: one item for training, dev and test each


@dataclass(frozen=True, eq=False)
class Places:
    """Where the training part of each user's sequence ends, and where the targets stand. Positions count from 0.

    The history of a target is all that stands before it, be it trained on or not: it is the past by then.
    """

    train: np.ndarray  # (U,) int64 how many items, from the first on, are for training
    dev: np.ndarray  # (U,) int64 position of the dev target, -1 for a user without one
    test: np.ndarray  # (U,) int64 position of the test target, likewise

    def of(self, split: Split) -> np.ndarray:
        return self.dev if split == "dev" else self.test

    def __getitem__(self, users: np.ndarray) -> Places:
        return Places(self.train[users], self.dev[users], self.test[users])


def leave_one_out(lengths: np.ndarray) -> Places:
    """The last item is the test target, the one before it dev's; whoever has fewer than three trains with all of them.

    Args:
        lengths: (U,) items of each user.
    """
    enough = lengths >= MIN_ITEMS
    train = np.where(enough, lengths - 2, lengths)
    return Places(train, np.where(enough, lengths - 2, -1), np.where(enough, lengths - 1, -1))


def by_date(times: np.ndarray, offsets: np.ndarray, dev_from: int, test_from: int, target: Target = "first") -> Places:
    """Training is what happened before `dev_from`; targets are a user's first or last interactions of each period.

    The dev period ends where the test period begins. A target needs a history: the first interaction of all is none.

    Args:
        times: (E,) of the interactions, users concatenated, rising within a user.
        offsets: (U + 1,) where each user starts.
        dev_from, test_from: moments in the unit of `times`; what happened at one belongs to the period it opens.
        target: "first" of a period, right after what was trained on; or the "last", whose history reaches into the
            period, so that people who come new are asked for, too.
    """
    before = [np.concatenate([[0], np.cumsum(times < date)]) for date in (dev_from, test_from)]  # (E + 1,)
    train, dev_end = (np.diff(count[offsets]) for count in before)  # (U,) where the periods begin
    ends = np.diff(offsets)
    dev, test = (train, dev_end) if target == "first" else (dev_end - 1, ends - 1)
    dev = np.where((dev > 0) & (train < dev_end), dev, -1)
    return Places(train, dev, np.where((test > 0) & (dev_end < ends), test, -1))
