"""A time at which training stops by itself, with its state saved: for machines that are lent by the minute.

with time_limit(540):
    phase2(params, seed, "ILM", build=True)  # raises OutOfTime; the same call goes on from there, another day
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ilm_lib import processes
from ilm_lib.errors import Refusal

_until: list[float] = []  # of the limits that hold, by the monotonic clock


class OutOfTime(Refusal, TimeoutError):
    """The time limit is over; what was running has saved its state and goes on when it is run again."""


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Within it, what can go on later stops `seconds` from now; None: no limit."""
    _until.append(time.monotonic() + (float("inf") if seconds is None else seconds))
    try:
        yield
    finally:
        _until.pop()


def is_over() -> bool:
    """Whether a limit that holds is over; of several processes one's clock tells."""
    return bool(_until) and processes.agreed(lambda: time.monotonic() >= min(_until))
