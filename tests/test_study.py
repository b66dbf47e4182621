"""The study end to end: every notebook as a user would run it, nbval on the committed ones, and the set-up."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(path: Path, kind: str = "code"):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


def tagged(path: Path, tag: str):
    return [c for c in cells(path) if tag in c.metadata.get("tags", [])]


# ------------------------------------------------------------ notebooks

@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_form(path):
    """15 to 35 cells, one parameters cell of plain literals, claims and run card at the end, short code."""
    all_cells = nbformat.read(path, 4).cells
    assert 15 <= len(all_cells) <= 35
    assert "parameters" in all_cells[1].metadata["tags"]
    names = re.findall(r"^(\w+) = ", all_cells[1].source, re.M)
    assert {"profile", "seed", "overrides"} <= set(names)
    assert len(tagged(path, "claims")) == len(tagged(path, "run-card")) == 1
    assert "run-card" in all_cells[-1].metadata["tags"]
    assert sum(c.source.count("\n") + 1 for c in cells(path)) <= 160
    for cell in cells(path):
        for body in re.findall(r"^def .*\n((?:    .*\n?)+)", cell.source, re.M):
            assert body.count("\n") <= 5, f"a function in {path.name} belongs into ilm_lib"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_outputs(path):
    """Committed notebooks are executed, without errors, warnings or paths of anybody's machine."""
    for cell in cells(path):
        assert cell.execution_count is not None
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", cell.source
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text and str(ROOT) not in text


