"""Have the target texts of the ELM-24 tasks written, or see what that would ask of a teacher.

python -m ilm_lib.study.teach --profile ml100k --set elm24.teacher=hf --set elm24.teacher_model=FOLDER --dry-run
"""

from __future__ import annotations

import sys
from typing import Any

import yaml

from ilm_lib.arguments import Parser, whole
from ilm_lib.data.teachers import DryRun, dry_run, token_counter
from ilm_lib.errors import Refusal
from ilm_lib.profiles import load_params
from ilm_lib.settings import Params, ParamsError
from ilm_lib.study import elm_inputs, inputs
from ilm_lib.values import MOST


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr."""
    parser = Parser(prog="python -m ilm_lib.study.teach", description=__doc__)
    parser.add_argument("--profile", default="toy", help="of params/, or a YAML file (default: toy)")
    parser.add_argument(
        "--seed", type=whole(MOST, 0), default=0, help="of the embeddings that pick neighbours (default: 0)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. elm24.teacher=hf")
    parser.add_argument("--tokenizer", metavar="NAME", help="counts the tokens of a dry run (default: hf: the model's)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be asked, without asking")
    try:
        args = parser.parse_args(arguments)
        params = load_params(args.profile, **dict(map(_setting, args.set)))
        inputs.data(params, build=True)
        if not params.elm24.file:
            inputs.embeddings(params, args.seed, build=True)
        if params.elm24.file or not args.dry_run:
            rows = elm_inputs.load_rows(elm_inputs.data(params, args.seed, build=True))
            print(
                f"{len(rows):,} rows of {rows['task'].nunique()} tasks by {', '.join(rows['teacher'].unique())}; "
                f"{rows.attrs.get('left_out', 0):,} left out"
            )
        else:
            print(_planned(params, args.seed, args.tokenizer))
    except (Refusal, ValueError) as error:  # a ValueError where a teacher left a task without texts
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _setting(given: str) -> tuple[str, Any]:
    """KEY=VALUE, with the value as YAML reads it."""
    key, equals, value = given.partition("=")
    try:
        if not key or not equals:
            raise ValueError
        return key, yaml.safe_load(value)
    except (ValueError, yaml.YAMLError):
        raise ParamsError(f"--set {given[:100]}: write KEY=VALUE, e.g. elm24.teacher=hf") from None


def _planned(params: Params, seed: int, tokenizer: str | None) -> str:
    template = params.elm24.teacher == "template"
    teacher = "template" if template else elm_inputs.TeacherSettings.of_profile(params).teacher()
    recorder = DryRun(params.elm24.teacher)
    elm_inputs.build_rows(
        inputs.data(params),
        inputs.embeddings(params, seed),
        recorder,
        params.elm24.test_fraction,
        params.elm24.min_facts,
    )
    tokenizer = tokenizer or (params.elm24.teacher_model if params.elm24.teacher == "hf" else None)
    return dry_run(recorder.requests, teacher, token_counter(tokenizer) if tokenizer else None)


if __name__ == "__main__":
    sys.exit(main())
