"""The look of every figure: one style, one palette, a marker for every colour."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from ilm_lib.paper import METHODS

# Okabe and Ito's colours for what is compared most, greys for references; a marker goes
# with each colour, so no reading depends on colour alone.
PALETTE = {
    "Popularity": "#9A9A9A", "iALS": "#8C6D31", "SASRec": "#882255", "OpenP5-R": "#4D4D4D",
    "MLP": "#E69F00", "MLP-N": "#F5C24C", "ILM-rand": "#56B4E9", "ILM": "#0072B2",
    "ILM-IT": "#009E73", "ILM-IT-II": "#CC79A7", "ILM-IT-UI": "#332288",
    "Oracle": "#000000", "Film-blind": "#D55E00", "Facts-in-text": "#6B8E23",
    "Title-in-text": "#B8A200",
}  # fmt: skip
MARKERS = dict(zip(METHODS, "pd^sD8vohXP*<H>", strict=True))
SERIES = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#332288", "#8C6D31")
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


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in `STYLE` and close the figure: the last expression of a notebook cell shows it once."""
    @functools.wraps(plot)
    def wrapper(*args, **kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            fig = plot(*args, **kwargs)
            plt.close(fig)  # else a notebook shows it twice
        return fig

    return wrapper


def methods_in(rows: pd.DataFrame) -> list[str]:
    """The methods of the column `method`, in the order of all tables and legends."""
    return [m for m in METHODS if m in set(rows["method"])]


def plain_log(axis: mpl.axis.Axis) -> None:
    """Whole numbers, not powers, at the ticks of a logarithmic axis."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axis.set_minor_formatter(NullFormatter())
