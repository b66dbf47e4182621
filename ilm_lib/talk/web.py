"""The page at `/`: files that are served as they are, from memory, and may fetch nothing but what this server says."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
UNSNIFFED = {"X-Content-Type-Options": "nosniff"}
#: No script or style but our files, no address but this server's, and no frame around the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = UNSNIFFED | {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


def routes() -> list[Route]:
    """The page's routes: `/` and `/page/NAME` of each file."""
    files = sorted(path for path in FOLDER.iterdir() if path.suffix in KINDS)
    return [_route("/" if path.suffix == ".html" else f"/page/{path.name}", path) for path in files]


def _route(at: str, path: Path) -> Route:
    content, kind = path.read_bytes(), KINDS[path.suffix]

    async def file(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return Route(at, file)
