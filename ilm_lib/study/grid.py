"""`python -m ilm_lib.study PROFILE`: the whole study of a profile, notebook by notebook, as `make study` runs it.

Options it does not know go to snakemake, e.g. `--executor slurm` or `--until phase1`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from ilm_lib.arguments import BadArgument, Parser, whole
from ilm_lib.data import missing_data
from ilm_lib.errors import Refusal
from ilm_lib.executed import executed_path, study_lock
from ilm_lib.explain import shown
from ilm_lib.profiles import ROOT, data_dir, load_params, profile_path, report_dir, runs_dir
from ilm_lib.settings import Params, ParamsError
from ilm_lib.study import plan
from ilm_lib.study.scope import left_out
from ilm_lib.values import MOST


class Stopped(KeyboardInterrupt):
    """The study was asked to end, by Ctrl-C or a signal."""


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
    unused = left_out(params)
    for reason in dict.fromkeys(unused.values()):
        print(f"  – left out: {', '.join(name for name in unused if unused[name] == reason)}; {reason}", flush=True)
    again = f"'make study PROFILE={args.profile}' goes on where it stopped"
    try:
        with study_lock(params.profile) as lock, _signals():
            return _study(params, args.profile, args.seeds, args.cores, others, lock, again)
    except Refusal as error:
        print(f"✗ {error}", file=sys.stderr)
    except OSError as error:
        where = str(error.filename or runs_dir())
        ours = where.startswith(str(runs_dir()))
        remedy = "; ILM_RUNS_DIR names a folder with room, where you may write" if ours else ""
        print(f"✗ {where}: {error.strerror}{remedy}", file=sys.stderr)
    except Stopped:
        print(f"\n✗ stopped; {again}", file=sys.stderr)
        return 130
    return 1


def _study(params: Params, profile: str, seeds: int, cores: int, others: list[str], lock: int, again: str) -> int:
    """Run what does not hold any more, then render the report; 0, or 1 after one line on stderr."""
    home = runs_dir().absolute() / params.profile
    for name, folder in (("ILM_RUNS_DIR", runs_dir()), ("ILM_DATA_DIR", data_dir())):
        os.environ[name] = str(folder.absolute())  # notebooks run in another folder
    plan.prepare(params, seeds)
    for name in (gone := plan.gone(params, seeds)):
        executed_path(params.profile, name).unlink(missing_ok=True)
    # No lock of snakemake's: it outlives a kill, and it is the checkout's; the study has one of its own.
    snakemake = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--nolock"]
    options = ["--cores", str(cores), "--resources", f"gpu={cores}", "--rerun-triggers", "mtime", "--rerun-incomplete"]
    profile = str(Path(profile).absolute()) if profile.endswith((".yaml", ".yml")) else profile
    config = ["--config", f"profile={json.dumps(profile, ensure_ascii=False)}", f"seeds={seeds}"]
    command = [*snakemake, *options, "--quiet", "all", *others, *config]
    status, explained = _follow(command, home / "logs", lock) if gone or others else (0, True)
    if status:
        if not explained:
            print(f"✗ the study stopped without a word from a notebook, as where memory ran out or an option is wrong; "
                  f"see {home / 'logs' / 'snakemake.txt'}", file=sys.stderr)  # fmt: skip
        print(f"✗ the study stopped; {again}", file=sys.stderr)
        return 1
    index = report_dir(params.profile) / "index.html"
    missing = set(plan.shown(params, seeds)).intersection(plan.gone(params, seeds))
    if missing and others:
        print(f"✓ done as far as asked; without a report, for which {len(missing)} notebook(s) are to be run")
        return 0
    if missing:
        print(f"✗ {min(missing)}: its notebook, the library or a stage changed while the study ran; {again}",
              file=sys.stderr)  # fmt: skip
        return 1
    from ilm_lib.report.site import build  # it takes seconds to import

    build(params.profile)
    print(f"✓ done: open {quote(os.path.relpath(index))}")
    return 0


def _follow(command: list[str], logs: Path, lock: int) -> tuple[int, bool]:
    """Run snakemake; show what notebooks say and keep what snakemake says in `logs`.

    Returns:
        its exit status, and whether a notebook has said what went wrong.

    Raises:
        Stopped: after snakemake and the notebooks have ended.
    """
    logs.mkdir(parents=True, exist_ok=True)
    (progress := logs / "progress.txt").write_text("", encoding="utf-8")
    with open(logs / "snakemake.txt", "w", encoding="utf-8") as log, open(progress, encoding="utf-8") as said:
        # It inherits the lock: where this process is killed and snakemake is not, the profile is still in use.
        process = subprocess.Popen(  # noqa: S603 (a list of words, no shell)
            command, cwd=logs.parent, env=os.environ | {"ILM_PROGRESS": str(progress)}, stderr=log, pass_fds=(lock,),
            start_new_session=True,
        )  # fmt: skip
        explained = False
        try:
            while True:
                ended = process.poll() is not None
                text = said.read()
                sys.stderr.write(text)
                sys.stderr.flush()
                explained |= "✗" in text
                if ended:
                    return process.returncode, explained
                time.sleep(0.1)
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """End snakemake and all it started, with more force where they do not listen."""
    for number, patience in ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            return


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C, `kill` and a closed terminal raise `Stopped`, except what this process was told to ignore (nohup)."""

    def stop(*_: object) -> None:
        raise Stopped

    heard = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
