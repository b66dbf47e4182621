"""Stage artifacts: what one notebook leaves for the next.

`runs/<profile>/<stage>/<fingerprint>/` holds a `manifest.json` and data files (safetensors, parquet,
npz, JSON, never pickle). The fingerprint covers the parameters, the inputs' fingerprints and the code
the result depends on, so that a rerun is a no-op and a change recomputes just what follows from it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

from filelock import FileLock

from ilm_lib.profiles import ROOT, runs_dir


class MissingStage(FileNotFoundError):
    """An input of a stage has not been made yet; the message says what makes it."""


class CorruptStage(RuntimeError):
    """A file of a stage is missing or was changed after it was written."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage folder. Call it with a file name to get the checked path."""

    stage: str
    fingerprint: str
    folder: Path

    def __call__(self, name: str) -> Path:
        return self.folder / name

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))

    def verify(self) -> "Artifact":
        """Check every file against the manifest's SHA-256.

        Raises:
            CorruptStage: names the file and the folder to delete.
        """
        for name, digest in self.manifest["files"].items():
            path = self.folder / name
            if not path.is_file() or sha256(path) != digest:
                raise CorruptStage(f"{path} is missing or was changed after it was written; "
                                   f"delete the folder {self.folder} and run again")
        return self


def stage(
    name: str,
    profile: str,
    params: Mapping[str, Any],
    inputs: Sequence[Artifact],
    code: Sequence[str],
    make: Callable[[Path], Any] | None,
    made_by: str,
) -> Artifact:
    """Return the stage's artifact, making it first unless it is there.

    Args:
        name: the stage's folder, e.g. `phase1`.
        params: JSON-able settings the result depends on.
        inputs: artifacts it reads; their fingerprints enter this one's.
        code: modules of `ilm_lib` whose meaning the result depends on, e.g. `["qformer"]`.
        make: writes the files into the folder it is given; the folder survives an interruption, so
            that training can go on from its saved state. None: the artifact must be there.
        made_by: the notebook that makes it, for the message.

    Raises:
        MissingStage: `make` is None and there is no artifact.
        CorruptStage: a file does not match the manifest.
    """
    inputs_id = {f"{a.stage}:{i}": a.fingerprint for i, a in enumerate(inputs)}
    key = {"stage": name, "params": params, "inputs": inputs_id, "code": {m: code_digest(m) for m in code}}
    fingerprint = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    artifact = Artifact(name, fingerprint, runs_dir() / profile / name / fingerprint)
    if (artifact.folder / "manifest.json").is_file():
        return artifact.verify()
    if make is None:
        raise MissingStage(
            f"{name} ({_shorten(params)}) has not been made for profile {profile!r}: run "
            f"notebooks/{made_by}.ipynb with the same parameters, or `make study PROFILE={profile}`")

    artifact.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{artifact.folder}.lock"):
        if (artifact.folder / "manifest.json").is_file():  # another process was faster
            return artifact.verify()
        partial = artifact.folder.with_name(fingerprint + ".partial")
        partial.mkdir(exist_ok=True)
        started = time.time()
        make(partial)
        (partial / "state.pt").unlink(missing_ok=True)
        files = sorted(p for p in partial.rglob("*") if p.is_file())
        manifest = {
            **key,
            "files": {str(p.relative_to(partial)): sha256(p) for p in files},
            "packages": {p: version(p) for p in ("torch", "transformers", "numpy", "implicit", "irspack")},
            "python": platform.python_version(),
            "seconds": round(time.time() - started, 2),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str), encoding="utf-8")
        if artifact.folder.exists():
            shutil.rmtree(artifact.folder)
        os.replace(partial, artifact.folder)
    return artifact


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader never sees half a file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def peak_memory_gib() -> float:
    """Highest resident memory of this process so far, GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@lru_cache(None)
def code_digest(module: str) -> str:
    """Digest of a module's syntax tree: comments and layout do not count, statements do."""
    path = ROOT / "ilm_lib" / (module.replace(".", "/") + ".py")
    return hashlib.sha256(ast.dump(ast.parse(path.read_text(encoding="utf-8"))).encode()).hexdigest()[:16]


def _shorten(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in params.items() if isinstance(v, (str, int, float)))[:120]
