"""Figures of results: error bars, a legend, units on the axes.

Filters left at None must be unique in the rows given, so rows of two data sets, prompts or history
rules are never averaged together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ilm_lib.methods import in_order
from ilm_lib.metrics import mean_se
from ilm_lib.paper import ELM_TASKS, RESULT_COLUMNS, SUCCESS_METRICS, TEXT_METRICS
from ilm_lib.report.speed import short_names
from ilm_lib.report.style import MARKERS, PALETTE, SERIES, plain_log, styled


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """One row for each key without the seed: mean, se, seeds, n, binomial.

    With one seed the error of a hit rate is sqrt(v (1 - v) / n) over its n examples and
    `binomial` is True; any other metric of one seed has no error (NaN).
    """
    keys = [c for c in RESULT_COLUMNS if c not in ("seed", "value", "n")]
    rows = []
    for key, group in results.groupby(keys, sort=False, dropna=False):
        (mean, se), n = mean_se(group["value"]), group["n"].max()
        metric = key[keys.index("metric")]
        counted = metric.startswith("HR@") or metric in SUCCESS_METRICS
        binomial = len(group) == 1 and counted and pd.notna(n) and 0 <= mean <= 1
        if binomial:
            se = float(np.sqrt(mean * (1 - mean) / float(n)))
        rows.append((*key, mean, se, len(group), n, binomial))
    return pd.DataFrame(rows, columns=[*keys, "mean", "se", "seeds", "n", "binomial"])


def select(results: pd.DataFrame, **filters: str | None) -> pd.DataFrame:
    """Rows matching each filter; a column given as None must hold a single value.

    Raises:
        ValueError: nothing is left, or a column given as None holds several values.
    """
    for column, wanted in sorted(filters.items(), key=lambda f: f[1] is None):  # given ones first
        present = list(dict.fromkeys(results[column]))
        if wanted is None and len(present) > 1:
            raise ValueError(f"choose one {column} of {present}")
        if wanted is not None:
            results = results[results[column] == wanted]
            if results.empty:
                raise ValueError(f"no rows with {column}={wanted!r}; there are {present}")
    return results


def _error_note(rows: pd.DataFrame) -> str:
    most, binomial = rows["seeds"].max(), rows["binomial"].any()
    if most == 1:
        return "one seed; bars: ± 1 binomial standard error" if binomial else "one seed, no error bars"
    seeds = f"{most}" if rows["seeds"].min() == most else f"up to {most}"
    return f"bars: ± 1 standard error over {seeds} seeds" + (" (binomial for one seed)" if binomial else "")


def _axis_label(metric: str) -> str:
    units = {"SC": "Semantic consistency (cosine)", "log_pplx": "Log perplexity (nats per token)"}
    unit = "fraction of test cases" if metric.startswith("HR@") else "mean over test cases"
    return units.get(metric, f"{metric} ({unit})")


@styled
def plot_metric_by_method(
    results: pd.DataFrame, metric: str, *, table: str | None = None, dataset: str | None = None,
    history: str | None = None, task: str | None = None, title: str | None = None,
) -> Figure:  # fmt: skip
    """Dot plot of one metric, a row a method; hollow dots are the unseen prompt."""
    rows = summarise(select(results, table=table, metric=metric, dataset=dataset, history=history, task=task))
    methods = in_order(rows["method"])
    fig, ax = plt.subplots(figsize=(7.2, 1.7 + 0.42 * len(methods)))
    prompts = sorted(set(rows["prompt"]))
    for y, method in enumerate(methods):
        for _, r in rows[rows["method"] == method].iterrows():
            shift = 0.15 * (1 if r["prompt"] == "unseen" else -1) * (len(prompts) > 1)
            face = "white" if r["prompt"] == "unseen" else PALETTE[method]
            ax.errorbar(
                r["mean"],
                y + shift,
                xerr=r["se"],
                marker=MARKERS[method],
                ls="none",
                ms=7,
                color=PALETTE[method],
                mfc=face,
            )
    ax.set(yticks=range(len(methods)), yticklabels=methods, ylim=(len(methods) - 0.5, -0.5))
    ax.set_xlabel(f"{_axis_label(metric)}\n{_error_note(rows)}")
    names = {"both": "both tasks", "kept": "history kept", "excluded": "history excluded"}
    where = [names.get(p, p) for p in rows.iloc[0][["dataset", "task", "history"]] if p]
    ax.set_title(title or f"{metric} by method: {', '.join(where)}")
    for prompt in prompts:
        face, label = "white" if prompt == "unseen" else "#4D4D4D", f"{prompt} prompt" if prompt else "mean"
        ax.plot([], [], "o", color="#4D4D4D", mfc=face, label=label)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


@styled
def plot_query_tokens(
    results: pd.DataFrame, metric: str = "HR@10", *, dataset: str | None = None,
    history: str | None = None, prompt: str | None = None, title: str | None = None,
) -> Figure:  # fmt: skip
    """The paper's Figure 3: `metric` over the number of query tokens, a line each for ILM and MLP.

    Takes rows of table "figure3", whose `variant` is "query_tokens=4" for four query tokens.
    """
    chosen = {"metric": metric, "dataset": dataset, "history": history, "prompt": prompt}
    rows = summarise(select(results, table="figure3", **chosen))
    rows["tokens"] = _setting(rows, "query_tokens")
    fig, ax = plt.subplots(figsize=(6.4, 4.0))
    _lines(ax, rows, "tokens")
    ax.set(xlabel=f"Number of query tokens (log scale)\n{_error_note(rows)}", ylabel=_axis_label(metric))
    where = ", ".join(
        f"{kind} {name}"
        for kind, name in (("prompt", rows["prompt"].iloc[0]), ("history", rows["history"].iloc[0]))
        if name
    )
    ax.set_title(title or f"How many query tokens?\n{rows['dataset'].iloc[0]}, {where}")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, title="Item encoder")
    return fig


@styled
def plot_prompts_read(
    results: pd.DataFrame, metric: str = "HR@10", *, dataset: str | None = None, history: str | None = None
) -> Figure:
    """`metric` over how many prompts about a user the LLM has read before it is frozen, a panel a task.

    Takes rows of table "prompts read", whose `variant` is "prompts_read=54".
    """
    rows = summarise(select(results, table="prompts read", metric=metric, dataset=dataset, history=history))
    rows["read"] = _setting(rows, "prompts_read")
    kinds = list(dict.fromkeys(rows["task"]))
    fig, axes = plt.subplots(1, len(kinds), figsize=(3.7 * len(kinds) + 0.6, 3.9), squeeze=False)
    for ax, kind in zip(axes.flat, kinds, strict=True):
        _lines(ax, rows[rows["task"] == kind], "read")
        ax.set_ylim(bottom=0)
        ax.set_title(kind, fontsize=10.5, fontweight="normal")
        ax.set(xlabel="Prompts a user the LLM has read (log scale)")
    axes[0, 0].set_ylabel(_axis_label(metric))
    fig.suptitle(
        f"Who gains from the tokens? {rows['dataset'].iloc[0]}, history {rows['history'].iloc[0]}",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, title=_error_note(rows))
    return fig


@styled
def plot_success(results: pd.DataFrame, names: Mapping[str, str], *, title: str) -> Figure:
    """How many seekers have their film after each turn of recommendations, a line a variant.

    Takes rows of table "conversation" and task "simulated", whose metrics are success@1 and on.

    Args:
        names: what each variant is called, in the order of the legend.
    """
    rows = summarise(select(results, table="conversation", task="simulated"))
    rows["turn"] = rows["metric"].str.removeprefix("success@").astype(int)
    fig, ax = plt.subplots(figsize=(6.4, 4.2))
    for (variant, name), colour, marker in zip(names.items(), SERIES, "osD^vP", strict=False):
        own = rows[rows["variant"] == variant].sort_values("turn")
        ax.errorbar(own["turn"], own["mean"], yerr=own["se"], color=colour, marker=marker, ms=6, capsize=2, label=name)
    ax.set(xticks=sorted(set(rows["turn"])), ylim=(0, None), ylabel="Seekers who have their film (fraction)")
    ax.set_xlabel(f"Turns of recommendations\n{_error_note(rows)}")
    ax.set_title(title)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, title="The model is told")
    return fig


def _setting(rows: pd.DataFrame, key: str) -> pd.Series:
    """The number in every row's `variant`, "key=number"."""
    return rows["variant"].str.removeprefix(f"{key}=").astype(int)


