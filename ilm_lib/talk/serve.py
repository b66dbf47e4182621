"""`python -m ilm_lib serve`: a page to talk to one model, and an endpoint that speaks the OpenAI chat protocol.

GET / is the page; POST /v1/chat/completions (at once, or streamed), GET /v1/models, /v1/items and /health the endpoint.
It listens to programs on this machine alone, unless --host says otherwise, and asks for no password. One reply is
written at a time; others wait in line. Messages are neither written down nor logged; what the LLM has read of the last
ones stays in memory for the next turn.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
import threading
import webbrowser
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
    parser.add_argument("--open", action="store_true", help="open the page in a browser, where there is a display")


def run(args: argparse.Namespace) -> None:
    """Run the command with its arguments until it is stopped. Raises Refusal."""
    need_packages()
    import uvicorn

    from ilm_lib.talk.server import Endpoint

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
        here = "127.0.0.1" if host in ("0.0.0.0", "::") else shown  # noqa: S104  compared, not bound
        page = f"http://{here}:{port}/"
        print(f"{name} answers at http://{shown}:{port}/v1; Ctrl-C stops it", flush=True)
        print(f"▶ talk to it in a browser: {page}", flush=True)
        if args.open and has_display():  # it listens already; what a browser takes to start is not waited for
            threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()
        try:
            uvicorn.Server(config).run(sockets=[bound])
        except KeyboardInterrupt:  # it has ended what it was at
            pass
    print("stopped")


def need_packages() -> None:
    """Raises NotInstalled where what serves is missing."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        says = f"serve needs the package {error.name}: pip install '.[serve]', or starlette and uvicorn"
        raise NotInstalled(says) from None


def has_display() -> bool:
    """Whether a browser with a window can be opened here; one of a terminal would take this one's place."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises BadArgument."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise BadArgument(f"--host {host[:80]} --port {port} cannot be used ({why}): give another") from None
