"""The study end to end: every notebook as a user would run it, and nbval on the committed ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from ilm_lib.executed import write_executed

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHAINS = (("02", "03", "05", "08", "09", "11"), ("04", "06", "07", "10"))  # of about the same length


# ------------------------------------------------------------ notebooks


@pytest.mark.slow
def test_notebooks_reproduce_their_claims(tmp_path):
    """nbval on the committed notebooks, from nothing: every checked output must come again.

    After the data two chains run side by side. They share what stages leave; whoever comes first makes it.
    """
    env = {**os.environ, "ILM_RUNS_DIR": str(tmp_path / "runs"), "ILM_PROGRESS": os.devnull, "OMP_NUM_THREADS": "1"}
    first = [p for p in NOTEBOOKS if p.name.startswith("01")]
    chains = [[p for p in NOTEBOOKS if p.name[:2] in numbers] for numbers in CHAINS]
    assert sorted([*first, *chains[0], *chains[1]]) == NOTEBOOKS
    for together in ([first], chains):
        runs = [_nbval(chain, tmp_path, env) for chain in together]
        for run in runs:
            said, _ = run.communicate()
            assert run.returncode == 0, said[-6000:]

    results = pd.read_csv(tmp_path / "runs/toy/results.csv", keep_default_na=False)
    assert set(results["table"]) == {"table1", "table3", "table6", "table7", "figure3", "scoring", "conversation"}
    both = results[
        (results["table"] == "table3")
        & (results["task"] == "both")
        & (results["prompt"] == "seen")
        & (results["metric"] == "HR@10")
        & (results["history"] == "excluded")
    ].set_index("method")["value"]
    assert both["Oracle"] > both.drop("Oracle").max()
    assert both["ILM"] - both["OpenP5-R"] > 0.02  # three standard errors of a paired difference of 2,000
    claims = pd.read_csv(tmp_path / "runs/toy/claims.csv")
    assert (claims.set_index("claim")["verdict"]["The LLM stays exactly as it was"]) == "reproduced"
    _site(tmp_path, env)


def _nbval(notebooks: list[Path], folder: Path, env: dict[str, str]) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval-lax",
        "--nbval-cell-timeout=900",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += [*map(str, notebooks), "-c", os.devnull, "--rootdir", str(ROOT / "notebooks")]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _site(tmp_path: Path, env: dict[str, str]) -> None:
    """A report renders from notebooks that carry what these have left, and links to what is there."""
    executed = tmp_path / "runs/toy/notebooks"
    for path in NOTEBOOKS[:2]:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        write_executed(notebook, tmp_path / "runs/toy", executed / path.name, made_of="nothing in particular")
    (tmp_path / "runs/toy/study.json").write_text(json.dumps({"notebooks": [p.stem for p in NOTEBOOKS[:2]]}))
    subprocess.run(
        [sys.executable, "-m", "ilm_lib.report", "build", "toy"], cwd=tmp_path, env=env, check=True, capture_output=True
    )
    site = tmp_path / "runs/toy/report"
    index = (site / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'(?:href|src)="([^"#:]+)"', index):
        assert (site / unquote(link)).exists(), link
    assert "Oracle" in index and "01_data.html" in index and "figures/" in index


@pytest.mark.slow
def test_papermill_refuses_a_misspelt_parameter(tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "papermill",
            str(NOTEBOOKS[0]),
            str(tmp_path / "out.ipynb"),
            "-k",
            "python3",
            "-p",
            "sede",
            "3",
            "--no-progress-bar",
        ],
        env={**os.environ, "ILM_RUNS_DIR": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "unknown parameter 'sede'" in run.stderr and "Did you mean 'seed'" in run.stderr
    assert not (tmp_path / "runs").exists()  # stopped before any work


@pytest.mark.slow
@pytest.mark.parametrize(
    "profile, halves", [("toy", {"elm24", "openp5"}), ("ml100k", {"openp5"}), ("elm24-ml1m", {"elm24"})]
)
def test_a_profile_studies_its_halves(tmp_path, profile, halves):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", "--config", f"profile={profile}"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"ILM_RUNS_DIR": str(tmp_path)}
    )
    planned = set(re.findall(r"^rule (\w+):", done.stdout + done.stderr, re.MULTILINE))
    assert done.returncode == 0 and planned & {"elm24", "openp5"} == halves and {"data", "embeddings"} <= planned
    assert ("phase2" in planned) == ("openp5" in halves)


def test_missing_input_names_the_notebook(tmp_path, monkeypatch):
    from ilm_lib import load_params
    from ilm_lib.study import inputs
    from ilm_lib.study.artifacts import MissingStage

    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    with pytest.raises(MissingStage, match=r"notebooks/01_data.ipynb.*make study PROFILE=toy"):
        inputs.embeddings(load_params("toy"), 0, build=True)


def test_run_card_is_stored_with_every_stage(tmp_path, monkeypatch):
    from ilm_lib import load_params
    from ilm_lib.study import inputs

    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    manifest = json.loads(inputs.data(load_params("toy"), build=True).path("manifest.json").read_text())
    assert {"given", "code", "packages", "seconds", "peak_memory_gib", "files"} <= set(manifest)
