"""`python -m ilm_lib.study.notebook_run NAME LABEL`: one run of a notebook, for the grid, in the folder of its profile.

papermill executes it in `logs/NAME/`, with everything that it writes beside it. Only what has finished is moved to
`notebooks/NAME.ipynb`; what has not stays, with its errors in `output.txt`. The terminal gets a line at the start, the
progress, and one line about an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path
from shlex import quote

import nbformat
import yaml

from ilm_lib.errors import LONGEST
from ilm_lib.executed import write_executed
from ilm_lib.profiles import ROOT
from ilm_lib.progress import append_line
from ilm_lib.study.plan import made_of, source

ENVIRONMENT = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",  # of 1,024: each new shape in bfloat16 would keep its memory for hours
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}


def command(name: str, label: str, *, python: str = sys.executable, root: Path = ROOT) -> str:
    """The shell command of a run, for snakemake, which fills in {threads} and, in `name` and `label`, its wildcards."""

    def as_it_is(word: object) -> str:
        return quote(str(word)).replace("{", "{{").replace("}", "}}")

    environment = f"env {as_it_is(f'PYTHONPATH={root}')} OMP_NUM_THREADS={{threads}}"
    own = re.sub(r"{(\w+)}", r"{wildcards.\1}", f"{name} '{label}'")  # seeds, and methods as METHODS has them
    return f"{environment} {as_it_is(python)} -m ilm_lib.study.notebook_run {own}"


def run(name: str, home: Path) -> None:
    """Execute a notebook with the parameters in `parameters/NAME.yaml`; leave `notebooks/NAME.ipynb`."""
    import papermill

    parameters = (home / "parameters" / f"{name}.yaml").read_text(encoding="utf-8")
    notebook, folder = source(name).read_bytes(), home / "logs" / name
    key = made_of(notebook, parameters)
    os.environ["ILM_MADE"] = str(folder)
    executed = papermill.execute_notebook(
        nbformat.reads(notebook.decode(), as_version=4),
        str(folder / "notebook.ipynb").replace("{", "{{").replace("}", "}}"),  # papermill formats it
        yaml.safe_load(parameters),
        kernel_name="python3",
        progress_bar=False,
        cwd=ROOT,
    )
    write_executed(json.loads(nbformat.writes(executed)), folder, home / "notebooks" / f"{name}.ipynb", made_of=key)
    shutil.rmtree(folder)


def explain(error: Exception) -> str:
    """One line on what stopped a run: the message of a refusal, type and message of any other error."""
    from papermill.exceptions import PapermillExecutionError

    if type(error).__name__ == "DeadKernelError":  # nbclient's, which comes with papermill
        return "its process was killed, as where memory runs out: try fewer CORES, or a smaller batch_size"
    if isinstance(error, PapermillExecutionError):
        if len(error.traceback) == 1:  # of errors.Refusal: short, but for the paths in it
            return " ".join(str(error.evalue).split())
        said = f"{error.ename}: {error.evalue}"
    elif isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        said = f"{type(error).__name__}: {error}"
    said = " ".join(said.split())
    return said if len(said) <= LONGEST else f"{said[:LONGEST].rstrip()} …"


def main(arguments: list[str]) -> int:
    """Run one notebook; 0, or 1 after one line on the terminal."""
    name, label = arguments
    home, terminal = Path.cwd(), os.dup(2)
    progress = os.environ.setdefault("ILM_PROGRESS", f"/proc/{os.getpid()}/fd/{terminal}")
    os.environ |= {"ILM_JOB": label, **ENVIRONMENT}
    append_line(progress, f"  ▶ {label}")
    folder = home / "logs" / name
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with open(folder / "output.txt", "w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 2)
        run(name, home)
    except Exception as error:
        append_line(progress, f"  ✗ {label}: {explain(error)}\n    the whole: {folder / 'output.txt'}")
        sys.stderr.write(re.sub(r"\x1b\[[0-9;]*m", "", traceback.format_exc()))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
