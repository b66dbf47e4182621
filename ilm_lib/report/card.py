"""What a number needs beside it to be believed: the commit, the versions, the settings and the cost of its run."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

import pandas as pd

from ilm_lib.profiles import ROOT

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "scipy", "pandas", "implicit", "irspack")


def package_version(package: str) -> str:
    """The version of an installed package, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Short hash of the checkout this package runs from, "+changes" if it was edited; else "unknown"."""

    def git(*words: str) -> str:
        command = ("git", *words)  # the words are those below
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)  # noqa: S603
        return done.stdout.strip()

    try:
        # An installed copy may lie inside someone else's repository, whose commit says nothing.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(ROOT)))
        # Reports are what a run writes, so they do not make the code another one.
        changed = git("status", "--porcelain", "--", ".", ":(exclude)reports")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _flat(values: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        yield from _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]


def run_card(
    params: dict, *, seed: int, device: object, precision: str, checksums: dict[str, str], started: float
) -> pd.DataFrame:
    """The run card: two columns, what and value.

    Args:
        params: the run's parameters, nested or flat.
        checksums: SHA-256 of each input, by a short name; the first 16 digits are shown.
        started: `time.time()` at the start; gives the wall time in seconds.

    Raises:
        ValueError: `started` is not a wall clock time of the past.
    """
    wall = time.time() - started
    if not 0 <= wall < 1e8:
        raise ValueError("run_card: started must be time.time() at the start of the run")
    rows: list[tuple[str, object]] = [("commit", commit()), ("python", platform.python_version())]
    rows += [(name, package_version(name)) for name in ("ilm-study", *_PACKAGES)]
    rows += [("seed", seed), ("device", device), ("precision", precision)]
    rows += [(f"sha256 {name}", digest[:16]) for name, digest in checksums.items()]
    rows += [("wall time", f"{wall:.1f} s"), ("peak memory", f"{peak_memory_gib():.2f} GiB")]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        rows.append(("peak GPU memory", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"))
    rows += [(f"params.{name}", value) for name, value in _flat(params)]
    # Reports are published: where things lie on one machine is nobody's business.
    folders = [(str(ROOT) + os.sep, ""), (str(ROOT), "."), (str(Path.home()), "~")]
    text = [str(value) for _, value in rows]
    for folder, short in folders:
        text = [value.replace(folder, short) if len(folder) > 2 else value for value in text]
    return pd.DataFrame({"what": [name for name, _ in rows], "value": text})