def test_notebooks_reproduce_their_claims(tmp_path):
    """nbval on the committed notebooks, in order and from nothing: every checked output must come again."""
    env = {**os.environ, "ILM_RUNS_DIR": str(tmp_path / "runs"), "ILM_REPORTS_DIR": str(tmp_path / "reports"),
           "ILM_PROGRESS": os.devnull, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run([sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=900", "-q", "-p",
                          "no:cacheprovider", *map(str, NOTEBOOKS)],
                         cwd=tmp_path, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]

    results = pd.read_csv(tmp_path / "runs/toy/results.csv", keep_default_na=False)
    assert set(results["table"]) == {"table1", "table3", "table6", "table7", "figure3"}
    both = results[(results["table"] == "table3") & (results["task"] == "both") & (results["prompt"] == "seen")
                   & (results["metric"] == "HR@10") & (results["history"] == "excluded")].set_index("method")["value"]
    assert both["Oracle"] > both.drop("Oracle").max()
    assert both["ILM"] - both["OpenP5-R"] > 0.02  # three standard errors of a paired difference of 2,000
    claims = pd.read_csv(tmp_path / "runs/toy/claims.csv")
    assert (claims.set_index("claim")["verdict"]["The LLM stays exactly as it was"]) == "reproduced"
    _site(tmp_path, env)


def _site(tmp_path: Path, env: dict[str, str]) -> None:
    """The report renders from executed notebooks and links to what is there."""
    executed = tmp_path / "runs/toy/notebooks"
    executed.mkdir(parents=True)
    for path in NOTEBOOKS[:2]:
        (executed / path.name).write_bytes(path.read_bytes())
    subprocess.run([sys.executable, "-m", "ilm_lib.report", "toy"], cwd=tmp_path, env=env, check=True,
                   capture_output=True)
    site = tmp_path / "reports/toy"
    index = (site / "index.html").read_text(encoding="utf-8")
    for link in re.findall(r'(?:href|src)="([^"#:]+)"', index):
        assert (site / unquote(link)).exists(), link
    assert "Oracle" in index and "01_data.html" in index


def test_papermill_refuses_a_misspelt_parameter(tmp_path):
    run = subprocess.run([sys.executable, "-m", "papermill", str(NOTEBOOKS[0]), str(tmp_path / "out.ipynb"),
                          "-k", "python3", "-p", "sede", "3", "--no-progress-bar"],
                         env={**os.environ, "ILM_RUNS_DIR": str(tmp_path / "runs")}, capture_output=True, text=True)
    assert run.returncode != 0
    assert "unknown parameter 'sede'" in run.stderr and "Did you mean 'seed'" in run.stderr
    assert not (tmp_path / "runs").exists()  # stopped before any work


@pytest.mark.parametrize("profile, halves", [
    ("toy", {"elm24", "openp5"}), ("ml100k", {"openp5"}), ("elm24-ml1m", {"elm24"})])
def test_a_profile_studies_its_halves(tmp_path, profile, halves):
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "2", "--config", f"profile={profile}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"ILM_RUNS_DIR": str(tmp_path)})
    planned = set(re.findall(r"^rule (\w+):", done.stdout + done.stderr, re.MULTILINE))
    assert done.returncode == 0 and planned & {"elm24", "openp5"} == halves and {"data", "embeddings"} <= planned
    assert ("phase2" in planned) == ("openp5" in halves)


def test_a_study_goes_on_after_a_run_that_was_killed(tmp_path):
    for name in ("Snakefile", "ilm_lib", "notebooks", "params"):
        (tmp_path / name).symlink_to(ROOT / name)
    wanted = tmp_path / "runs" / "toy" / "notebooks" / "01_data.ipynb"
    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text(f"{wanted}\n")
    said = subprocess.run(["make", "-n", "study", "CORES=1"], cwd=ROOT, capture_output=True, text=True).stdout
    options = re.search(r"/snakemake (--cores.*?seeds=1)", said.replace("\\\n", " "), re.DOTALL)[1].split()
    run = subprocess.run([sys.executable, "-m", "snakemake", *options, "--until", "data"], cwd=tmp_path,
                         capture_output=True, text=True, env=os.environ | {"ILM_RUNS_DIR": str(tmp_path / "runs")})
    assert run.returncode == 0 and wanted.exists(), run.stderr


def test_missing_input_names_the_notebook(tmp_path, monkeypatch):
    from ilm_lib import load_params, study
    from ilm_lib.artifacts import MissingStage

    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    with pytest.raises(MissingStage, match=r"notebooks/01_data.ipynb.*make study PROFILE=toy"):
        study.embeddings(load_params("toy"), 0, build=True)


# ------------------------------------------------------------ set-up

def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {m[1].lower().replace("_", "-"): m[2] for line in lines if (m := re.match(r"([\w.-]+)==([\w.]+)$", line))}


def test_lock_pins_everything_and_nothing_else():
    lines = [x for x in (ROOT / "requirements.lock").read_text().splitlines() if x and not x.startswith("#")]
    assert len(lines) == len(pins())
    assert not any(re.search(r"https?:|file:|@|/", x) for x in lines)


def test_pyproject_and_lock_agree():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in pins(), f"{name} is not in requirements.lock"
        assert pins()[name] in requirement.specifier, f"the lock's {name} {pins()[name]} does not meet {text}"


def test_environment_yml_installs_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "--editable ."]
    python = next(d for d in conda["dependencies"] if isinstance(d, str) and d.startswith("python="))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert python == "python=" + project["requires-python"].removeprefix(">=")


def test_library_imports_run_one_way():
    """No import cycle among the modules of ilm_lib (imports inside functions included)."""
    graph = {}
    for path in (ROOT / "ilm_lib").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        source = path.read_text(encoding="utf-8")
        found = set(re.findall(r"^\s*from (ilm_lib[\w.]*) import", source, re.M))
        found |= {f"ilm_lib.{m}" for line in re.findall(r"^from ilm_lib import (.+)$", source, re.M)
                  for m in re.findall(r"(\w+)(?: as \w+)?(?:,|$)", line)}
        graph[name] = found - {"ilm_lib"} if name != "ilm_lib" else set()
    seen, stack = set(), []

    def visit(node):
        assert node not in stack, " -> ".join([*stack, node])
        if node in seen or node not in graph:
            return
        stack.append(node)
        for other in graph[node]:
            visit(other)
        stack.pop()
        seen.add(node)

    for node in graph:
        visit(node)


def test_run_card_is_stored_with_every_stage(tmp_path, monkeypatch):
    from ilm_lib import load_params, study

    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    manifest = json.loads(study.data(load_params("toy"), build=True)("manifest.json").read_text())
    assert {"params", "inputs", "code", "packages", "seconds", "peak_memory_gib", "files"} <= set(manifest)
