"""Commands of the library.

python -m ilm_lib recommend --model FOLDER --users FILE --out FILE   recommend for everybody in a file
python -m ilm_lib chat --model FOLDER                                talk to a model in the terminal
python -m ilm_lib serve --model FOLDER                               talk to it in a browser, or by the OpenAI protocol
python -m ilm_lib.data --help                                        build a data set
python -m ilm_lib.report --help                                      reports of a study
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ilm_lib.arguments import BadArgument, Parser
from ilm_lib.errors import Refusal


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 1 after a message on stderr, 2 where it is about the arguments."""
    from ilm_lib import recommend_file
    from ilm_lib.talk import serve, terminal

    parser = Parser(prog="python -m ilm_lib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="recommend, chat or serve")
    runs = {"recommend": recommend_file, "chat": terminal, "serve": serve}
    for command in runs.values():
        command.add_arguments(commands)
    try:
        args = parser.parse_args(argv)
        runs[args.command].run(args)
    except Refusal as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, BadArgument) else 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
