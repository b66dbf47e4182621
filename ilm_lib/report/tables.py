"""Tables: our numbers beside the paper's, and claims, as a notebook and the report show them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import pandas as pd
from IPython.display import HTML

from ilm_lib.methods import METHODS
from ilm_lib.paper import LOWER_IS_BETTER, METRICS, PAPER, PAPER_SE, RESULT_COLUMNS
from ilm_lib.report.html import html_table, table_css
from ilm_lib.report.result_plots import order_tasks, select, summarise
from ilm_lib.report.results import Claim

_SAME = [c for c in RESULT_COLUMNS if c not in ("seed", "value", "n")]


def _cell(mean: float, se: float, binomial: bool = False) -> str:
    return f"{mean:.4f}" + ("" if math.isnan(se) else f" ± {se:.4f}") + ("†" if binomial else "")


def table_beside_paper(
    results: pd.DataFrame, table: str, dataset: str, paper_dataset: str | None = None, *, history: str,
    task: str | None = None, metrics: Sequence[str] = METRICS, rows: str = "method",
    paper: pd.DataFrame = PAPER, paper_table: str | None = None, paper_label: str = "paper",
) -> pd.DataFrame:  # fmt: skip
    """Our means over seeds beside the published ones, as text cells "0.1234 ± 0.0012".

    The error is the standard error over seeds; with one seed that of a binomial for hit rates,
    marked †, and none for the rest. Published numbers show only for the same history rule.

    Args:
        paper_dataset: whose published columns to show; by default those of `dataset`, if any.
        history: "kept", "excluded", or "" for text tasks; never mixed in one table.
        task: one task only; by default every task has its columns.
        rows: "method" (columns: task and prompt, metric, source) or "task" (columns: method, ...).

    Raises:
        ValueError: no such table, data set, history rule or task in `results`, or two read-outs of one method.
    """
    theirs = paper[(paper["table"] == (paper_table or table)) & (paper["history"] == history)]
    theirs = theirs[theirs["dataset"].str.casefold() == (paper_dataset or dataset).casefold()]
    theirs = theirs.merge(PAPER_SE, on=_SAME, how="left", suffixes=("", "_se")).assign(source=paper_label)
    if task is not None:
        theirs = theirs[theirs["task"] == task]
    only = {"task": task} if task is not None else {}
    ours = summarise(select(results, table=table, dataset=dataset, history=history, **only)).assign(source="ours")
    theirs = theirs.rename(columns={"value": "mean", "value_se": "se"}).assign(binomial=False, seeds=0)
    theirs = theirs.merge(ours[["task", "prompt", "metric"]].drop_duplicates())  # no column without ours
    both = pd.concat([part for part in (ours, theirs) if len(part)])
    both = both[both["metric"].isin(metrics)]
    tasks = order_tasks(both["task"])
    sources = ["ours", paper_label] if len(theirs) else ["ours"]

    def place(r: dict) -> tuple[tuple, tuple, tuple]:
        names = {"both": "both tasks", "all": "all tasks"}
        prompt = f"{r['prompt']} prompt" if r["prompt"] else ""
        group = [
            r["method"] if rows == "task" else names.get(r["task"], r["task"]),
            variant_label(r["variant"]),
            prompt,
        ]
        column = ", ".join(g for g in group if g), r["metric"], r["source"]
        method, at = list(METHODS).index(r["method"]), tasks.index(r["task"])
        outer = method if rows == "task" else at
        rank = outer, *_by_number(r["variant"]), r["prompt"], METRICS.index(r["metric"]), sources.index(r["source"])
        return (at, r["task"]) if rows == "task" else (method, r["method"]), rank, column[: len(sources) + 1]

    cells: dict[tuple, str] = {}
    for r in both.to_dict("records"):
        if (at := place(r)) in cells:
            raise ValueError(
                f"{r['method']}, {r['metric']}: choose one readout of {sorted(set(both['readout']) - {''})}"
            )
        cells[at] = _cell(r["mean"], r["se"], r["binomial"])
    index = [label for _, label in sorted({row for row, _, _ in cells})]
    columns = [c for _, c in sorted({(rank, c) for _, rank, c in cells})]
    heads = pd.MultiIndex.from_tuples(columns)
    out = pd.DataFrame("–", index=pd.Index(index, name=rows), columns=heads, dtype=object)
    for ((_, label), _, column), text in cells.items():
        out.at[label, column] = text
    most = int(ours["seeds"].max())
    stay = {"kept": "stay in", "excluded": "leave"}
    rule = f"Items of the history {stay[history]} the ranking. " if history else ""
    count = f"{most}" if ours["seeds"].min() == most else f"up to {most}"
    error = f"± standard error over {count} seeds. " if most > 1 else ""
    dagger = "† one seed: binomial standard error. " if ours["binomial"].any() else ""
    out.attrs["note"] = (rule + error + dagger).strip() or "One seed, no error known."
    return out


def variant_label(variant: str) -> str:
    """A variant in words: "query_tokens=4" -> "4 query tokens"."""
    key, _, value = variant.partition("=")
    return f"{value} {key.replace('_', ' ')}" if value.isdigit() else variant.replace("_", " ")


def _by_number(variant: str) -> tuple[int, str]:
    value = variant.partition("=")[2]
    return (int(value), "") if value.isdigit() else (-1, variant)


def best_cells(df: pd.DataFrame) -> frozenset[tuple[int, int]]:
    """Positions (row, column) of the best value of each column that holds a metric; ties all count.

    In a table with a row a task, the best method of each row instead. "Oracle" is a bound
    that has seen the answer, so it never counts.
    """
    by_row = df.index.name == "task"
    groups: dict[tuple, list[tuple[float, int, int]]] = {}
    for j, column in enumerate(df.columns):
        names = column if isinstance(column, tuple) else (column,)
        metric = next((n for n in names if n in METRICS), None)
        for i, label in enumerate(df.index):
            number = re.match(r"-?\d*\.?\d+", str(df.iat[i, j]))
            if metric and number and "Oracle" not in (label, names[0]):
                sign = -1 if metric in LOWER_IS_BETTER else 1
                groups.setdefault((i, *names[1:]) if by_row else (j,), []).append((sign * float(number[0]), i, j))
    return frozenset((i, j) for g in groups.values() if len(g) > 1 for v, i, j in g if v == max(g)[0])


def show(df: pd.DataFrame, caption: str = "") -> HTML:
    """A table for a notebook: numbers to the right, best value of each metric bold, scrolls when wide."""
    return HTML(f"<style>{table_css()}</style>{html_table(df, caption, best_cells(df))}")


def claims_table(claims: Iterable[Claim] | pd.DataFrame) -> pd.DataFrame:
    """Claims as text cells for `show`: verdict, claim and reason first, interval and p-value in reading form."""
    rows = claims if isinstance(claims, pd.DataFrame) else pd.DataFrame([asdict(c) for c in claims])

    def number(v: object) -> str:
        return f"{v:.4g}" if isinstance(v, float) else str(v)

    def p(v: float) -> str:
        return "–" if math.isnan(v) else "< 0.001" if v < 0.001 else f"{v:.3f}"

    cells = [
        (r["verdict"], r["claim"], r["reason"], number(r["paper"]), number(r["ours"]),
         "–" if math.isnan(r["ci_low"]) else f"[{r['ci_low']:+.4f}, {r['ci_high']:+.4f}]",
         p(r["p_value"]), str(r["seeds"]), r["evidence"])
        for r in rows.to_dict("records")
    ]  # fmt: skip
    columns = ["verdict", "claim", "why", "paper", "ours", "95% interval", "p", "seeds", "evidence"]
    return pd.DataFrame(cells, columns=columns)
