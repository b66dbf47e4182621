"""`make bench`: measure, and write `runs/speed/results.csv` (one row a target) and `checks.csv` (side conditions).

    python -m bench            everything
    python -m bench d e        some letters

Rows of other devices stay in the files, so a CPU and a GPU fill one table.
"""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from bench.harness import Row, read_results
from ilm_lib.profiles import ROOT, figure_path, report_dir, runs_dir
from ilm_lib.report.html import write_page
from ilm_lib.report.notebook_pages import notebook_page
from ilm_lib.report.speed import speed_page

MODULES = {
    "abc": "encoder",
    "de": "decode",
    "fg": "training",
    "hi": "data",
    "j": "study",
    "klm": "gpu",
    "n": "elm",
    "opq": "serving",
    "r": "head",
    "st": "frozen",
    "u": "chat",
}
COLUMNS = ["case", "ours", "theirs", "unit", "ratio", "target", "device", "commit"]


def main(letters: str) -> None:
    """Measure the letters, then render the page."""
    for own, module in MODULES.items():
        if set(own) & set(letters):
            print(f"▶ {module} ({', '.join(own)})", flush=True)
            rows = [r for r in importlib.import_module(f"bench.{module}").run() if r.case[0] in letters]
            for row in rows:
                print(
                    f"  {row.case}: {row.ours:.4g} against {row.theirs:.4g} {row.unit}, "
                    f"{row.ratio:.2f} of {row.target:g} wanted",
                    flush=True,
                )
            write(rows)
    render()


def render() -> None:
    """Notebook 08 on what was measured, as the report of profile speed."""
    executed, out = runs_dir() / "speed" / "08_speed.ipynb", report_dir("speed")
    executed.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            "notebooks/08_speed.ipynb",
            str(executed),
            "-k",
            "python3",
            "--no-progress-bar",
            "--log-level",
            "WARNING",
        ],
        cwd=ROOT,
        check=True,
    )
    shutil.copytree(figure_path("speed", "").parent, out / "figures", dirs_exist_ok=True)
    measured = {name: read_results(name) for name in ("results", "checks", "catalogue")}
    cases = [case for name in ("results", "checks") for case in measured[name]["case"]]
    write_page(out / "index.html", speed_page(notebook_page(executed, back=())[1], cases))
    for name, table in measured.items():
        table.to_csv(out / f"{name}.csv", index=False)


def write(rows: list[Row]) -> None:
    """Merge rows into the two files, replacing those of the same case and device."""
    git = lambda *args: subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = git("status", "--porcelain", "--", "ilm_lib", "bench", "params")
    commit = git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    for name, main_rows in (("results", True), ("checks", False)):
        new = pd.DataFrame([asdict(r) for r in rows if r.main == main_rows], columns=COLUMNS)
        new["device"], new["commit"] = device_name(), commit
        path = runs_dir() / "speed" / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        old = read_results(name)  # what was measured elsewhere or before stays
        new = pd.concat([old, new]).drop_duplicates(["case", "device"], keep="last")
        new.sort_values(["case", "device"]).to_csv(path, index=False, float_format="%.5g")


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")  # on Linux alone
    lines = cpu.read_text(encoding="utf-8").splitlines() if cpu.exists() else []
    model = next(
        (line.split(":")[1].strip() for line in lines if "model name" in line),
        platform.processor() or platform.machine(),
    )
    return f"{model}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    letters = "".join(sys.argv[1:]) or "".join(MODULES)
    if unknown := sorted(set(letters) - set("".join(MODULES))) or (set(map(len, sys.argv[1:])) - {1}):
        raise SystemExit(f"✗ {sys.argv[1:]}: name letters of {' '.join(''.join(MODULES))}, each by itself ({unknown})")
    main(letters)
