"""Stage artifacts: what one notebook leaves for the next.

`runs/<profile>/<stage>/<key>/` holds a `manifest.json` and data files (safetensors, parquet, npz, JSON, never pickle).
A stage is a plain function that writes files into a folder. Its key is made of what the function is given (settings by
value, files and earlier stages by content) and of the code it can reach (`code_key`): it cannot depend on anything
else, so a rerun is a no-op and a change recomputes just what follows from it. A stage that comes out byte for byte as
before changes nothing after it.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from ilm_lib import processes
from ilm_lib.data import DataError
from ilm_lib.errors import Refusal
from ilm_lib.files import digest_of, open_to_others, read_json, replace_folder, sha256, write_json
from ilm_lib.profiles import runs_dir
from ilm_lib.report.card import package_version, peak_memory_gib
from ilm_lib.study.code_key import code_digest
from ilm_lib.train.state import forget_state

LARGE = 64 << 20  # bytes; a larger file is read again only when its size or its time has changed
PACKAGES = ("torch", "transformers", "numpy", "implicit", "irspack")


class MissingStage(Refusal, FileNotFoundError):
    """An input of a stage has not been made yet; the message says what makes it."""


class CorruptStage(Refusal, RuntimeError):
    """A file of a stage is missing or was changed after it was written."""


@dataclass(frozen=True)
class SourceFile:
    """A file from outside that a stage reads; it counts by content.

    Attributes:
        remedy: what to do where it is missing.
    """

    path: Path
    remedy: str = "Give the path of a file"

    def identity(self) -> dict[str, str]:
        """What it is in a key: the SHA-256 of its content. Raises DataError where there is no such file."""
        if not self.path.is_file():
            raise DataError(self.path, None, "is missing", self.remedy)
        return {"sha256": _source_digest(self.path)}


@dataclass(frozen=True)
class Artifact:
    """A finished stage.

    Attributes:
        stage: its name, e.g. "phase1".
        key: the name of its folder.
        folder: where its files are.
    """

    stage: str
    key: str
    folder: Path

    def path(self, name: str) -> Path:
        """A file of the stage; `stage` has checked it."""
        return self.folder / name

    @property
    def manifest(self) -> dict[str, Any]:
        """Settings, inputs, checksums, versions and cost of the run that made it; CorruptStage where it is damaged."""
        path = self.path("manifest.json")
        try:
            manifest = read_json(path)
            complete = all(file.keys() >= {"sha256", "size", "modified"} for file in manifest["files"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            complete = False
        if not complete:
            raise self._corrupt(path)
        return manifest

    def _corrupt(self, path: Path) -> CorruptStage:
        return CorruptStage(
            f"{path} is missing or was changed after it was written; delete the folder {self.folder} and run again"
        )

    def identity(self) -> dict[str, str]:
        """What it is in a key of a later stage: its files, whatever made them."""
        return {name: file["sha256"] for name, file in self.manifest["files"].items()}

    def verify(self) -> Artifact:
        """Check every file against the manifest.

        A process reads a file once; one of more than `LARGE` bytes not at all while size and time are those noted.

        Raises:
            CorruptStage: names the file and the folder to delete.
        """
        for name, noted in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file() or not _is_as_noted(path, noted):
                raise self._corrupt(path)
        return self


def stage(
    name: str, make: Callable[..., Any], profile: str, *, made_by: str, build: bool, given: Mapping[str, Any]
) -> Artifact:
    """Return the stage's artifact, making it first unless it is there.

    Args:
        name: the stage's folder, e.g. `phase1`.
        make: called as `make(folder, **given)`; a function of a module, so that its code can be followed. The folder
            survives an interruption, so that training can go on from its saved state.
        made_by: the notebook that makes it, for the message.
        build: make it where it is missing.
        given: all that `make` may depend on: settings, numbers, text, `SourceFile`s, `Artifact`s, and what else can
            tell its `identity()`.

    Raises:
        MissingStage: `build` is false and there is no artifact.
        CorruptStage: a file does not match the manifest.
    """
    identity = {"stage": name, "code": code_digest(make), "given": {k: _identity(v) for k, v in given.items()}}
    key = digest_of(identity)[:16]
    artifact = Artifact(name, key, runs_dir() / profile / name / key)
    processes.join()
    _note(artifact)
    if processes.agreed((artifact.folder / "manifest.json").is_file):
        return artifact.verify()
    if not build:
        raise MissingStage(
            f"{name} ({_shorten(given)}) has not been made for profile {profile!r}: run "
            f"notebooks/{made_by}.ipynb with the same parameters, or `make study PROFILE={profile}`"
        )

    artifact.folder.parent.mkdir(parents=True, exist_ok=True)
    if processes.number():  # it takes part in the work, and another one leaves the files
        with TemporaryDirectory() as nowhere:
            if not processes.agreed(bool):
                make(Path(nowhere), **given)
            processes.wait()
        return artifact.verify()
    with FileLock(f"{artifact.folder}.lock", mode=0o666):
        made = (artifact.folder / "manifest.json").is_file()  # another run was faster
        if not processes.agreed(lambda: made):
            partial = artifact.folder.with_name(key + ".partial")
            partial.mkdir(exist_ok=True)
            started = time.time()
            _silence_progress_bars()
            make(partial, **given)
            forget_state(partial)
            open_to_others(partial)
            write_json(partial / "manifest.json", {**identity, **_cost(started), "files": _noted(partial)})
            replace_folder(partial, artifact.folder)
        processes.wait()
    return artifact.verify() if made else artifact


def _note(artifact: Artifact) -> None:
    """Tell the run of the grid, if this is one, what it stands on: without it the run has to be made again."""
    if (folder := os.environ.get("ILM_MADE")) and not processes.number():
        with open(Path(folder) / "stages.txt", "a", encoding="utf-8") as file:
            file.write(f"{artifact.stage}/{artifact.key}\n")


def _silence_progress_bars() -> None:
    """Of loading and saving weights: a notebook's output holds results."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _identity(value: Any) -> Any:
    """A value as it stands in a key: by content, whatever it is called and wherever it lies."""
    if hasattr(value, "identity"):
        return value.identity()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(k): _identity(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_identity(v) for v in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"a stage cannot be given a {type(value).__name__}: its key would not know what is in it")


