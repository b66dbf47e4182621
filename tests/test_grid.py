"""`python -m ilm_lib.study`: what is refused before any work, and a grid in a folder with an odd name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ilm_lib import load_params
from ilm_lib.study import grid
from ilm_lib.study.grid import parameters_file

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Calls of snakemake, which does not run."""
    calls = []
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(
        grid.subprocess, "run", lambda command, **_: calls.append(command) or subprocess.CompletedProcess([], 0)
    )
    return calls


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["tyo"], "no profile 'tyo'"),
        (["ml100k"], "-m ilm_lib.data ML100K"),
        (["elm24-ml1m"], "-m ilm_lib.data ML1M"),
        (["toy", "--seeds", "0"], "--seeds"),
        (["toy", "--seeds", "abc"], "--seeds: 'abc' is no whole number from 1"),
        (["toy", "--cores", "0"], "--cores"),
        (["x; touch y"], "no profile 'x; touch y'"),
    ],
)
def test_what_cannot_run_is_said_in_a_line_or_two_before_any_work(started, capsys, tmp_path, arguments, message):
    assert grid.main(arguments) == 1 and started == [] and not (tmp_path / "runs").exists()
    said = capsys.readouterr().err
    assert message in said and said.count("\n") <= 3 and "Traceback" not in said


def test_options_go_to_snakemake(started):
    assert grid.main(["toy", "--seeds", "3", "--cores", "5", "--until", "phase1"]) == 0
    (command,) = started
    assert command[-3:] == ["--config", "profile=toy", "seeds=3"] and command[command.index("--cores") + 1] == "5"
    assert command[-5:-3] == ["--until", "phase1"]


def test_a_run_is_given_every_setting_and_the_file_changes_only_with_them(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = load_params("toy")
    path = parameters_file(params)
    given, written = yaml.safe_load(path.read_text(encoding="utf-8")), path.stat().st_mtime_ns
    assert given.pop("overrides") == {} and set(given) == set(type(params).model_fields)
    assert load_params({"profile": "toy", **given}) == params
    assert parameters_file(params).stat().st_mtime_ns == written
    assert yaml.safe_load(parameters_file(params.with_(**{"phase1.steps": 3})).read_text())["phase1"]["steps"] == 3


@pytest.mark.slow
def test_a_grid_goes_on_after_a_kill_in_a_folder_with_an_odd_name(tmp_path):
    """A killed snakemake leaves its lock; blanks, quotes, $ and umlauts in paths reach no shell unquoted."""
    folder = tmp_path / "a study, $HOME 'of' Jürgen"
    for name in ("ilm_lib", "notebooks", "params"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    wanted = folder / "runs" / "toy" / "notebooks" / "01_data.ipynb"
    lock = folder / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(f"{wanted}\n")
    env = {key: value for key, value in os.environ.items() if not key.startswith("ILM_")}
    command = [sys.executable, "-m", "ilm_lib.study", "toy", "--cores", "1", "--until", "data"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**env, "PYTHONPATH": str(folder)})
    assert run.returncode == 0 and wanted.exists(), run.stdout + run.stderr
    assert "✓ done" in run.stdout
