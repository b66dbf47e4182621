"""ILM beside others: in every cell of Table 3, task by task, and over LLMs that have read more or less."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from ilm_lib.metrics import holm, paired_bootstrap
from ilm_lib.paper import RANKING_METRICS
from ilm_lib.settings import Params
from ilm_lib.study import openp5, openp5_results
from ilm_lib.tasks.openp5 import TASKS


def cells(params: Params, baselines: Sequence[str], history: str = "kept", *, build: bool = False) -> pd.DataFrame:
    """ILM against baselines in every cell of Table 3: a row a baseline, prompt and metric.

    Columns baseline, prompt, metric, ours, theirs, diff, low, high, p, and "p corrected" for all rows (Holm).
    """
    rows = []
    for prompt in params.evaluation.prompts:
        ours = openp5_results.by_user(params, "ILM", prompt, history, build=build)
        for other in baselines:
            theirs = openp5_results.by_user(params, other, prompt, history, build=build)
            rows += [
                (other, prompt, m, ours[m].mean(), theirs[m].mean(), *paired_bootstrap(ours[m], theirs[m]))
                for m in RANKING_METRICS
            ]
    out = pd.DataFrame(rows, columns=["baseline", "prompt", "metric", "ours", "theirs", "diff", "low", "high", "p"])
    return out.assign(**{"p corrected": holm(out["p"].to_numpy())})


def cells_table(table: pd.DataFrame) -> pd.DataFrame:
    """`cells` as text for `show`: a row a baseline and prompt, in every column the difference and its corrected p."""
    p = lambda value: "–" if math.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"
    text = [f"{r['diff']:+.4f}, p {p(r['p corrected'])}" for r in table.to_dict("records")]
    wide = table.assign(text=text).pivot(index=["baseline", "prompt"], columns="metric", values="text")
    order = table[["baseline", "prompt"]].drop_duplicates().sort_values("prompt", kind="stable")
    wide = wide.loc[pd.MultiIndex.from_frame(order), list(RANKING_METRICS)]
    return wide.add_prefix("Δ ").reset_index()  # no metric's name: `show` would mark the best of a column


def gain_by_task(params: Params) -> pd.DataFrame:
    """HR@10 of ILM and of the LLM without it, seen prompts: a row a task and history rule.

    Columns task, history, ILM, OpenP5-R, ratio, diff, low, high, p (bootstrap over users).
    """
    rows = []
    for task in TASKS:
        for history in params.evaluation.histories:
            ours, theirs = (
                openp5_results.by_user(params, m, "seen", history, task)["HR@10"] for m in ("ILM", "OpenP5-R")
            )
            means = ours.mean(), theirs.mean()
            ratio = means[0] / means[1] if means[1] else math.nan
            rows.append((task, history, *means, ratio, *paired_bootstrap(ours, theirs)))
    return pd.DataFrame(rows, columns=["task", "history", "ILM", "OpenP5-R", "ratio", "diff", "low", "high", "p"])


def gain_by_reading(params: Params, *, build: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Results over LLMs that were frozen earlier or later (`ablations.backbone_steps`), with the profile's seed alone.

    Returns:
        rows of `results.csv`, table "prompts read"; and `gain_by_task` over each LLM, with a column "prompts": how many
        about a user it has read.
    """
    params, rows, gains = params.with_(seeds=(params.seed,)), [], []
    for steps in params.ablations.backbone_steps:
        other = openp5.beside(params, "backbone.steps", steps)
        read = openp5.prompts_read(other)
        for m in [m for m in ("OpenP5-R", "MLP", "ILM") if m in params.methods]:
            found = openp5_results.result_rows(
                other, openp5.evaluation(other, params.seed, m, build=build), m, params.seed, "prompts read"
            )
            found = found[(found["prompt"] == "seen") & found["task"].isin(TASKS)]
            rows.append(found.assign(variant=f"prompts_read={read}"))
        own = gain_by_task(other)
        own.insert(2, "prompts", read)
        gains.append(own)
    return pd.concat(rows), pd.concat(gains).sort_values(["task", "history", "prompts"], ignore_index=True)
