"""A global temporal split: one date ends the training of all users, so that nobody's future is in anything trained.

Which users and items there are (the k-core, the catalogue) is still read off the whole data, as it is everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ilm_lib.data.dataset import Dataset
from ilm_lib.data.splits import by_date
from ilm_lib.data.time_order import TIMES, read_times
from ilm_lib.sections import Target
from ilm_lib.values import Moment


def split_by_date(
    dataset: Dataset, folder: Path, dev_from: Moment, test_from: Moment, target: Target = "first"
) -> Dataset:
    """The dataset with a temporal split in place of leave-one-out.

    Training is all that happened before `dev_from`. A user's dev target is the first or the last interaction from there
    to `test_from`, the test target the first or last from there on. Items that training does not have stay in the
    catalogue.

    `notes` gains the counts of users without a target, of items that are in no training, and of targets among these.

    Args:
        dataset: as `load_openp5` read it from the folder.
        folder: where user_time.txt is.
        dev_from, test_from: the share of all interactions that lies before; or a day as 2015-06-01, from midnight UTC
            on, which asks for times in unix seconds.
        target: as in `splits.by_date`.

    Raises:
        DataError: as `read_times`.
    """
    times, checksum = read_times(folder, dataset)
    dates = [_moment(times, at) for at in (dev_from, test_from)]
    split = replace(dataset, held_out=by_date(times, dataset.offsets, *dates, target))
    known = np.zeros(dataset.num_items, bool)
    known[split.train_matrix().indices] = True
    dev, test = split.dev_targets(), split.test_targets()
    notes = {
        "users_without_a_dev_target": int((dev < 0).sum()),
        "users_without_a_test_target": int((test < 0).sum()),
        "items_not_in_training": int((~known).sum()),
        "dev_targets_not_in_training": int((~known[dev[dev >= 0]]).sum()),
        "test_targets_not_in_training": int((~known[test[test >= 0]]).sum()),
    }
    return replace(split, notes=dataset.notes | notes, checksums=dataset.checksums | {TIMES: checksum})


def _moment(times: np.ndarray, at: Moment) -> int:
    """A moment in the unit of the times."""
    if isinstance(at, str):
        return int(datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())
    rank = min(round(at * len(times)), len(times) - 1)
    return int(np.partition(times, rank)[rank])