def _cost(started: float) -> dict[str, Any]:
    return {
        "packages": {package: package_version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "seconds": round(time.time() - started, 2),
        "peak_memory_gib": round(peak_memory_gib(), 3),
    }


def _noted(folder: Path) -> dict[str, dict[str, Any]]:
    """Checksum, size and time of every file of a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): {"sha256": sha256(p), **_size_and_time(p)} for p in files}


def _is_as_noted(path: Path, noted: Mapping[str, Any]) -> bool:
    seen = _size_and_time(path)
    if seen["size"] != noted["size"]:
        return False
    unchanged = seen["size"] > LARGE and seen["modified"] == noted["modified"]
    return unchanged or sha256(path) == noted["sha256"]


def _size_and_time(path: Path) -> dict[str, int]:
    stat = path.stat()
    return {"size": stat.st_size, "modified": stat.st_mtime_ns}


def _source_digest(path: Path) -> str:
    """SHA-256; that of a large file is remembered in the runs folder, beside the size and time it belongs to."""
    seen = _size_and_time(path)
    if seen["size"] <= LARGE:
        return sha256(path)
    memory = runs_dir() / ".digests.json"
    known = _remembered(memory, memory.stat().st_mtime_ns) if memory.is_file() else {}
    noted = known.get(str(path.resolve()))
    if noted is None or {k: noted[k] for k in seen} != seen:
        noted = {"sha256": sha256(path), **seen}
        write_json(memory, {**known, str(path.resolve()): noted})
    return noted["sha256"]


@lru_cache(2)
def _remembered(memory: Path, modified: int) -> dict[str, dict[str, Any]]:
    try:
        return read_json(memory)
    except ValueError:
        return {}  # it only spares work


def _shorten(given: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in given.items() if isinstance(v, (str, int, float)))[:120]
