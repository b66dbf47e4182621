"""The life of a run: failures, reruns, settings that change, odd paths, two at once, Ctrl-C.

A tiny study stands for the real one: the library, the grid and a profile as they are, notebooks of a few lines.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from shlex import quote
from types import SimpleNamespace

import nbformat
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from papermill.exceptions import PapermillExecutionError
from plain import plain

from ilm_lib.executed import study_lock
from ilm_lib.files import Busy
from ilm_lib.study import artifacts, grid, plan
from ilm_lib.study.artifacts import CorruptStage
from ilm_lib.study.notebook_run import command, explain

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
        # A shell's background jobs, and these tests among them, ignore Ctrl-C; who types it has no such shell.
        heeds = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        return subprocess.Popen(command, cwd=self.folder, env=env | environment, preexec_fn=heeds, **pipes)

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
    assert "Traceback" not in said and "Error in rule" not in said and said.count("\n") <= 7, said
    shutil.rmtree(value.parent)
    status, said = study.run()
    assert status == 0 and "▶ 05" in said and study.pages() == PAGES, said
    assert "changed" in (study.home / "report" / "05_elm24_eval.html").read_text()


# ------------------------------------------------------------ what a failed notebook says


def failed(name: str, value: str, trace: tuple[str, ...] = ("Traceback (most recent call last)", "…")) -> Exception:
    return PapermillExecutionError(7, 7, "code()", name, value, list(trace))


@pytest.mark.parametrize(
    ("error", "names", "hidden"),
    [
        (failed("CorruptStage", "x/v.bin was changed", ("one line",)), ("x/v.bin was changed",), "CorruptStage"),
        (failed("KeyError", "'ILM'"), ("KeyError: 'ILM'",), "Traceback"),
        (failed("ValueError", "first\n  second\n\nthird"), ("ValueError: first second third",), "\n"),
        (failed("RuntimeError", "x" * 5000), ("RuntimeError: xxx", "…"), "x" * 300),
        (failed("OSError", "[Errno 28] No space left on device: 'a'"), ("No space left on device: 'a'",), "\n"),
        (failed("MemoryError", ""), ("MemoryError",), "Traceback"),
        (DeadKernelError("Kernel died"), ("killed", "memory", "CORES"), "Kernel died"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), ("a/b: No space left",), "Errno"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), ("a/b: Permission denied",), "Errno"),
        (TimeoutError("no kernel"), ("TimeoutError: no kernel",), "\n"),
        (ValueError("not JSON"), ("ValueError: not JSON",), "\n"),
    ],
    ids=lambda value: getattr(value, "ename", None) or type(value).__name__,
)
def test_an_error_is_one_line(error, names, hidden):
    said = explain(error)
    assert hidden not in said and "\n" not in plain(said.removesuffix(" …"), *(n for n in names if n != "…"))


def test_a_notebook_shows_a_refusal_without_a_traceback():
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    try:
        raise CorruptStage("x was changed; delete the folder y")
    except CorruptStage:
        seen = []
        shell._showtraceback = lambda kind, value, lines: seen.extend(lines)
        shell.showtraceback()
    assert seen == ["CorruptStage: x was changed; delete the folder y"]


def test_a_run_notes_what_it_stands_on(tmp_path, monkeypatch):
    """Also what it missed: none of it may be gone when its page is taken for a good one."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(artifacts, "code_digest", lambda make: "stands for the code")
    make = lambda folder, n: (folder / "n.txt").write_text(str(n))
    made = lambda n, build: artifacts.stage("data", make, "toy", made_by="01_data", build=build, given={"n": n})
    first = made(1, True)
    monkeypatch.setenv("ILM_MADE", str(tmp_path))
    again, second = made(1, False), made(2, True)
    with pytest.raises(artifacts.MissingStage):
        made(3, False)
    noted = (tmp_path / "stages.txt").read_text().splitlines()
    assert noted[:2] == [f"data/{a.key}" for a in (again, second)] and len(noted) == 3 and again == first


