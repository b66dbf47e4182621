"""Make the model that talks of a profile, where it has not been made, and talk to it.

python -m ilm_lib.study.talk toy                  in a browser, as `make chat` does
python -m ilm_lib.study.talk toy --in terminal    as `make chat TALK=terminal` does
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ilm_lib.__main__ import main as library
from ilm_lib.arguments import BadArgument, Parser
from ilm_lib.data import missing_data
from ilm_lib.errors import Refusal
from ilm_lib.profiles import load_params, model_path
from ilm_lib.settings import Params, ParamsError
from ilm_lib.study import conversation, inputs, scope
from ilm_lib.study.artifacts import MissingStage
from ilm_lib.study.conversation_results import method_of
from ilm_lib.talk.serve import need_packages

PLACES = {"browser": ["serve", "--port", "0", "--open"], "page": ["serve", "--port", "0"], "terminal": ["chat"]}


def made(params: Params) -> Path:
    """The folder of the profile's model that talks; what it needs is made where it is missing.

    Raises:
        Refusal: the profile has none, or its data are missing.
    """
    scope.need(params, "11_chat")
    if missing := missing_data(params):
        raise ParamsError(missing)
    seed, method = params.report_seeds[0], method_of(params)
    try:
        conversation.talker(params, seed, method)
    except MissingStage:
        print(
            f"▶ making the model that talks for profile {params.profile} (toy: some two minutes, once)", file=sys.stderr
        )
        inputs.data(params, build=True)
        conversation.talker(params, seed, method, build=True)
    return conversation.load_talker(params, seed, method).save_pretrained(
        model_path(params.profile, f"{method}-chat", seed)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 1 after a message on stderr, 2 where it is about the arguments."""
    parser = Parser(prog="python -m ilm_lib.study.talk", description=__doc__)
    parser.add_argument("profile", nargs="?", default="toy", metavar="PROFILE")
    parser.add_argument("--in", dest="place", choices=PLACES, default="browser",
                        help="page: its address alone, no browser is opened (default: browser)")  # fmt: skip
    try:
        args = parser.parse_args(argv)
        if args.place != "terminal":
            need_packages()  # before minutes of work
        folder = made(load_params(args.profile))
    except Refusal as error:
        print(f"✗ {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    except KeyboardInterrupt:
        print("stopped; what was trained is kept", file=sys.stderr)
        return 130
    command, *options = PLACES[args.place]
    return library([command, "--model", str(folder), *options])


if __name__ == "__main__":
    raise SystemExit(main())
