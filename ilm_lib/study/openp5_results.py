"""What the OpenP5 stages show: metrics of every user, rows of results.csv, and where the losses of a profile lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ilm_lib.methods import METHODS
from ilm_lib.metrics import ranking_metrics
from ilm_lib.paper import RESULT_COLUMNS
from ilm_lib.settings import Params
from ilm_lib.study import inputs, stages
from ilm_lib.study.artifacts import Artifact
from ilm_lib.study.openp5 import evaluation, sasrec
from ilm_lib.tasks.openp5 import TASKS


def by_user(
    params: Params, method: str, prompt: str, history: str, task: str = "both", *, build: bool = False
) -> dict[str, np.ndarray]:
    """HR and NDCG of every test user, (U',) each: means over the report's seeds and the tasks asked for.

    Users are what a bootstrap may draw: the two tasks of a user have one answer.
    """
    runs = [
        per_user_metrics(evaluation(params, seed, method, build=build), task, prompt, history)
        for seed in params.report_seeds
    ]
    tasks = len(TASKS) if task == "both" else 1
    return {metric: np.mean([run[metric].reshape(tasks, -1).mean(0) for run in runs], 0) for metric in runs[0]}


def per_user_metrics(artifact: Artifact, task: str, prompt: str, history: str) -> dict[str, np.ndarray]:
    """HR and NDCG of every test example. Task "both" counts the two tasks together (12,080 on ML1M)."""
    with np.load(artifact.path("tops.npz")) as saved:
        target = saved["target"]
        tasks = TASKS if task == "both" else (task,)
        tops = [saved[f"{t}|{prompt}|{history}"] for t in tasks]
    return ranking_metrics(np.concatenate(tops), np.concatenate([target] * len(tops)))


def result_rows(
    params: Params, artifact: Artifact, method: str, seed: int, table: str = "table3", *, variant: str = ""
) -> pd.DataFrame:
    """An evaluation as rows of `results.csv`.

    Args:
        variant: what differs from the profile, e.g. "query_tokens=4".
    """
    readout = "" if METHODS[method].encoder is None else "beam"
    rows = []
    for task in (*TASKS, "both"):
        for prompt in params.evaluation.prompts:
            for history in params.evaluation.histories:
                for metric, values in per_user_metrics(artifact, task, prompt, history).items():
                    key = (table, params.data.name, task, prompt, history, readout, method, variant, seed, metric)
                    rows.append((*key, float(values.mean()), len(values)))
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


def all_result_rows(
    params: Params, methods: Sequence[str], table: str = "table3", *, build: bool = False
) -> pd.DataFrame:
    """`result_rows` of methods over the report's seeds."""
    return pd.concat(
        [
            result_rows(params, evaluation(params, seed, method, build=build), method, seed, table)
            for seed in params.report_seeds
            for method in methods
        ]
    )


def history_share(params: Params, method: str, task: str) -> float:
    """Share of the ten items ranked first, seen prompts and history kept, that the user has had already.

    In training every straightforward target is an item of the user's own past: the better a model knows a user, the
    more of its list is history, and the fewer places are left for the next item.
    """
    seen, shares = inputs.dataset(params).seen_matrix("test"), []
    for seed in params.report_seeds:
        with np.load(evaluation(params, seed, method).path("tops.npz")) as saved:
            top, users = saved[f"{task}|seen|kept"], saved["users"]
        had = seen[np.repeat(users, top.shape[1]), np.maximum(top, 0).ravel()]
        shares.append(float((np.asarray(had).reshape(top.shape) & (top >= 0)).mean()))
    return float(np.mean(shares))


def dev_score(params: Params, seed: int, method: str, *, build: bool = False) -> dict[str, float]:
    """What a run is chosen by, and what phase 1 says of it on held-out pairs.

    Keys: "dev HR@10", "dev NDCG@10" of the kept checkpoint (history kept, both tasks), and those of `phase1.heldout`.
    """
    aligned = stages.phase1(params, seed, method, build=build) if METHODS[method].phase1 else None
    best = best_on_dev(stages.phase2(params, seed, method, build=build))
    return (_last_heldout(aligned) if aligned else {}) | best


def best_on_dev(trained: Artifact) -> dict[str, float]:
    """ "dev HR@10" and "dev NDCG@10" of the weights that a training kept."""
    steps = pd.read_parquet(trained.path("log.parquet")).pivot(index="step", columns="name", values="value")
    best = steps.loc[steps["dev NDCG@10"].idxmax()]
    return {name: float(best[name]) for name in ("dev HR@10", "dev NDCG@10")}


def _last_heldout(aligned: Artifact) -> dict[str, float]:
    log = pd.read_parquet(aligned.path("log.parquet"))
    return log[log["split"] == "heldout"].groupby("name")["value"].last().to_dict()


def loss_ranges(params: Params) -> pd.DataFrame:
    """Where each loss of the profile's runs starts and ends, lowest to highest over the seeds, as text: what another
    run can be held against. Train values are means over a twentieth of the steps (a tenth in phase 1)."""
    rows = pd.concat([_training_logs(params, seed) for seed in params.report_seeds]).sort_values("step", kind="stable")
    values = rows.groupby(["run", "name", "seed", "split"], sort=False)["value"]
    first, last = values.first().unstack("split"), values.last().unstack("split")
    ends = pd.DataFrame({"train, start": first["train"], "train, end": last["train"], "held out, end": last["heldout"]})
    low, high = (ends.groupby(level=["run", "name"], sort=False).agg(f) for f in ("min", "max"))
    text = {column: [_span(a, b) for a, b in zip(low[column], high[column])] for column in ends}
    out = pd.DataFrame(text, index=low.index).reset_index().rename(columns={"name": "loss or measure"})
    return out.sort_values("run", kind="stable", ignore_index=True)


def _training_logs(params: Params, seed: int) -> pd.DataFrame:
    trained = [m for m in params.methods if METHODS[m].encoder != "none"]
    runs = {"backbone": stages.backbone(params, seed), "SASRec": sasrec(params, seed)}
    runs |= {f"phase 2, {m}": stages.phase2(params, seed, m) for m in trained}
    runs |= {f"phase 1, {m}": stages.phase1(params, seed, m) for m in trained if METHODS[m].phase1}
    logs = {name: artifact.path("log.parquet") for name, artifact in runs.items()}
    return pd.concat(
        [pd.read_parquet(path).assign(run=name, seed=seed) for name, path in logs.items() if path.exists()]
    )


def _span(low: float, high: float) -> str:
    if np.isnan(low):
        return ""
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"