# ------------------------------------------------------------ paths

ODD = {
    "blank": "a study", "quote": "it's", "double quote": 'a "b"', "dollar": "$HOME", "backtick": "`touch y`",
    "semicolon": "a; touch y", "and": "a && touch y", "star": "a*", "umlaut": "Jürgen", "dash": "-rf", "hash": "a #b",
    "braces": "{a}", "wildcards": "{wildcards.seed}", "percent": "50%", "backslash": "a\\b", "newline": "a\nb",
    "tilde": "~", "bang": "a!b", "glob": "[ab]?", "pipe": "a|b>c", "emoji": "🎬",
}  # fmt: skip


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_nothing_in_a_path_is_run_or_split(tmp_path, name):
    """The command of a notebook, filled in as snakemake does, by a shell, with an interpreter that says what it got."""
    folder = tmp_path / name
    folder.mkdir()
    python = folder / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\0" "$PYTHONPATH" "$OMP_NUM_THREADS" "$@"\n')
    python.chmod(0o755)
    text = command("04_phase2-{method}-seed{seed}", "04 phase 2 of {method}", python=str(python), root=folder)
    filled = text.format(threads=2, wildcards=SimpleNamespace(method="ILM-rand", seed=3))
    done = subprocess.run(["bash", "-c", filled], cwd=tmp_path, capture_output=True, text=True, check=True)
    words = ["-m", "ilm_lib.study.notebook_run", "04_phase2-ILM-rand-seed3", "04 phase 2 of ILM-rand"]
    assert done.stdout.split("\0")[:-1] == [str(folder), "2", *words]
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


def started(monkeypatch) -> list[dict[str, str]]:
    """What snakemake would have been given as environment; it does not run."""
    seen = []
    monkeypatch.setattr(grid, "_follow", lambda *_: seen.append(dict(os.environ)) or (1, True))
    return seen


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_a_runs_folder_may_have_any_name(tmp_path, monkeypatch, capsys, name):
    seen = started(monkeypatch)
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / name))
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / name))
    assert grid.main(["toy"]) == 1 and seen[0]["ILM_RUNS_DIR"] == seen[0]["ILM_DATA_DIR"] == str(tmp_path / name)
    assert (tmp_path / name / "toy" / "parameters" / "01_data.yaml").is_file()
    with study_lock("toy"), pytest.raises(Busy, match="process"), study_lock("toy"):
        pass


@pytest.mark.parametrize(
    ("given", "meant"), [("here", "{cwd}/here"), ("~/runs", "{home}/runs"), ("../x", "{cwd}/../x")]
)
def test_a_runs_folder_is_found_from_where_one_stands(tmp_path, monkeypatch, given, meant):
    """Notebooks run in another folder: they are told the whole path."""
    seen, cwd, home = started(monkeypatch), tmp_path / "cwd", tmp_path / "home"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    for variable, value in (("HOME", str(home)), ("ILM_RUNS_DIR", given), ("ILM_DATA_DIR", given)):
        monkeypatch.setenv(variable, value)
    grid.main(["toy"])
    assert seen[0]["ILM_RUNS_DIR"] == seen[0]["ILM_DATA_DIR"] == meant.format(cwd=cwd, home=home)


def a_file(folder: Path, _) -> str:
    (folder / "runs").write_text("")
    return "runs"


def a_file_inside(folder: Path, _) -> str:
    (folder / "runs").mkdir()
    (folder / "runs" / "toy").write_text("")
    return "toy"


def a_dangling_link(folder: Path, _) -> str:
    (folder / "runs").symlink_to(folder / "gone" / "away")
    return "runs"


def says(code: int):
    def fail(folder: Path, monkeypatch) -> str:
        def write_text(path, *_):
            raise OSError(code, os.strerror(code), str(path))

        monkeypatch.setattr(plan, "write_text", write_text)
        return os.strerror(code)

    return fail


