"""Their side of `bench.rectools_check`: RecTools' own metrics and SASRec, in the interpreter that has RecTools.

    python bench/rectools_side.py given.npz found.npz

RecTools wants NumPy 1 on Python 3.12 and older, and the library NumPy 2, so the two meet in files of arrays alone.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG, HitRate


def main(given: str, found: str) -> None:
    """Read the arrays of `rectools_check.exchange`, write what it reads."""
    with np.load(given, allow_pickle=False) as file:
        arrays = dict(file)
    hits, ndcg = measured(arrays["top"], arrays["target"])
    out = {"hits": hits, "ndcg": ndcg}
    if "settings" in arrays:
        asked = json.loads(str(arrays["settings"]))
        for seed in asked["seeds"]:
            out[f"top.{seed}"] = ranked(arrays["sequences"], arrays["offsets"], asked, seed)
    np.savez(found, **out)


def measured(top: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(U,) HR@10 and (U,) NDCG@10 of (U, 10) items, best first, -1 for none, by their metrics.

    Their NDCG divides by the gain of ten relevant items unless told otherwise; a user has one here.
    """
    user, place = np.nonzero(top >= 0)
    listed = pd.DataFrame({Columns.User: user, Columns.Item: top[user, place], Columns.Rank: place + 1})
    wanted = pd.DataFrame({Columns.User: np.arange(len(target)), Columns.Item: target})
    metrics = (HitRate(k=10), NDCG(k=10, divide_by_achievable=True))
    values = [metric.calc_per_user(listed, wanted).sort_index() for metric in metrics]
    return values[0].to_numpy(float), values[1].to_numpy(float)


def ranked(sequences: np.ndarray, offsets: np.ndarray, asked: dict, seed: int) -> np.ndarray:
    """(U, 10) items that their SASRec expects after each user's history, dev item included, that are not in it.

    It learns from all but the last two items; the epoch with the best NDCG@10 on the last but one is kept.
    """
    import torch
    from pytorch_lightning import seed_everything
    from rectools.models import SASRecModel

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    seed_everything(seed, verbose=False)
    length = np.diff(offsets)
    user = np.repeat(np.arange(len(length)), length)
    inside = np.arange(len(sequences)) - offsets[:-1][user]
    table = pd.DataFrame({Columns.User: user, Columns.Item: sequences, Columns.Weight: 1.0})
    table[Columns.Datetime] = pd.Timestamp("2000-01-01") + pd.to_timedelta(inside, unit="s")
    part = lambda held_out: Dataset.construct(table[inside < length[user] - held_out])
    train, with_dev, everyone = part(2), part(1), np.arange(len(length))
    model, best, top = SASRecModel(**asked["model"]), -1.0, np.empty(0)
    for _ in range(asked["rounds"]):
        model.fit_partial(train, asked["epochs"], asked["epochs"])
        on_dev = measured(listed_items(model, train, everyone), sequences[offsets[1:] - 2])[1].mean()
        if on_dev > best:
            best, top = on_dev, listed_items(model, with_dev, everyone)
    return top


def listed_items(model, dataset: Dataset, users: np.ndarray) -> np.ndarray:
    """(U, 10) items, -1 where the list is shorter."""
    top = np.full((len(users), 10), -1)
    listed = model.recommend(users, dataset, k=10, filter_viewed=True)
    top[listed[Columns.User], listed[Columns.Rank] - 1] = listed[Columns.Item]
    return top


if __name__ == "__main__":
    main(*sys.argv[1:])
