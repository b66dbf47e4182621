"""`python -m ilm_lib.study`: what is refused before any work, what a study consists of, and which runs still hold."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from rough.plain import plain

from ilm_lib import load_params
from ilm_lib.executed import executed_path, study_lock, write_executed
from ilm_lib.files import Busy, hold
from ilm_lib.settings import merge_dotted, validate
from ilm_lib.study import grid, plan

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Calls of snakemake, which does not run."""
    calls = []
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(grid, "_follow", lambda command, *_: calls.append(command) or (0, True))
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


def test_options_go_to_snakemake(started, capsys):
    assert grid.main(["toy", "--seeds", "3", "--cores", "5", "--until", "phase1"]) == 0
    (command,) = started
    assert command[-3:] == ["--config", 'profile="toy"', "seeds=3"] and command[command.index("--cores") + 1] == "5"
    assert command[-5:-3] == ["--until", "phase1"]
    assert "without a report" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cluster_would_be_given_every_notebook(monkeypatch, tmp_path, capfd):
    """The options of the README for Slurm; what snakemake would submit, and nothing is."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    slurm = ["--executor", "slurm", "--jobs", "20", "--default-resources", "slurm_partition=gpu", "runtime=240"]
    assert grid.main(["toy", "--seeds", "2", "--cores", "20", *slurm, "--dry-run"]) == 0
    said = capfd.readouterr().out
    jobs = {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}
    assert jobs["data"] == 1 and jobs["phase1"] == jobs["backbone"] == 2 and jobs["phase2"] == 6
    assert {"embeddings", "openp5", "elm24", "scoring", "chat"} <= jobs.keys() and "This was a dry-run" in said


def test_done_is_never_said_of_what_is_not_there(started, capsys):
    """Snakemake says that all went well, and yet no notebook was executed."""
    assert grid.main(["toy"]) == 1 and len(started) == 1
    said = capsys.readouterr()
    assert "✓" not in said.out and plain(said.err.strip(), "01_data", "make study PROFILE=toy")


# ------------------------------------------------------------ what a study consists of


@pytest.mark.parametrize(
    ("changes", "seeds", "there", "gone"),
    [
        ({}, 1, "01 02 03 04-OpenP5-R 04-MLP 04-ILM 05 06 07 09 10 11", "04-ILM-IT"),
        ({}, 2, "02_embeddings-seed1 04_phase2-ILM-seed1", "seed2"),
        ({"seed": 3}, 2, "seed3 seed4", "seed0 seed5"),
        ({"methods": ["OpenP5-R", "ILM"]}, 1, "04-ILM", "04-MLP ILM-rand"),
        ({"methods": ["MLP", "ILM"]}, 1, "04-MLP 04-ILM", "04-OpenP5-R"),
        ({"elm24.enabled": False}, 1, "02 04-ILM 06 07 09", "05"),
        ({"evaluation.enabled": False}, 1, "01 02 05 11", "03 04 06 07 09 10"),
        ({"evaluation.readouts": ["score"]}, 1, "01 02 03 04-OpenP5-R 10", "04-MLP 04-ILM 06 07 09"),
        ({"evaluation.readouts": ["beam"]}, 1, "06 07", "10"),
        ({"ablations.readings": {}}, 1, "05 06 07", "09"),
        ({"chat.enabled": False}, 1, "10", "11"),
    ],
    ids=str,
)
def test_a_report_shows_what_the_profile_says(changes, seeds, there, gone):
    params = load_params(ROOT / "params" / "toy.yaml")
    params = validate({**params.model_dump(), "ablations": {"readings": {}}} if "ablations.readings" in changes
                      else merge_dotted(params.model_dump(), changes))  # fmt: skip
    names = " " + " ".join(plan.shown(params, seeds))
    match = lambda word: re.search(rf" {word[:2]}_\w+-{word[3:]}-" if re.match(r"\d\d-", word) else word, names)
    assert all(map(match, there.split())) and not any(map(match, gone.split())), names


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished study of the toy profile without its reports: a stage, and executed notebooks that stand on it."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params, home = load_params(ROOT / "params" / "toy.yaml"), tmp_path / "toy"
    (home / "data" / "0123").mkdir(parents=True)
    (home / "data" / "0123" / "manifest.json").write_text("{}")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "stages.txt").write_text("data/0123\n")
    plan.prepare(params, 1)
    for name in plan.runs(params, 1):
        given = (home / "parameters" / f"{name}.yaml").read_text()
        made = nbformat.v4.new_notebook()
        key = plan.made_of(plan.source(name).read_bytes(), given)
        write_executed(json.loads(nbformat.writes(made)), tmp_path / "made", executed_path("toy", name), made_of=key)
    assert plan.gone(params, 1) == []
    return params, home


def test_a_run_is_given_every_setting_and_its_file_changes_only_with_them(finished):
    params, home = finished
    path = home / "parameters" / "06_openp5_eval.yaml"
    given, written = yaml.safe_load(path.read_text(encoding="utf-8")), path.stat().st_mtime_ns
    assert given.pop("overrides") == {} and set(given) == set(type(params).model_fields) and given["seeds"] == [0]
    assert load_params({"profile": "toy", **given}) == params.with_(seeds=[0])
    plan.prepare(params, 1)
    assert path.stat().st_mtime_ns == written
    plan.prepare(params.with_(**{"phase1.steps": 3}), 1)
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["phase1"]["steps"] == 3
    phase2 = yaml.safe_load((home / "parameters" / "04_phase2-MLP-seed0.yaml").read_text(encoding="utf-8"))
    assert (phase2["method"], phase2["seed"], phase2["seeds"]) == ("MLP", 0, [])


def test_what_does_not_hold_any_more_is_run_again(finished, monkeypatch):
    params, home = finished
    everything = [*plan.runs(params, 1)]
    six = executed_path("toy", "06_openp5_eval")
    whole = six.read_text()
    for text in ("", whole[:-9], whole.replace("made_of", "made"), whole.replace('""', '"x"', 1)):
        six.write_text(text)
        assert plan.gone(params, 1) == ["06_openp5_eval"]
    six.unlink()
    assert plan.gone(params, 1) == ["06_openp5_eval"]
    six.write_text(whole)
    assert plan.gone(params.with_(**{"evaluation.beams": 11}), 1) == everything
    overall = ["05_elm24_eval", "06_openp5_eval", "07_ablations", "09_readings", "10_scoring", "11_chat"]
    assert [n for n in plan.gone(params, 2) if "seed" not in n] == overall  # three seeds, then one: the same
    monkeypatch.setattr(plan, "library_digest", lambda: "another")
    assert plan.gone(params, 1) == everything
    monkeypatch.undo()
    monkeypatch.setenv("ILM_RUNS_DIR", str(home.parent))
    source = plan.source
    changed = home / "notebook.ipynb"
    changed.write_text("changed")
    monkeypatch.setattr(plan, "source", lambda name: changed if name.startswith("06") else source(name))
    assert plan.gone(params, 1) == ["06_openp5_eval"]
    monkeypatch.setattr(plan, "source", source)
    (home / "data" / "0123" / "manifest.json").unlink()  # as the message about a corrupt stage advises
    assert plan.gone(params, 1) == everything


# ------------------------------------------------------------ one at a time


def test_a_second_study_of_a_profile_says_who_is_at_work(started, capsys, tmp_path):
    with study_lock("toy"):
        assert grid.main(["toy"]) == 1 and started == []
        plain(
            capsys.readouterr().err.strip(),
            f"process {os.getpid()} on ",
            str(tmp_path / "runs" / "toy"),
            "ILM_RUNS_DIR",
        )
        with study_lock("other"):  # another profile, or another runs folder, is no hindrance
            pass
    grid.main(["toy"])
    assert len(started) == 1


def test_a_lock_lasts_as_long_as_the_child_that_inherits_it(tmp_path):
    with hold(tmp_path / "lock", "{holder}") as lock:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(Busy, match=f"process {os.getpid()} on"), hold(tmp_path / "lock", "{holder}"):
        pass
    child.communicate(b"\n")
    with hold(tmp_path / "lock", "{holder}"):
        pass
