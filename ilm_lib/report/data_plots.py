"""Figures of data and of training: a legend, units on the axes. Results are drawn by `result_plots`.

Every `plot_*` returns a closed `Figure`, and `save_figure` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from ilm_lib.methods import in_order
from ilm_lib.report.style import PALETTE, SERIES, plain_log, styled


@styled
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
        plain_log(axis)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


@styled
def plot_sequence_lengths(lengths: Sequence[int], cut: int = 20, title: str = "How long histories are") -> Figure:
    """Histogram of interactions a user; the dashed line marks the `cut` most recent items a prompt holds."""
    v = np.asarray(lengths, dtype=float)
    fig, ax = plt.subplots(figsize=(6.6, 3.6))
    low, high = max(v.min(), 1), max(v.max(), cut + 1)
    wide = high / low > 20  # long right tails are unreadable on a linear axis
    bins = np.geomspace(low, high, 40).tolist() if wide else min(40, int(high - low) + 1)
    ax.hist(v, bins=bins, color=PALETTE["ILM-rand"], edgecolor="white", lw=0.5, label=f"{len(v):,} users")
    ax.axvline(np.median(v), color=PALETTE["ILM"], label=f"median {np.median(v):,.0f}")
    ax.axvline(cut, color=PALETTE["Film-blind"], ls="--", label=f"prompt keeps {cut} ({(v > cut).mean():.0%} longer)")
    if wide:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_locator(NullLocator())
        plain_log(ax.xaxis)
    ax.set(xlabel="Interactions per user" + (" (log scale)" if wide else ""), ylabel="Users", title=title)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return fig


@styled
def plot_item_map(xy: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    """Map of items, (I, 2), coloured by their genre: the eight most frequent ones, the rest grey."""
    xy, genres = np.asarray(xy), pd.Series(list(labels)).astype(str)
    if xy.shape != (len(genres), 2):
        raise ValueError(f"plot_item_map: xy has shape {xy.shape}, expected ({len(genres)}, 2)")
    fig, ax = plt.subplots(figsize=(7.4, 5.0))
    size = float(np.clip(9000 / len(genres), 4, 34))
    other = ~genres.isin(top := genres.value_counts().index[:8])
    if other.any():
        ax.scatter(xy[other, 0], xy[other, 1], s=size, color="#C9CED4", lw=0, label=f"other ({other.sum():,})")
    for colour, genre in zip(SERIES, top, strict=False):
        at, name = (genres == genre).to_numpy(), genre if len(genre) <= 30 else f"{genre[:29]}…"
        ax.scatter(xy[at, 0], xy[at, 1], s=size, color=colour, lw=0, alpha=0.8, label=f"{name} ({at.sum():,})")
    ax.set(title=title, xlabel="Map dimension 1 (no unit)", ylabel="Map dimension 2 (no unit)", xticks=[], yticks=[])
    legend = fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", title="Genre (items)")
    for handle in legend.findobj(PathCollection):
        handle.set_sizes([42])  # dots of a crowded map are too small to tell colours by
    return fig


@styled
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
        chance = part["chance"].dropna() if "chance" in part else pd.Series(dtype=float)
        if len(chance):
            drawn["chance"] = ax.axhline(float(chance.iloc[0]), color=PALETTE["Film-blind"], ls="--", lw=1.3)
        ax.set_title(name, fontsize=10.5, fontweight="normal")
        ax.set(xlabel="Step", ylabel="Mean over held-out cases" if "@" in name else "Loss (nats)")
    for ax in list(axes.flat)[len(names) :]:
        ax.remove()
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    fig.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=3)
    return fig


@styled
def plot_loss_gap(history: pd.DataFrame, title: str = "Is the text learned by heart?") -> Figure:
    """One loss (nats) over steps, train and held out, a panel a method; bands: ± 1 standard error over seeds.

    Columns: method, seed, step, value, split ('train' or 'heldout').
    """
    methods = in_order(history["method"])
    fig, axes = plt.subplots(1, len(methods), figsize=(3.1 * len(methods) + 0.6, 3.9), sharey=True, squeeze=False)
    for ax, method in zip(axes.flat, methods, strict=True):
        for split, style, label in (("train", "--", "train"), ("heldout", "-", "held out")):
            part = history[(history["method"] == method) & (history["split"] == split)].groupby("step")["value"]
            mean, se = part.mean(), part.sem().fillna(0)
            ax.plot(mean.index, mean, style, color=PALETTE[method], label=label)
            ax.fill_between(mean.index, mean - se, mean + se, color=PALETTE[method], alpha=0.2, lw=0)
        ax.set_title(method, fontsize=10.5, fontweight="normal")
        ax.set(xlabel="Step")
    # Colours are the methods'; the panels' titles name them.
    handles = [Line2D([], [], color="#4D4D4D", ls=s, label=label) for s, label in (("--", "train"), ("-", "held out"))]
    fig.legend(handles=handles, loc="outside lower center", ncols=2)
    axes[0, 0].set_ylabel("Text generation loss (nats per token)")
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return fig


@styled
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
