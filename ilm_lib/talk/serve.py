"""`python -m ilm_lib serve`: an endpoint that speaks the OpenAI chat protocol, for one model.

GET /v1/models, POST /v1/chat/completions (at once, or streamed), GET /health. It listens to programs on this machine
alone, unless --host says otherwise, and asks for no password. One reply is written at a time; others wait in line.
Messages are neither written down nor logged; what the LLM has read of the last ones stays in memory for the next turn.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import sys
from typing import Any

from ilm_lib.arguments import BadArgument, whole
from ilm_lib.errors import Refusal
from ilm_lib.talk.model_argument import add_model, load

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
CONNECTIONS = 256  # open at a time
TO_END = 5  # seconds that replies under way get when the server is stopped


class NotInstalled(Refusal, ImportError):
    """A package of an extra is missing; the message says what to install."""


def add_arguments(commands: Any) -> None:
    """The sub-command and what it takes."""
    parser = commands.add_parser("serve", prog="python -m ilm_lib serve", description=__doc__)
    add_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=whole(65535, 0), default=8000, help="0: a free one (default: 8000)")
    parser.add_argument("--waiting", type=whole(1000, 0), default=8, metavar="N",
                        help="requests that may wait in line; more are told to try again (default: 8)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Run the command with its arguments until it is stopped. Raises Refusal."""
    try:
        import uvicorn

        from ilm_lib.talk.server import Endpoint
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        says = f"serve needs the package {error.name}: pip install '.[serve]', or starlette and uvicorn"
        raise NotInstalled(says) from None
    with listening(args.host, args.port) as bound:
        host, port = bound.getsockname()[:2]
        ilm, name = load(args), args.model.resolve().name
        local = ipaddress.ip_address(host).is_loopback
        shown = f"[{host}]" if ":" in host else host
        if not local:
            print(f"warning: anybody who can reach {shown} may use this server: it asks for no password and does not "
                  "encrypt", file=sys.stderr, flush=True)  # fmt: skip
        app = Endpoint(ilm, name, args.k, args.waiting).app(LOCAL | {shown, args.host.lower()} if local else None)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=TO_END,
        )
        print(f"{name} answers at http://{shown}:{port}/v1; Ctrl-C stops it", flush=True)
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:  # it has ended what it was at
            pass
    print("stopped")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises BadArgument."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadArgument(f"--host {host[:80]} --port {port} cannot be used ({why}): give another") from None
