"""The life of a run: failures, reruns, settings that change, odd paths, two at once, Ctrl-C.

A tiny study stands for the real one: the library, the grid and a profile as they are, notebooks of a few lines.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[2]
PROFILE = "profile: tiny\nevaluation: {enabled: false}\nmethods: [MLP, ILM]\n"
PARAMETERS = "\n".join(
    f"{name} = {value!r}"
    for name, value in {
        "profile": "toy", "seed": 0, "seeds": [], "method": "", "methods": [], "overrides": {},
        "data": {}, "embeddings": {}, "sasrec": {}, "qformer": {}, "phase1": {}, "backbone": {}, "phase2": {},
        "evaluation": {}, "elm24": {}, "ablations": {},
    }.items()
)  # fmt: skip
STAGE = """from ilm_lib.study.artifacts import stage
from ilm_lib.study.inputs import make_given_embeddings as made  # any function of the library

def make(folder, **given):
    (folder / "value.txt").write_text("42")

import ilm_lib.study.artifacts
ilm_lib.study.artifacts.code_digest = lambda make: "stands for the code"
artifact = stage("data", make, params.profile, made_by="01_data", build={build}, given={{}})"""
ROWS = """from ilm_lib.profiles import results_path
line = "table1,ELM24,all,,,,{method},,{seed},SC,0.5,10"
header = "table,dataset,task,prompt,history,readout,method,variant,seed,metric,value,n"
lines = [line.format(method=m, seed=s) for m in params.methods for s in params.report_seeds]
results_path(params.profile).write_text("\\n".join([header, *lines]) + "\\n")"""


def write_notebook(path: Path, *code: str) -> None:
    first = [new_markdown_cell(f"# {path.stem}"), new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
    load = new_code_cell("from ilm_lib import load_params\n\nparams = load_params(globals())")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [*first, load, *map(new_code_cell, code)]
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


class Study:
    """A checkout with a tiny study, and the command that runs it."""

    def __init__(self, folder: Path, runs: Path | None = None):
        self.folder, self.runs = folder, runs or folder / "runs"
        self.home = self.runs / "tiny"
        shutil.copytree(ROOT / "ilm_lib", folder / "ilm_lib", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", "pyproject.toml"):
            shutil.copy(ROOT / name, folder)
        (folder / "params").mkdir()
        self.profile(PROFILE)
        (folder / "notebooks").mkdir()
        self.notebook("01_data", STAGE.format(build=True))
        self.notebook("02_embeddings", "print(params.seed)")
        self.notebook("05_elm24_eval", STAGE.format(build=False), ROWS)

    def profile(self, text: str) -> None:
        (self.folder / "params" / "tiny.yaml").write_text(text, encoding="utf-8")

    def notebook(self, name: str, *code: str) -> None:
        write_notebook(self.folder / "notebooks" / f"{name}.ipynb", *code)

    def start(self, *options: str, **environment: str) -> subprocess.Popen:
        env = {k: v for k, v in os.environ.items() if not k.startswith("ILM_")}
        env |= {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", "ILM_RUNS_DIR": str(self.runs)}
        command = [sys.executable, "-m", "ilm_lib.study", "tiny", "--cores", "2", *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=env | environment, **pipes)

    def run(self, *options: str, **environment: str) -> tuple[int, str]:
        process = self.start(*options, **environment)
        said, _ = process.communicate(timeout=280)
        return process.returncode, said

    def pages(self) -> list[str]:
        return sorted(p.stem for p in (self.home / "report").glob("0*.html"))


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "checkout")


PAGES = ["01_data", "02_embeddings-seed0", "05_elm24_eval"]


@pytest.mark.slow
def test_a_report_never_outlives_what_it_shows(study):
    """A stage goes bad, a notebook changes: refused; the advice is followed: everything is there again."""
    status, said = study.run()
    assert status == 0 and "✓ done: open runs/tiny/report/index.html" in said, said
    assert study.pages() == PAGES
    before = {p: p.stat().st_mtime_ns for p in study.home.rglob("*") if p.name not in (".lock", "study.json")}
    status, said = study.run()
    assert status == 0 and "▶ 0" not in said and before == {p: p.stat().st_mtime_ns for p in before}, said

    (value,) = study.home.glob("data/*/value.txt")
    value.write_text("43")
    study.notebook("05_elm24_eval", STAGE.format(build=False), ROWS, "print('changed')")
    status, said = study.run()
    assert status == 1 and "✓" not in said and f"delete the folder {value.parent}" in said, said
    assert "Traceback" not in said and "Error in rule" not in said and said.count("\n") <= 5, said
    shutil.rmtree(value.parent)
    status, said = study.run()
    assert status == 0 and "▶ 05" in said and study.pages() == PAGES, said
    assert "changed" in (study.home / "report" / "05_elm24_eval.html").read_text()