@pytest.mark.parametrize(
    "spoil",
    [a_file, a_file_inside, a_dangling_link, *map(says, (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT))],
    ids=["a file", "a file inside", "a dangling link", "full", "read-only", "not ours", "quota"],
)  # fmt: skip
def test_a_runs_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, spoil):
    seen = started(monkeypatch)
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    name = spoil(tmp_path, monkeypatch)
    assert grid.main(["toy"]) == 1 and not seen
    said = capsys.readouterr().err.strip()
    assert "\n" not in plain(said, name, "ILM_RUNS_DIR") and said.startswith("✗ ")


# ------------------------------------------------------------ whole runs


@pytest.mark.slow
def test_a_study_in_folders_with_odd_names(tmp_path):
    """Checkout and runs: nothing in a name is run, lost or mistaken; snakemake remembers nothing in the checkout."""
    name = "-a {study}, $HOME; 'of' \"Jürgen\" `touch y` * #"
    study = Study(tmp_path / f"checkout {name}", tmp_path / f"runs {name}")
    status, said = study.run()
    assert status == 0, said
    place = os.path.relpath(study.home / "report" / "index.html", study.folder)
    assert f"✓ done: open {quote(place)}" in said and study.pages() == PAGES
    assert not (study.folder / ".snakemake").exists() and not [*tmp_path.rglob("y")]
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal\n\nos.kill(os.getpid(), signal.SIGKILL)",
            "its process was killed, as where memory runs out",
        ),
        ("values = {}\nvalues['ILM']", "KeyError: 'ILM'"),
    ],
    ids=["killed", "raises"],
)
def test_a_notebook_that_fails_says_so_in_one_line_and_runs_again(study, code, message):
    study.notebook("02_embeddings", code)
    status, said = study.run()
    lines = said.splitlines()
    assert status == 1 and [*filter(None, (message in line for line in lines))] == [True] and len(lines) <= 8, said
    assert f"✗ 02 embeddings, seed 0: {message}" in said and "Traceback" not in said and "rule" not in said
    whole = Path(next(line for line in lines if "the whole:" in line).partition(": ")[2])
    assert "Error" in whole.read_text() and "\x1b" not in whole.read_text()
    assert not (study.home / "notebooks" / "02_embeddings-seed0.ipynb").exists()
    study.notebook("02_embeddings", "print(1)")
    status, said = study.run()
    assert status == 0 and study.pages() == PAGES and not whole.exists(), said


@pytest.mark.slow
def test_what_left_the_profile_leaves_the_report(study):
    """A method, a seed and a half of the study are taken away; nobody's rows stay behind."""
    assert study.run("--seeds", "2")[0] == 0
    rows = lambda: (study.home / "report" / "results.csv").read_text().splitlines()[1:]
    assert len(rows()) == 4 and len(study.pages()) == 4
    study.profile(PROFILE.replace("MLP, ", ""))
    status, said = study.run()
    assert status == 0 and study.pages() == PAGES, said
    assert rows() == ["table1,ELM24,all,,,,ILM,,0,SC,0.5,10"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_a_study_that_is_stopped_says_so_in_one_line_and_leaves_no_process(study, number):
    study.notebook("01_data", "import os, time\n\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(300)")
    process, pid = study.start(), study.folder / "pid"
    while not (pid.is_file() and pid.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    status, said = study.run()  # a second one meanwhile
    assert status == 1 and plain(said.splitlines()[-1], "is in use by process"), said
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1].startswith("✗ stopped; 'make study PROFILE=tiny'"), said
    assert "✗ 01" not in said and "Traceback" not in said
    end = time.monotonic() + 20
    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < end, "the notebook's process lives on"
        time.sleep(0.2)
    study.notebook("01_data", STAGE.format(build=True))
    assert study.run()[0] == 0 and study.pages() == PAGES
