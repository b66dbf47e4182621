"""The whole toy study after installation (j): `make study` in a copy of this checkout with nothing computed yet."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.harness import Row, at_most
from ilm_lib.profiles import ROOT

BEFORE = 461.0  # seconds on two cores at commit 1ef7dfb, before the work on speed


def run() -> list[Row]:
    """Row j and, beside it, the absolute limit of four minutes."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "study"
        copy_checkout(folder)
        env = {k: v for k, v in os.environ.items() if not k.startswith("ILM_")}
        started = time.perf_counter()
        subprocess.run(["make", "study"], cwd=folder, env=env, check=True)
        seconds = time.perf_counter() - started
    return [
        Row("j the toy study after installation", seconds, BEFORE, "s", BEFORE / seconds, 2.0),
        at_most("j, four minutes", seconds, 240, "s", main=False),
    ]


def copy_checkout(folder: Path) -> None:
    """The files of this checkout, not what was computed from them; the environment is shared."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    for file in filter(None, listed.split("\0")):
        if (ROOT / file).is_file() and not file.startswith("reports/"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            # With its time, which tells make that the environment is up to date.
            shutil.copy2(ROOT / file, folder / file)
    (folder / ".venv").symlink_to(ROOT / ".venv")
