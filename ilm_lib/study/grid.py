"""`python -m ilm_lib.study PROFILE`: the whole study of a profile, notebook by notebook, as `make study` runs it.

Options it does not know go to snakemake, e.g. `--executor slurm` or `--until phase1`.
"""

from __future__ import annotations

import argparse
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

from ilm_lib.data import missing_data
from ilm_lib.errors import Refusal
from ilm_lib.executed import executed_path, study_lock
from ilm_lib.profiles import ROOT, data_dir, load_params, report_dir, runs_dir
from ilm_lib.settings import Params, ParamsError
from ilm_lib.study import plan


class Stopped(KeyboardInterrupt):
    """The study was asked to end, by Ctrl-C or a signal."""


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
        process = subprocess.Popen(
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