def _lines(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """Mean and error of every method over a column of whole numbers, on a logarithmic axis."""
    for method in in_order(rows["method"]):
        line = rows[rows["method"] == method].sort_values(x)
        ax.errorbar(line[x], line["mean"], yerr=line["se"], color=PALETTE[method], marker=MARKERS[method], ms=6,
                    label=method)  # fmt: skip
    ticks = sorted(rows[x].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())


@styled
def plot_readings(scores: pd.DataFrame, metric: str, *, chosen: str, title: str = "Does the reading matter?") -> Figure:
    """`metric` of every reading, a row each: dots are seeds, bars ± 1 standard error, the dashed line the chosen.

    Columns: reading, seed, and the metric.
    """
    names = list(dict.fromkeys(scores["reading"]))
    fig, ax = plt.subplots(figsize=(7.4, 1.3 + 0.38 * len(names)))
    for y, name in enumerate(names):
        values = scores.loc[scores["reading"] == name, metric]
        colour = PALETTE["ILM"] if name == chosen else PALETTE["ILM-rand"]
        ax.plot(values, [y] * len(values), "o", color=colour, ms=4, alpha=0.5)
        ax.errorbar(values.mean(), y, xerr=values.sem() if len(values) > 1 else None, fmt="D", color=colour, ms=6)
    ax.axvline(scores.loc[scores["reading"] == chosen, metric].mean(), color=PALETTE["ILM"], ls="--", lw=1)
    seeds = scores["seed"].nunique()
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5), title=title)
    ax.set_xlabel(
        f"{metric} (mean over dev users)\n"
        + (f"bars: ± 1 standard error over {seeds} seeds" if seeds > 1 else "one seed, no error bars")
    )
    return fig


