"""How much the protocol moves a figure: a date in place of leave-one-out, the order inside ties, items that are cold.

    python -m bench.protocols dates openp5/latest-small  HR@10 and NDCG@10 of the baselines under both splits
    python -m bench.protocols ties openp5/latest-small   the spread over orders of items of one second
    python -m bench.protocols cold openp5/Beauty         nearest neighbours by text on 5% of the items

A folder is relative to ILM_DATA_DIR and in OpenP5's form; dates and ties need its user_time.txt. History excluded.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ilm_lib.arguments import Parser, whole
from ilm_lib.baselines.cf import CFEmbeddings, fit_cf, fold_in, top_k
from ilm_lib.baselines.nearest_text import Pool, nearest_text_scores, text_vectors
from ilm_lib.baselines.popularity import popularity_top_k
from ilm_lib.baselines.sasrec import sasrec_top_k, train_sasrec
from ilm_lib.data import Dataset, data_dir, load_openp5
from ilm_lib.data.cold import withhold
from ilm_lib.data.own_profile import Sizes, settings
from ilm_lib.data.splits import Split
from ilm_lib.data.temporal import split_by_date
from ilm_lib.data.time_order import read_times, shuffle_ties
from ilm_lib.metrics import ranking_metrics
from ilm_lib.settings import SASRec
from ilm_lib.tasks.cold import rank_cold

Figures = dict[str, float]
POOLS: tuple[tuple[Pool, int | None], ...] = (("mean", None), ("mean", 20), ("mean", 5), ("mean", 1), ("max", None))


def figures(data: Dataset, split: Split, top: np.ndarray) -> Figures:
    """HR@10 and NDCG@10 over the users who have a target; `top` is of these users."""
    target = (data.dev_targets() if split == "dev" else data.test_targets())[data.users_of(split)]
    return {name: float(values.mean()) for name, values in ranking_metrics(top, target).items() if "10" in name}


def popularity(data: Dataset, split: Split) -> Figures:
    top = popularity_top_k(data.train_matrix(), 10, exclude=data.seen_matrix(split))
    return figures(data, split, top[data.users_of(split)])


def ials(data: Dataset, split: Split, seed: int, *, folded: bool, dim: int = 64) -> Figures:
    """By the user's vector of the training part, or by one that is folded in from all of the history."""
    cf, users, seen = fit_cf(data.train_matrix(), dim=dim, seed=seed), data.users_of(split), data.seen_matrix(split)
    if folded:
        items, fold = cf.scaled_table()[: data.num_items], fold_in(cf)
        made = np.zeros((data.num_users, dim), np.float32)
        made[users] = fold.many(items, [data.history(u, split) for u in users])
        cf = CFEmbeddings(made, items)
    return figures(data, split, top_k(cf, 10, exclude=seen)[users])


