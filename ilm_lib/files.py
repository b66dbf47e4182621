"""Files that are written whole or not at all, who may read them, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any


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


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes. A process reads a file again only after its size or its times have changed."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@lru_cache(4096)
def _sha256(path: Path, inode: int, size: int, modified: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
