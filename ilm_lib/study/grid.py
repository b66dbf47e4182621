"""`python -m ilm_lib.study PROFILE`: the whole study of a profile, notebook by notebook, as `make study` runs it.

Options it does not know go to snakemake, e.g. `--executor slurm` or `--until phase1`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import yaml

from ilm_lib.data import missing_data
from ilm_lib.files import write_text
from ilm_lib.profiles import ROOT, load_params, report_dir, runs_dir
from ilm_lib.settings import Params, ParamsError


def parameters_file(params: Params) -> Path:
    """Every setting of a profile in one file, for papermill: nothing that a reader left in a notebook gets into a run.

    The file changes only where a setting does, so that its time tells what to run again.
    """
    path = runs_dir() / params.profile / "parameters.yaml"
    text = yaml.safe_dump({**params.model_dump(mode="json"), "overrides": {}}, sort_keys=False, allow_unicode=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def main(arguments: list[str] | None = None) -> int:
    """Run the study of a profile; 0, or 1 after one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m ilm_lib.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profile", help="of params/")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from the profile's own on (default: 1)")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="(default: all)")
    args, others = parser.parse_known_args(arguments)
    try:
        if args.seeds < 1 or args.cores < 1:
            raise ParamsError("--seeds and --cores count from 1")
        params = load_params(args.profile)
        if missing := missing_data(params):
            raise ParamsError(missing)
    except ParamsError as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    print(f"▶ study, profile {args.profile}, seeds {args.seeds}, {args.cores} cores", flush=True)
    # A killed run leaves snakemake's lock behind, hence --nolock; stages have locks of their own, which end with their
    # process.
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(ROOT)]
    options = ["--cores", str(args.cores), "--resources", f"gpu={args.cores}", "--rerun-triggers", "mtime", "params"]
    options += ["--rerun-incomplete", "--nolock", "--quiet", "all"]
    config = ["--config", f"profile={args.profile}", f"seeds={args.seeds}"]
    if subprocess.run([*snakemake, *options, *others, *config], cwd=ROOT).returncode:  # noqa: S603 (no shell)
        again = f"make study PROFILE={args.profile}"
        print(f"✗ the study stopped; the message above names the notebook. '{again}' goes on where it stopped.")
        return 1
    index = report_dir(params.profile) / "index.html"
    print(f"✓ done: open {os.path.relpath(index)}" if index.is_file() else "✓ done")
    return 0
