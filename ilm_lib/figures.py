"""Figures of the study: one style, one palette, error bars, a legend, units on the axes.

Every `plot_*` returns a closed `Figure`: the last expression of a notebook cell shows it
once, and `save_figure` writes it. Filters left at None must be unique in the rows given,
so rows of two data sets, prompts or history rules are never averaged together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from ilm_lib.metrics import mean_se
from ilm_lib.paper import ELM_TASKS, METHODS, RESULT_COLUMNS, TEXT_METRICS

# Okabe and Ito's colours for what is compared most, greys for references; a marker goes
# with each colour, so no reading depends on colour alone.
PALETTE = {
    "Popularity": "#9A9A9A", "iALS": "#8C6D31", "SASRec": "#882255", "OpenP5-R": "#4D4D4D",
    "MLP": "#E69F00", "MLP-N": "#F5C24C", "ILM-rand": "#56B4E9", "ILM": "#0072B2",
    "ILM-IT": "#009E73", "ILM-IT-II": "#CC79A7", "ILM-IT-UI": "#332288",
    "Oracle": "#000000", "Film-blind": "#D55E00", "Title-in-text": "#B8A200",
}  # fmt: skip
MARKERS = dict(zip(METHODS, "pd^sD8vohXP*<>", strict=True))
_SERIES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#332288", "#8C6D31")
STYLE = {
    "figure.dpi": 110, "savefig.dpi": 110, "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans", "font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.labelsize": 10.5, "legend.fontsize": 9.5,
    "legend.frameon": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E3E6EA",
    "grid.linewidth": 0.8, "axes.edgecolor": "#9AA3AD", "axes.spines.top": False,
    "axes.spines.right": False, "lines.linewidth": 1.8, "errorbar.capsize": 2.5,
    "figure.facecolor": "white", "axes.facecolor": "white",
}  # fmt: skip


def use_style() -> None:
    """Make `STYLE` the notebook's default, for figures drawn beside the ones here."""
    mpl.rcParams.update(STYLE)


def save_figure(fig: Figure, path: Path) -> Path:
    """Write `fig` as PNG at 110 dots an inch (typically below 150 KB) and return the path."""
    path = Path(path).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software name in the file: a new matplotlib then does not change committed figures.
    fig.savefig(path, dpi=STYLE["savefig.dpi"], metadata={"Software": None})
    return path


