"""The order of interactions in time, and the tie rule.

OpenP5 sorts by time with an unstable sort, so its order among equal timestamps is arbitrary: for users whose last
ratings share a timestamp the held-out items here may differ from OpenP5's.
"""

from __future__ import annotations

import pandas as pd


def in_time_order(interactions: pd.DataFrame) -> pd.DataFrame:
    """Sorted by timestamp; equal ones stay in the order of the rows."""
    return interactions.sort_values("timestamp", kind="stable", ignore_index=True)
