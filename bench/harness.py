"""What every benchmark shares: two sides measured in turn in one run, and rows of `results.csv`.

`ratio` is how many times better ours is than theirs; for an absolute limit, limit over ours, or our rate
over the limit. So `ratio >= target` always means met.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from ilm_lib.devices import device, use_bfloat16
from ilm_lib.profiles import ROOT, runs_dir

REPEATS = 5


@dataclass(frozen=True)
class Row:
    """One line of the results.

    Attributes:
        case: the letter of the target, then words.
        ours: median, in `unit`.
        theirs: median, in `unit`.
        main: the row of the letter; others are its side conditions (memory, a second bound).
    """

    case: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    target: float
    main: bool = True


def compare(
    case: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    target: float,
    repeats: int = REPEATS,
    main: bool = True,
) -> Row:
    """Median milliseconds of two functions called in turn, after one call of each to warm up."""
    a, b = in_turn(ours, theirs, repeats)
    return Row(case, a, b, "ms", b / a, target, main)


def in_turn(ours: Callable[[], object], theirs: Callable[[], object], repeats: int = REPEATS) -> tuple[float, float]:
    """Median milliseconds of both; alternating, so that a noisy minute hits both sides."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (ours, theirs):
        function()
    for _ in range(repeats):
        for function, spent in zip((ours, theirs), times):
            spent.append(milliseconds(function))
    return statistics.median(times[0]), statistics.median(times[1])


def milliseconds(function: Callable[[], object]) -> float:
    """Wall time of one call, the device's queue included."""
    synchronize()
    started = time.perf_counter()
    function()
    synchronize()
    return 1e3 * (time.perf_counter() - started)


def train_step(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Forward and backward of a loss in the precision of training."""
    model.zero_grad(set_to_none=True)
    with torch.autocast(device(), torch.bfloat16, enabled=use_bfloat16("auto")):
        value = loss()
    value.backward()
    return value.detach()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def at_most(case: str, value: float, limit: float, unit: str, *, main: bool = True) -> Row:
    """A limit that ours must stay under."""
    return Row(case, value, limit, unit, limit / value, 1.0, main)


def at_least(case: str, value: float, limit: float, unit: str, *, main: bool = True) -> Row:
    """A rate that ours must reach."""
    return Row(case, value, limit, unit, value / limit, 1.0, main)


def peak_memory(function: str) -> float:
    """MiB by which "module:function", called in a process of its own, raises the peak over that of its imports.

    On a GPU the peak of the allocator; on a CPU that of the resident set.
    """
    out = subprocess.run([sys.executable, "-m", "bench.harness", function], check=True, capture_output=True, text=True)
    return float(out.stdout.split()[-1])


def read_results(name: str) -> pd.DataFrame:
    """ "results" or "checks" of the newest `make bench`; of the committed report where none was run here."""
    written, committed = (folder / "speed" / f"{name}.csv" for folder in (runs_dir(), ROOT / "reports"))
    return pd.read_csv(written if written.exists() else committed)


def openp5_folder() -> Path:
    """OpenP5's data sets: in ILM_DATA_DIR, else in shared/data beside this checkout; they need not be there."""
    return Path(os.environ.get("ILM_DATA_DIR") or ROOT.parent / "shared" / "data") / "openp5"


def resident_peak() -> float:
    """MiB, the highest resident set of this process so far (Linux)."""
    # Not ru_maxrss: that starts with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _measure(function: str) -> float:
    import importlib

    module, name = function.split(":")
    call = getattr(importlib.import_module(module), name)
    before = resident_peak()
    call()
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else resident_peak() - before


if __name__ == "__main__":
    print(_measure(sys.argv[1]))
