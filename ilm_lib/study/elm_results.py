"""What the ELM-24 stages show: scored texts, means by film, rows of results.csv."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from ilm_lib.metrics import log_perplexity, paired_bootstrap
from ilm_lib.paper import RESULT_COLUMNS
from ilm_lib.settings import Params
from ilm_lib.study.artifacts import Artifact
from ilm_lib.study.elm import evaluation
from ilm_lib.study.probes import picked


def scored(artifact: Artifact) -> pd.DataFrame:
    """Test rows with nll (nats), tokens, generated and SC (cosine)."""
    return pd.read_parquet(artifact.path("scored.parquet"))


def by_film(params: Params, method: str) -> pd.DataFrame:
    """Log perplexity and SC of every test film, (F, 2): means over its rows and over the report's seeds."""
    tables = [scored(evaluation(params, seed, method)) for seed in params.report_seeds]
    rows = pd.concat([table.assign(log_pplx=table["nll"] / table["tokens"]) for table in tables])
    return rows.groupby("item")[["log_pplx", "SC"]].mean()


def result_rows(rows: pd.DataFrame, method: str, seed: int, table: str = "table1") -> pd.DataFrame:
    """Scored rows as rows of `results.csv`: each task and "all", log perplexity per target token and SC."""
    found = []
    for task, part in [*rows.groupby("task", sort=False), ("all", rows)]:
        values = {
            "log_pplx": log_perplexity(part["nll"].sum(), int(part["tokens"].sum())),
            "SC": float(part["SC"].mean()),
        }
        key = {"table": table, "dataset": "ELM24", "task": task, "method": method, "seed": seed}
        found += [{**key, "metric": metric, "value": value, "n": len(part)} for metric, value in values.items()]
    return pd.DataFrame(found).reindex(columns=list(RESULT_COLUMNS), fill_value="")


def picked_table(
    texts: Mapping[str, pd.DataFrame], films: Sequence[dict], embed: Callable[[Sequence[str]], np.ndarray]
) -> pd.DataFrame:
    """How often the right film of four is told by its summary (`probes.picked`): a row a method.

    Args:
        texts: scored rows by method.
        films: (I,) text records; those without a plot are left out.

    Returns:
        columns "summary by", films, picked, from, to: the rate and its 95% interval, a bootstrap over films.
    """
    rows = []
    for method, scored_rows in texts.items():
        summary = scored_rows[(scored_rows["task"] == "summary")].set_index("item")["generated"]
        summary = summary[[bool(films[i].get("overview")) for i in summary.index]]
        if len(summary) < 4:
            continue
        rate = picked(embed([*summary]), embed([films[i]["overview"] for i in summary.index]))
        test = paired_bootstrap(rate, np.full(len(rate), 0.25))
        rows.append((method, len(rate), rate.mean(), 0.25 + test.ci_low, 0.25 + test.ci_high))
    return pd.DataFrame(rows, columns=["summary by", "films", "picked", "from", "to"])


def all_result_rows(params: Params, methods: Sequence[str]) -> pd.DataFrame:
    """`result_rows` of methods over the report's seeds."""
    runs = [(m, seed) for m in methods for seed in params.report_seeds]
    return pd.concat([result_rows(scored(evaluation(params, seed, m)), m, seed) for m, seed in runs])
