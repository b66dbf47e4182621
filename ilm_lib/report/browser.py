"""Chromium without a window, steered over its own debugging protocol: the little that checking pages needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ilm_lib.errors import Refusal

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*", "about:blank",
)  # fmt: skip


class NoBrowser(Refusal, RuntimeError):
    """There is no Chromium, or it does not start; the message says what to do."""


def find_chromium() -> str | None:
    """The Chromium of this machine: `ILM_CHROMIUM`, or the first of the usual names on the path."""
    given = os.environ.get("ILM_CHROMIUM")
    return given or next((found for name in _NAMES if (found := shutil.which(name))), None)


class Tab:
    """One tab. Events that arrive while it waits for an answer are kept in `events`."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._id = socket, 0
        self.events: list[dict] = []

    def send(self, method: str, **params: Any) -> dict:
        """Call a method of the protocol, as "Page.navigate", and return its result."""
        self._id += 1
        self._socket.send(json.dumps({"id": self._id, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._id:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    def wait_for(self, event: str) -> None:
        """Return when an event of that name has come since the last `open`."""
        while not any(e.get("method") == event for e in self.events):
            self.events.append(json.loads(self._socket.recv()))

    def open(self, url: str) -> None:
        """Load a page and wait until it is there."""
        self.events.clear()
        self.send("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"script failed: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def look(self, width: int, *, dark: bool = False, paper: bool = False) -> None:
        """Show the page at so many pixels, in the light or the dark, on the screen or as on paper."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media="print" if paper else "screen", features=scheme)


@contextmanager
def chromium() -> Iterator[Tab]:
    """A fresh Chromium with an empty profile, and its tab.

    Raises:
        NoBrowser: there is none, or it does not start.
    """
    program = find_chromium()
    if program is None:
        raise NoBrowser("no Chromium found: install it, or say where it is with ILM_CHROMIUM=/path/to/chromium")
    import websocket

    # Not all of Chromium has ended when its first process has: what it still writes must not fail the removal.
    with tempfile.TemporaryDirectory(prefix="ilm-chromium-", ignore_cleanup_errors=True) as home:
        command = (program, f"--user-data-dir={home}", *_FLAGS)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        socket = None
        try:
            port = _port(Path(home) / "DevToolsActivePort", process, program)
            socket = websocket.create_connection(_tab_address(port), timeout=60, suppress_origin=True)
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Log"):
                tab.send(f"{domain}.enable")
            yield tab
        finally:
            if socket is not None:
                socket.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(file: Path, process: subprocess.Popen, program: str) -> int:
    """The port that Chromium chose; it writes it into its profile when it is ready."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if file.is_file() and (text := file.read_text(encoding="ascii")).count("\n"):
            return int(text.splitlines()[0])
        time.sleep(0.05)
    raise NoBrowser(
        f"{program} does not start; try it by hand: {program} --headless --no-sandbox --dump-dom about:blank"
    )


def _tab_address(port: int) -> str:
    from urllib.request import ProxyHandler, build_opener

    direct = build_opener(ProxyHandler({}))  # this machine's own port: no proxy between
    with direct.open(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
        tabs = json.load(answer)
    return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
