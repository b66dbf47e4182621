"""Files that are written whole or not at all, who may read them, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ilm_lib.errors import Refusal


class Busy(Refusal, RuntimeError):
    """Another process is at work where only one may be."""


def write_text(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(finished: Path, target: Path) -> None:
    """Put a finished folder in the place of an old one, which goes only when the new one is there."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(finished, target)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def hold(lock: Path, busy: str) -> Iterator[int]:
    """Hold a lock without waiting for it; gives its file descriptor.

    The lock ends with the last process that has the descriptor, however it ends: a child that inherits it keeps it.
    The file itself says who holds it and stays.

    Args:
        busy: the message where another process holds it; {holder} in it becomes "process 7 on HOST since 12:30".

    Raises:
        Busy: another process holds it.
    """
    import fcntl  # not on Windows, where the library works and the grid does not

    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Busy(busy.format(holder=file.read().strip() or "another process")) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%H:%M')}\n")
        file.flush()
        yield file.fileno()


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` writes text."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def open_to_others(folder: Path) -> None:
    """Give every file under `folder` the mode that any new file gets here, so that a group can read what one writes.

    safetensors makes files that their owner alone can read, whatever the umask says.
    """
    probe = folder / f".{os.getpid()}.tmp"
    probe.touch()  # its mode is the umask's, which cannot be asked for without setting it
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def digest_of(value: Any) -> str:
    """SHA-256 of a value as JSON writes it, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. A process reads a file again only after its size or its times have changed."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(4096)
def _sha256(path: Path, inode: int, size: int, modified: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
