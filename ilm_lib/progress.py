"""Progress of long loops: a bar in a terminal or JupyterLab, lines of text when run headlessly."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

T = TypeVar("T")


def progress(steps: Iterable[T], label: str, *, total: int, initial: int = 0) -> Iterator[T]:
    """Iterate and show how far it is.

    With the environment variable ILM_PROGRESS, a file, a line is appended every ten seconds, headed by
    ILM_JOB: the output of several notebooks that run at once stays readable, and none of it lands in them.
    """
    if _another_shows():
        yield from steps
        return
    path = os.environ.get("ILM_PROGRESS")
    if path is None:
        yield from tqdm(steps, desc=label, total=total, initial=initial, leave=False, mininterval=1)
        return
    started = shown = time.monotonic()
    for done, step in enumerate(steps, initial):
        now = time.monotonic()
        if now - shown > 10:
            shown = now
            left = (now - started) / max(1, done - initial) * (total - done)
            append_line(path, f"    {os.environ.get('ILM_JOB', '')}: {label} {done}/{total}, {left:.0f} s left")
        yield step


def say(line: str) -> None:
    """A line where progress is shown, and so in no result."""
    if _another_shows():
        return
    if path := os.environ.get("ILM_PROGRESS"):
        append_line(path, f"    {os.environ.get('ILM_JOB', '')}: {line}")
    else:
        tqdm.write(line, file=sys.stderr)


def _another_shows() -> bool:
    """Of several processes (`ilm_lib.processes`) the first one does."""
    return os.environ.get("RANK", "0") != "0"


def append_line(path: str, line: str) -> None:
    """Append a line to a file or a terminal; one that cannot be written to is passed over."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError:  # a closed terminal must not stop a run
        pass