@styled
def plot_elm_tasks(
    results: pd.DataFrame, metric: str, *, table: str | None = None, dataset: str | None = None,
    title: str | None = None,
) -> Figure:  # fmt: skip
    """`metric` ('SC' or 'log_pplx') of every ELM task, methods in colours; the row "all" comes last."""
    if metric not in TEXT_METRICS:
        raise ValueError(f"plot_elm_tasks: metric must be one of {TEXT_METRICS}, got {metric!r}")
    rows = summarise(select(results, table=table, metric=metric, dataset=dataset))
    tasks = order_tasks(rows["task"])
    methods = in_order(rows["method"])
    fig, ax = plt.subplots(figsize=(7.4, 1.8 + 0.27 * len(tasks)))
    shift = np.linspace(-0.22, 0.22, len(methods)) if len(methods) > 1 else [0.0]
    for dy, method in zip(shift, methods, strict=True):
        part = rows[rows["method"] == method]
        y = part["task"].map(tasks.index) + dy
        ax.errorbar(
            part["mean"],
            y,
            xerr=part["se"],
            marker=MARKERS[method],
            ls="none",
            ms=4.5,
            color=PALETTE[method],
            label=method,
        )
    ax.set(yticks=range(len(tasks)), yticklabels=tasks, ylim=(len(tasks) - 0.4, -0.6))
    if tasks[-1] == "all":
        ax.axhline(len(tasks) - 1.5, color="#9AA3AD", lw=1)
        ax.get_yticklabels()[-1].set_fontweight("bold")
    better = "lower" if metric == "log_pplx" else "higher"
    ax.set_xlabel(f"{_axis_label(metric)}, {better} is better\n{_error_note(rows)}")
    ax.set_title(title or f"ELM tasks: {'log perplexity' if metric == 'log_pplx' else 'semantic consistency'}")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(methods)))
    return fig


@styled
def plot_speed(rows: pd.DataFrame, title: str = "Speed against the usual way, and the target") -> Figure:
    """How many times better ours is, a line a case; a tick marks the target.

    Takes rows of reports/speed/results.csv (columns case, ratio, target, device).
    """
    devices = sorted(rows["device"].unique())
    cases = sorted(rows["case"].unique(), reverse=True)
    fig, ax = plt.subplots(figsize=(8.6, 1.4 + 0.46 * len(cases)))
    for i, device in enumerate(devices):
        part = rows[rows["device"] == device]
        y = part["case"].map(cases.index) + 0.16 * (i - (len(devices) - 1) / 2)
        ax.hlines(y, 1, part["ratio"], color=SERIES[i], lw=1.5, alpha=0.5)
        ax.plot(part["ratio"], y, "o", color=SERIES[i], label=device, ms=7)
        ax.plot(part["target"], y, "|", color="black", ms=13, mew=2, label="target" if i == 0 else None)
        for x, at in zip(part["ratio"], y):
            ax.annotate(f"{x:.3g}", (x, at), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_xscale("log")
    plain_log(ax.xaxis)
    ax.set_xlim(right=rows["ratio"].max() * 2)
    ax.set_yticks(range(len(cases)), short_names(cases))
    ax.set(xlabel="Times better (log scale)", title=title)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def plot_catalogue(costs: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """Seconds and GiB of each work as the catalogue grows, and what linear growth would be.

    Takes rows with columns what, items, seconds and gib, and what each work is called.
    """
    fig, panels = plt.subplots(1, 2, figsize=(8.6, 4.2))
    for ax, (value, unit) in zip(panels, (("seconds", "Time (s)"), ("gib", "Memory (GiB)"))):
        for number, (what, name) in enumerate(labels.items()):
            part = costs[costs["what"] == what].sort_values("items")
            ax.plot(part["items"], part[value], "os^"[number] + "-", color=SERIES[number], label=name)
        ends = costs["items"].max() / 100, costs["items"].max()
        top = costs[costs["items"] == ends[1]][value].max()
        ax.plot(ends, (top / 100, top), ls=":", color="black", label="linear growth")
        ax.set(xscale="log", yscale="log", xlabel="Items of the catalogue", ylabel=unit)
        for axis in (ax.xaxis, ax.yaxis):
            plain_log(axis)
        ax.set_xticks(sorted(costs["items"].unique()))
        ax.tick_params(axis="x", labelsize=9)
    fig.suptitle(title)
    fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def order_tasks(tasks: Iterable[str]) -> list[str]:
    """Distinct tasks, those of Table 1 in its order, then others as they come, "all" at the end."""
    seen = list(dict.fromkeys(tasks))
    rank = {t: i for i, t in enumerate(ELM_TASKS)} | {"all": len(ELM_TASKS) + len(seen)}
    return sorted(seen, key=lambda t: rank.get(t, len(ELM_TASKS)))
