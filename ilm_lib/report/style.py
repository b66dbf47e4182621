"""The look of every figure: one style, one palette, a marker for every colour."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ilm_lib.methods import METHODS

PALETTE = {name: method.colour for name, method in METHODS.items()}
MARKERS = {name: method.marker for name, method in METHODS.items()}
SERIES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#332288", "#8C6D31")
STYLE: dict[Any, Any] = {
    "figure.dpi": 110, "savefig.dpi": 110, "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans", "font.size": 10.5, "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 9, "axes.labelsize": 10.5, "legend.fontsize": 9.5,
    "legend.frameon": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#E3E6EA",
    "grid.linewidth": 0.8, "axes.edgecolor": "#9AA3AD", "axes.spines.top": False,
    "axes.spines.right": False, "lines.linewidth": 1.8, "errorbar.capsize": 2.5,
    "figure.facecolor": "white", "axes.facecolor": "white",
    "text.parse_math": False,  # a dollar in the name of a genre is a dollar
}  # fmt: skip


def use_style() -> None:
    """Make `STYLE` the notebook's default, for figures drawn beside the ones here."""
    mpl.rcParams.update(STYLE)


def describe(fig: Figure) -> str:
    """What a figure shows, for readers who cannot see it: title, panels, axes and what is drawn."""
    title = fig.get_suptitle() or next((t for ax in fig.axes if (t := ax.get_title(loc="left") or ax.get_title())), "")
    panels = [t for ax in fig.axes if (t := ax.get_title(loc="left") or ax.get_title()) and t != title]
    legends = [*fig.legends, *(legend for ax in fig.axes if (legend := ax.get_legend()))]
    drawn = dict.fromkeys(text.get_text() for legend in legends for text in legend.get_texts())
    if not fig.axes:
        return title
    ax = fig.axes[0]
    upright = ax.get_ylabel() or ", ".join(t.get_text() for t in ax.get_yticklabels() if ax.get_yticks().size)
    said = {
        "Panels": ", ".join(dict.fromkeys(panels)), "Vertical": upright, "Horizontal": ax.get_xlabel(),
        "Drawn": ", ".join(drawn),
    }  # fmt: skip
    parts = [title, *(f"{what}: {text}" for what, text in said.items() if text)]
    return ". ".join(" ".join(part.split()).rstrip(".") for part in parts if part) + "."


def save_figure(fig: Figure, path: Path) -> Path:
    """Write `fig` as PNG at 110 dots an inch (typically below 150 KB), with its description in it; returns the path."""
    path = Path(path).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    # No software name in the file: a new matplotlib then does not change committed figures.
    fig.savefig(path, dpi=STYLE["savefig.dpi"], metadata={"Software": None, "Description": describe(fig)})
    return path


def alt_text(path: Path) -> str:
    """The description that `save_figure` wrote into a PNG; empty where there is none."""
    from PIL import Image

    with Image.open(path) as image:
        return str(getattr(image, "text", {}).get("Description", ""))


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in `STYLE` and close the figure: the last expression of a notebook cell shows it once.

    The notebook keeps the figure's description beside the image, as its alt text.
    """

    @functools.wraps(plot)
    def wrapper(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            fig = plot(*args, **kwargs)
            plt.close(fig)  # else a notebook shows it twice
        # IPython's hook: no data of its own, and metadata for the PNG that matplotlib's formatter makes.
        hook: Any = lambda include=None, exclude=None: ({}, {"image/png": {"alt": describe(fig)}})
        setattr(fig, "_repr_mimebundle_", hook)  # noqa: B010 (matplotlib's types know no such attribute)
        return fig

    return wrapper


def plain_log(axis: mpl.axis.Axis) -> None:
    """Numbers, not powers, at the ticks of a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())
