"""What the ELM-24 stages show: scored texts, means by film, rows of results.csv."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from ilm_lib.metrics import log_perplexity
from ilm_lib.paper import RESULT_COLUMNS
from ilm_lib.settings import Params
from ilm_lib.study.artifacts import Artifact
from ilm_lib.study.elm import evaluation


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


def all_result_rows(params: Params, methods: Sequence[str]) -> pd.DataFrame:
    """`result_rows` of methods over the report's seeds."""
    runs = [(m, seed) for m in methods for seed in params.report_seeds]
    return pd.concat([result_rows(scored(evaluation(params, seed, m)), m, seed) for m, seed in runs])