def _styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(plot)
    def wrapper(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            fig = plot(*args, **kwargs)
            plt.close(fig)  # else a notebook shows it twice
        return fig

    return wrapper


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
        binomial = len(group) == 1 and metric.startswith("HR@") and pd.notna(n) and 0 <= mean <= 1
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


def _methods(rows: pd.DataFrame) -> list[str]:
    return [m for m in METHODS if m in set(rows["method"])]


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


def _plain_log(axis: mpl.axis.Axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


@_styled
def plot_long_tail(counts: Sequence[int], title: str = "Few items get most interactions") -> Figure:
    """Interactions of each item by rank (both logarithmic), with the share of the top fifth."""
    c = np.sort(np.asarray(counts, dtype=float))[::-1]
    head = max(1, round(0.2 * len(c)))
    share = c[:head].sum() / c.sum()
    rank = np.arange(1, len(c) + 1)
    fig, ax = plt.subplots(figsize=(6.6, 3.8))
    ax.plot(rank, c, color=PALETTE["ILM"], label=f"{len(c):,} items, {c.sum():,.0f} interactions")
    ax.fill_between(rank[:head], c[:head], color=PALETTE["ILM"], alpha=0.15, lw=0,
                    label=f"top 20% of items: {share:.0%} of interactions")  # fmt: skip
    ax.set(xscale="log", yscale="log", title=title)
    ax.set_ylim(bottom=max(0.8, c.min() * 0.8))
    ax.set_xlabel("Item rank by popularity (log scale)")
    ax.set_ylabel("Interactions per item (log scale)")
    for axis in (ax.xaxis, ax.yaxis):
        _plain_log(axis)
    ax.legend(loc="lower left")
    return fig


@_styled
def plot_sequence_lengths(lengths: Sequence[int], cut: int = 20, title: str = "How long histories are") -> Figure:
    """Histogram of interactions a user; the dashed line marks the `cut` most recent items a prompt holds."""
    v = np.asarray(lengths, dtype=float)
    fig, ax = plt.subplots(figsize=(6.6, 3.6))
    low, high = max(v.min(), 1), max(v.max(), cut + 1)
    wide = high / low > 20  # long right tails are unreadable on a linear axis
    bins = np.geomspace(low, high, 40) if wide else min(40, int(high - low) + 1)
    ax.hist(v, bins=bins, color=PALETTE["ILM-rand"], edgecolor="white", lw=0.5, label=f"{len(v):,} users")
    ax.axvline(np.median(v), color=PALETTE["ILM"], label=f"median {np.median(v):,.0f}")
    ax.axvline(cut, color=PALETTE["Film-blind"], ls="--", label=f"prompt keeps {cut} ({(v > cut).mean():.0%} longer)")
    if wide:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        _plain_log(ax.xaxis)
    ax.set(xlabel="Interactions per user" + (" (log scale)" if wide else ""), ylabel="Users", title=title)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@_styled
def plot_item_map(xy: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    """Map of items, (I, 2), coloured by their genre: the eight most frequent ones, the rest grey."""
    xy, genres = np.asarray(xy), pd.Series(list(labels)).astype(str)
    if xy.shape != (len(genres), 2):
        raise ValueError(f"plot_item_map: xy has shape {xy.shape}, expected ({len(genres)}, 2)")
    fig, ax = plt.subplots(figsize=(7.4, 5.0))
    size = float(np.clip(9000 / len(genres), 4, 34))
    other = ~genres.isin(top := genres.value_counts().index[:8])
    if other.any():
        ax.scatter(*xy[other].T, s=size, color="#C9CED4", lw=0, label=f"other ({other.sum():,})")
    for colour, genre in zip(_SERIES, top, strict=False):
        at = (genres == genre).to_numpy()
        ax.scatter(*xy[at].T, s=size, color=colour, lw=0, alpha=0.8, label=f"{genre} ({at.sum():,})")
    ax.set(title=title, xlabel="Map dimension 1 (no unit)", ylabel="Map dimension 2 (no unit)", xticks=[], yticks=[])
    legend = fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", title="Genre (items)")
    for handle in legend.legend_handles:
        handle.set_sizes([42])  # dots of a crowded map are too small to tell colours by
    return fig


@_styled
def plot_losses(history: pd.DataFrame, title: str = "Losses") -> Figure:
    """Small multiples of losses (nats), and of ranking measures such as "dev NDCG@10", over steps, one panel a `name`.

    Columns: step, name, value, split ('train' or 'heldout'), optionally chance: the loss
    of guessing, e.g. ln(batch) of a contrastive loss, drawn as a dashed line.
    """
    names = list(dict.fromkeys(history["name"]))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(max(3.3 * columns, 4.6), 2.5 * rows + 0.9), squeeze=False)
    drawn = {}
    for ax, name in zip(axes.flat, names, strict=False):
        part = history[history["name"] == name]
        for split, colour, label in (("train", PALETTE["ILM-rand"], "train"), ("heldout", PALETTE["ILM"], "held out")):
            line = part[part["split"] == split].sort_values("step")
            if len(line):
                marker = "o" if split == "heldout" and len(line) < 30 else None
                drawn[label] = ax.plot(line["step"], line["value"], color=colour, marker=marker, ms=3.5)[0]
        chance = part["chance"].dropna() if "chance" in part else ()
        if len(chance):
            drawn["chance"] = ax.axhline(float(chance.iloc[0]), color=PALETTE["Film-blind"], ls="--", lw=1.3)
        ax.set_title(name, fontsize=10.5, fontweight="normal")
        ax.set(xlabel="Step", ylabel="Mean over held-out cases" if "@" in name else "Loss (nats)")
    for ax in list(axes.flat)[len(names) :]:
        ax.remove()
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    fig.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3)
    return fig


@_styled
def plot_loss_gap(history: pd.DataFrame, title: str = "Is the text learned by heart?") -> Figure:
    """One loss (nats) over steps, train and held out, a panel a method; bands: ± 1 standard error over seeds.

    Columns: method, seed, step, value, split ('train' or 'heldout').
    """
    methods = _methods(history)
    fig, axes = plt.subplots(1, len(methods), figsize=(3.1 * len(methods) + 0.6, 3.3), sharey=True, squeeze=False)
    for ax, method in zip(axes.flat, methods, strict=True):
        for split, style, label in (("train", "--", "train"), ("heldout", "-", "held out")):
            part = history[(history["method"] == method) & (history["split"] == split)].groupby("step")["value"]
            mean, se = part.mean(), part.sem().fillna(0)
            ax.plot(mean.index, mean, style, color=PALETTE[method], label=label)
            ax.fill_between(mean.index, mean - se, mean + se, color=PALETTE[method], alpha=0.2, lw=0)
        ax.set_title(method, fontsize=10.5, fontweight="normal")
        ax.set(xlabel="Step")
        ax.legend()
    axes[0, 0].set_ylabel("Text generation loss (nats per token)")
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return fig


@_styled
def plot_query_similarity(matrix: np.ndarray, title: str = "Do the query tokens differ?") -> Figure:
    """Heat map of cosines between query tokens, (Q, Q); the title gives the mean off the diagonal."""
    m = np.asarray(matrix, dtype=float)
    if m.shape != (q := len(m), q) or q < 2:
        raise ValueError(f"plot_query_similarity: expected (Q, Q) with Q of 2 or more, got {m.shape}")
    off = m[~np.eye(q, dtype=bool)].mean()
    fig, ax = plt.subplots(figsize=(5.4, 4.6))
    image = ax.imshow(m, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.grid(False)
    step = max(1, q // 8)
    ax.set(xticks=range(0, q, step), yticks=range(0, q, step), xlabel="Query token", ylabel="Query token")
    ax.set_title(f"{title}\nmean cosine off the diagonal {off:.2f} (1 = collapsed)", fontsize=11)
    if q <= 8:
        for i, j in np.ndindex(q, q):
            ax.text(j, i, f"{m[i, j]:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if abs(m[i, j]) > 0.65 else "#222222")  # fmt: skip
    fig.colorbar(image, ax=ax, label="Cosine", shrink=0.9)
    return fig


@_styled
def plot_metric_by_method(
    results: pd.DataFrame, metric: str, *, table: str | None = None, dataset: str | None = None,
    history: str | None = None, task: str | None = None, title: str | None = None,
) -> Figure:  # fmt: skip
    """Dot plot of one metric, a row a method; hollow dots are the unseen prompt."""
    rows = summarise(select(results, table=table, metric=metric, dataset=dataset, history=history, task=task))
    methods = _methods(rows)
    fig, ax = plt.subplots(figsize=(7.2, 1.7 + 0.42 * len(methods)))
    prompts = sorted(set(rows["prompt"]))
    for y, method in enumerate(methods):
        for _, r in rows[rows["method"] == method].iterrows():
            shift = 0.15 * (1 if r["prompt"] == "unseen" else -1) * (len(prompts) > 1)
            face = "white" if r["prompt"] == "unseen" else PALETTE[method]
            ax.errorbar(r["mean"], y + shift, xerr=r["se"], fmt=MARKERS[method], ms=7, color=PALETTE[method], mfc=face)
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


@_styled
def plot_query_tokens(
    results: pd.DataFrame, metric: str = "HR@10", *, dataset: str | None = None,
    history: str | None = None, prompt: str | None = None, title: str | None = None,
) -> Figure:  # fmt: skip
    """The paper's Figure 3: `metric` over the number of query tokens, a line each for ILM and MLP.

    Takes rows of table "figure3", whose `task` is "N=4" for four query tokens.
    """
    chosen = {"metric": metric, "dataset": dataset, "history": history, "prompt": prompt}
    rows = summarise(select(results, table="figure3", **chosen))
    rows["tokens"] = rows["task"].str.extract(r"^N=(\d+)$", expand=False).astype(int)
    fig, ax = plt.subplots(figsize=(6.4, 4.0))
    for method in _methods(rows):
        line = rows[rows["method"] == method].sort_values("tokens")
        ax.errorbar(line["tokens"], line["mean"], yerr=line["se"], color=PALETTE[method], marker=MARKERS[method],
                    ms=6, label=method)  # fmt: skip
    ticks = sorted(rows["tokens"].unique())
    ax.set_xscale("log", base=2)
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel=f"Number of query tokens (log scale)\n{_error_note(rows)}", ylabel=_axis_label(metric))
    where = ", ".join(f"{kind} {name}" for kind, name in (("prompt", rows["prompt"].iloc[0]),
                                                          ("history", rows["history"].iloc[0])) if name)
    ax.set_title(title or f"How many query tokens?\n{rows['dataset'].iloc[0]}, {where}")
    ax.legend(title="Item encoder")
    return fig


@_styled
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
    ax.set_xlabel(f"{metric} (mean over dev users)\n" + (f"bars: ± 1 standard error over {seeds} seeds" if seeds > 1
                                                          else "one seed, no error bars"))
    return fig


@_styled
def plot_elm_tasks(
    results: pd.DataFrame, metric: str, *, table: str | None = None, dataset: str | None = None,
    title: str | None = None,
) -> Figure:  # fmt: skip
    """`metric` ('SC' or 'log_pplx') of every ELM task, methods in colours; the row "all" comes last."""
    if metric not in TEXT_METRICS:
        raise ValueError(f"plot_elm_tasks: metric must be one of {TEXT_METRICS}, got {metric!r}")
    rows = summarise(select(results, table=table, metric=metric, dataset=dataset))
    tasks = order_tasks(rows["task"])
    methods = _methods(rows)
    fig, ax = plt.subplots(figsize=(7.4, 1.8 + 0.27 * len(tasks)))
    shift = np.linspace(-0.22, 0.22, len(methods)) if len(methods) > 1 else [0.0]
    for dy, method in zip(shift, methods, strict=True):
        part = rows[rows["method"] == method]
        y = part["task"].map(tasks.index) + dy
        ax.errorbar(part["mean"], y, xerr=part["se"], fmt=MARKERS[method], ms=4.5, color=PALETTE[method], label=method)
    ax.set(yticks=range(len(tasks)), yticklabels=tasks, ylim=(len(tasks) - 0.4, -0.6))
    if tasks[-1] == "all":
        ax.axhline(len(tasks) - 1.5, color="#9AA3AD", lw=1)
        ax.get_yticklabels()[-1].set_fontweight("bold")
    better = "lower" if metric == "log_pplx" else "higher"
    ax.set_xlabel(f"{_axis_label(metric)}, {better} is better\n{_error_note(rows)}")
    ax.set_title(title or f"ELM tasks: {'log perplexity' if metric == 'log_pplx' else 'semantic consistency'}")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=min(5, len(methods)))
    return fig


@_styled
def plot_speed(rows: pd.DataFrame, title: str = "Speed against the usual way, and the target") -> Figure:
    """How many times better ours is, a line a case; a tick marks the target.

    Takes rows of reports/speed/results.csv (columns case, ratio, target, device).
    """
    devices = sorted(rows["device"].unique())
    cases = sorted(rows["case"].unique(), reverse=True)
    fig, ax = plt.subplots(figsize=(8.2, 0.9 + 0.46 * len(cases)))
    for i, device in enumerate(devices):
        part = rows[rows["device"] == device]
        y = part["case"].map(cases.index) + 0.16 * (i - (len(devices) - 1) / 2)
        ax.hlines(y, 1, part["ratio"], color=_SERIES[i], lw=1.5, alpha=0.5)
        ax.plot(part["ratio"], y, "o", color=_SERIES[i], label=device, ms=7)
        ax.plot(part["target"], y, "|", color="black", ms=13, mew=2, label="target" if i == 0 else None)
        for x, at in zip(part["ratio"], y):
            ax.annotate(f"{x:.3g}", (x, at), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9)
    ax.set_xscale("log")
    _plain_log(ax.xaxis)
    ax.set_xlim(right=rows["ratio"].max() * 2)
    ax.set_yticks(range(len(cases)), cases)
    ax.set(xlabel="Times better (log scale)", title=title)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32 - 0.4 / len(cases)), ncols=len(devices) + 1, frameon=False)
    return fig


def order_tasks(tasks: Iterable[str]) -> list[str]:
    """Distinct tasks, those of Table 1 in its order, then others as they come, "all" at the end."""
    seen = list(dict.fromkeys(tasks))
    rank = {t: i for i, t in enumerate(ELM_TASKS)} | {"all": len(ELM_TASKS) + len(seen)}
    return sorted(seen, key=lambda t: rank.get(t, len(ELM_TASKS)))
