"""`python -m ilm_lib.study PROFILE`: the whole study of a profile, notebook by notebook, as `make study` runs it.

Options it does not know go to snakemake, e.g. `--executor slurm` or `--until phase1`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
from pathlib import Path

import yaml

from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.data import missing_data
from ilm_lib.errors import Refusal
from ilm_lib.explain import shown
from ilm_lib.files import write_text
from ilm_lib.profiles import ROOT, load_params, profile_path, report_dir, runs_dir
from ilm_lib.settings import Params, ParamsError
from ilm_lib.study.scope import left_out
from ilm_lib.values import MOST


def parameters_file(params: Params) -> Path:
    """Every setting of a profile in one file, for papermill: nothing that a reader left in a notebook gets into a run.

    The file changes only where a setting does, so that its time tells what to run again.
    """
    path = runs_dir() / params.profile / "parameters.yaml"
    text = yaml.safe_dump({**params.model_dump(mode="json"), "overrides": {}}, sort_keys=False, allow_unicode=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)
    return path


def read_arguments(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Profile, seeds and cores, and what is snakemake's; BadArgument for what neither can mean."""
    parser = Parser(prog="python -m ilm_lib.study", description=__doc__)
    parser.add_argument("profile", nargs="?", help="of params/")
    parser.add_argument(
        "--seeds", type=whole(1_000), default=1,
        help="how many, from the profile's own on (default: 1)",
    )  # fmt: skip
    parser.add_argument("--cores", type=whole(100_000), default=os.cpu_count(), help="(default: all)")
    args, others = parser.parse_known_args(arguments)
    for given in others:
        option = given.partition("=")[0]
        if close := difflib.get_close_matches(option, ("--seeds", "--cores"), 1, 0.8):
            raise BadArgument(f"{shown(option)} is unknown; did you mean {close[0]}, which is how many?")
    if args.profile is None:
        raise BadArgument("no profile is given (PROFILE); name one of params/, e.g. toy")
    if others == ["--profile"]:
        raise BadArgument(f"--profile is snakemake's; give {shown(args.profile)} alone")
    if others and not others[0].startswith("-"):
        raise BadArgument(f"{shown(others[0])} comes after the profile {shown(args.profile)}; give one profile alone")
    return args, others


def refuse_unfit(params: Params, profile: str, seeds: int) -> None:
    """Raises ParamsError for settings with which notebooks can be run by hand, and the study as a whole cannot."""
    own = profile_path(params.profile)
    if not own.exists() or not own.samefile(profile_path(profile)):
        raise ParamsError(f"{profile} is not {own.name} of params/, which the notebooks would read; put it there")
    numbers = range(params.seed, params.seed + seeds)
    if numbers[-1] > MOST:
        raise ParamsError(f"seed: {params.seed} and {seeds} seeds from there on pass {MOST:,}; give a lower seed")
    if params.seeds and params.seeds != tuple(numbers):
        given = f"seed {params.seed} and --seeds (SEEDS) {seeds}"
        raise ParamsError(
            f"seeds: {shown(list(params.seeds))} is not what {given} make; leave seeds out of the profile"
        )
    e = params.evaluation
    if e.enabled and ("seen" not in e.prompts or len(e.histories) < 2):
        raise ParamsError("evaluation: a study compares seen prompts, history kept and excluded; name them or none")


def main(arguments: list[str] | None = None) -> int:
    """Run the study of a profile; 0, or 1 after one line on stderr."""
    try:
        args, others = read_arguments(arguments)
        params = load_params(args.profile)
        refuse_unfit(params, args.profile, args.seeds)
        if missing := missing_data(params):
            raise ParamsError(missing)
    except Refusal as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    print(f"▶ study, profile {args.profile}, seeds {args.seeds}, {args.cores} cores", flush=True)
    for notebook, reason in left_out(params).items():
        print(f"  – left out: {notebook}, {reason}", flush=True)
    # A killed run leaves snakemake's lock behind, hence --nolock; stages have locks of their own, which end with their
    # process.
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(ROOT)]
    options = ["--cores", str(args.cores), "--resources", f"gpu={args.cores}", "--rerun-triggers", "mtime", "params"]
    options += ["--rerun-incomplete", "--nolock", "--quiet", "all"]
    config = ["--config", f"profile={args.profile}", f"seeds={args.seeds}"]
    if subprocess.run([*snakemake, *options, *others, *config], cwd=ROOT).returncode:
        again = f"make study PROFILE={args.profile}"
        print(f"✗ the study stopped; the message above names the notebook. '{again}' goes on where it stopped.")
        return 1
    index = report_dir(params.profile) / "index.html"
    print(f"✓ done: open {os.path.relpath(index)}" if index.is_file() else "✓ done")
    return 0
