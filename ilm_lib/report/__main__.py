"""Reports from the command line.

python -m ilm_lib.report build PROFILE     render runs/PROFILE/report, where it does not show what was run last
python -m ilm_lib.report publish PROFILE   copy it to reports/PROFILE and make the pages above it anew
python -m ilm_lib.report landing           make reports/index.html and findings.html anew
python -m ilm_lib.report check [FOLDER]    look at all pages of a folder in a browser (reports/)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ilm_lib.arguments import Parser
from ilm_lib.errors import Refusal
from ilm_lib.executed import read_plan, study_lock
from ilm_lib.profiles import runs_dir
from ilm_lib.report.check import check_folder
from ilm_lib.report.landing import REPORTS, landing, publish
from ilm_lib.report.site import build


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; problems are one line each, on stderr, and the exit status is 1."""
    parser = Parser(prog="python -m ilm_lib.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="build|publish|landing|check")
    for name in ("build", "publish"):
        commands.add_parser(name).add_argument("profile")
    commands.add_parser("landing")
    commands.add_parser("check").add_argument("folder", nargs="?", type=Path, default=REPORTS)
    try:
        args = parser.parse_args(argv)
        if args.command == "check":
            problems = check_folder(args.folder)
            print(*problems, sep="\n", end="\n" if problems else "")
            return 1 if problems else 0
        made = _locked(args.command, args.profile) if "profile" in args else landing()
    except (Refusal, FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename or 'the report'}: {error.strerror}", file=sys.stderr)
        return 1
    print(os.path.relpath(made))
    return 0


def _locked(command: str, profile: str) -> Path:
    """Build or publish a report while no study of its profile runs."""
    if not (runs_dir() / profile).is_dir():
        read_plan(profile)
    with study_lock(profile):
        return {"build": build, "publish": publish}[command](profile)


if __name__ == "__main__":
    raise SystemExit(main())