def sasrec(data: Dataset, split: Split, seed: int, *, steps: int | None) -> Figures:
    """With the settings that a profile of one's own gets by its size, but for the steps where they are given."""
    sized = settings(Sizes.of(data), data.name, "x", "x")["sasrec"]
    params = SASRec(**sized | ({"steps": steps, "eval_every": max(1, steps // 4)} if steps else {}))
    model, _ = train_sasrec(data, params, seed=seed)
    return figures(data, split, sasrec_top_k(model, data, split, 10, exclude=True, users=data.users_of(split)))


def spread(name: str, found: Sequence[Figures]) -> None:
    """Print the mean of each figure, its standard deviation and range over runs."""
    for metric in found[0]:
        v = np.array([one[metric] for one in found])
        deviation = v.std(ddof=1) if len(v) > 1 else np.nan
        print(f"{name:44} {metric:8} {v.mean():.4f} sd {deviation:.4f} {v.min():.4f} to {v.max():.4f}, {len(v)} runs",
              flush=True)  # fmt: skip


def dates(folder: Path, seeds: int, steps: int | None) -> None:
    """Both protocols, side by side."""
    whole = load_openp5(folder)
    for name, data in {"leave one out": whole, "temporal .8 .9": split_by_date(whole, folder, 0.8, 0.9)}.items():
        print(name, len(data.users_of("dev")), "dev and", len(data.users_of("test")), "test users;", data.notes)
        spread(f"{name}: popularity", [popularity(data, "test")])
        for folded in (False, True):
            label = f"{name}: iALS{', history folded in' if folded else ''}"
            spread(label, [ials(data, "test", seed, folded=folded) for seed in range(seeds)])
        if steps != 0:
            spread(f"{name}: SASRec", [sasrec(data, "test", seed, steps=steps) for seed in range(seeds)])


def ties(folder: Path, seeds: int, steps: int | None) -> None:
    """The same seeds of training under one order and many: what is more than the seeds' own spread is the order's."""
    data = load_openp5(folder)
    times, _ = read_times(folder, data)
    ends = data.offsets[1:]
    tied = (times[ends - 1] == times[ends - 2]).mean()
    print(f"the last two items tie for {tied:.1%} of {data.num_users} users")
    orders = [shuffle_ties(data, times, seed) for seed in range(seeds)]
    moved = np.mean([np.mean(o.test_targets() != data.test_targets()) for o in orders])
    print(f"a shuffle changes the test item of {moved:.1%} of them")
    methods = {"iALS": partial(ials, folded=False), "SASRec": partial(sasrec, steps=steps)}
    for name, measure in list(methods.items())[: 1 if steps == 0 else 2]:
        spread(f"{name}: file order, seeds", [measure(data, "test", seed) for seed in range(seeds)])
        spread(f"{name}: shuffled ties, seed 0", [measure(o, "test", 0) for o in orders])


def cold(folder: Path, seeds: int, steps: int | None, share: float = 0.05) -> None:
    """Pooling is chosen on another draw, whose items are not those of the test."""
    data = load_openp5(folder)
    vectors = text_vectors(data)
    warm, test = withhold(data, share)
    rest = replace(warm, texts=[{} if i in test.items else t for i, t in enumerate(warm.texts)])
    dev_warm, dev = withhold(rest, share, seed=1)
    chosen, best = POOLS[0], -1.0
    for pool, last in POOLS:
        score = lambda users, histories, pool=pool, last=last: nearest_text_scores(
            vectors, histories, pool=pool, last=last
        )
        top = rank_cold(score, dev_warm, dev)["cold"]
        value = float(ranking_metrics(top, dev.targets)["NDCG@10"].mean())
        print(f"dev, {pool} of {last or 'all'}: NDCG@10 among cold {value:.4f}", flush=True)
        if value > best:
            chosen, best = (pool, last), value
    pool, last = chosen
    print(f"{data.name}: {warm.notes}; chance HR@10 among cold {10 / len(test.items):.4f}")
    counts = warm.item_counts().astype(np.float32)[None]
    methods = {
        f"nearest text, {pool} of {last or 'all'}": lambda users, h: nearest_text_scores(
            vectors, h, pool=pool, last=last
        ),
        "popularity": lambda users, h: np.repeat(counts, len(h), axis=0),
    }
    for name, score in methods.items():
        for which, top in rank_cold(score, warm, test).items():
            found = {k: float(v.mean()) for k, v in ranking_metrics(top, test.targets).items() if "10" in k}
            spread(f"{name}, among {which}", [found])


def main() -> None:
    parser = Parser(prog="python -m bench.protocols", description=__doc__)
    parser.add_argument("what", choices=("dates", "ties", "cold"))
    parser.add_argument("folder")
    parser.add_argument("--seeds", type=whole(1000), default=3)
    parser.add_argument(
        "--steps", type=whole(10**6, 0), help="of SASRec (default: by the size of the data); 0: leave it out"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"dates": dates, "ties": ties, "cold": cold}[args.what](data_dir() / args.folder, args.seeds, args.steps)


if __name__ == "__main__":
    sys.exit(main())
