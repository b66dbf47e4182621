"""The manifest of a saved model's folder: every file is held to its bytes before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from ilm_lib.files import sha256, write_json
from ilm_lib.model.refusals import ModelFolderError, NoModel, brief

FORMAT = 3  # of the folder; 1 had no manifest, 2 another scale of the head's rows
CARD = "README.md"  # the one file that may be edited, and is in no manifest
AGAIN = "Save the model again, or get the folder anew"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError)
LOADED_WHOLE = ("backbone", "finder")  # folders of which a loader reads whatever lies there


def sign(folder: Path) -> None:
    """Write the manifest of what a folder holds."""
    files = {_name(p, folder): p for p in sorted(folder.rglob("*")) if p.is_file()}
    noted = {
        name: {"sha256": sha256(path), "bytes": path.stat().st_size}
        for name, path in files.items()
        if name not in (CARD, "manifest.json")
    }
    write_json(folder / "manifest.json", {"format": FORMAT, "files": noted})


def verify(folder: Path) -> None:
    """Hold every file of a folder to its manifest. Costs one reading of the files.

    Raises:
        NoModel: there is no folder or no model in it.
        ModelFolderError: names the first file that is missing, changed or not in the manifest.
    """
    made = "`make study` writes runs/toy/models/ilm-seed0; a model of a hub is downloaded first"
    if not folder.exists():
        raise NoModel(f"no model in {folder}: there is no such folder. {made}")
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is a file: give the folder that it lies in")
    path = folder / "manifest.json"
    if not path.exists():
        if not (folder / "ilm.json").exists():
            raise NoModel(f"no model in {folder}: ilm.json is missing. {made}")
        raise ModelFolderError(f"{path} is missing, as in folders of earlier versions. Train or save the model again")
    files = _noted(path)
    for name, noted in files.items():
        file = folder / name
        if not file.is_file():
            raise ModelFolderError(f"{file} is missing or is no file. {AGAIN}")
        try:
            same = file.stat().st_size == noted.get("bytes") and sha256(file) == noted.get("sha256")
        except OSError as error:
            raise ModelFolderError(f"{file} cannot be read: {error.strerror}") from error
        if not same:
            raise ModelFolderError(f"{file} is not what manifest.json says that was saved. {AGAIN}")
    # What lies beside the LLM's files, as an adapter's, would be loaded with them.
    for inner in LOADED_WHOLE:
        for extra in sorted((folder / inner).rglob("*")):
            if not extra.is_dir() and not extra.name.startswith(".") and _name(extra, folder) not in files:
                raise ModelFolderError(f"{extra} is no part of the model that was saved: move it out of {inner}/")


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _noted(path: Path) -> dict[str, dict[str, Any]]:
    """The files of a manifest, by their names."""
    manifest = json_object(path)
    if manifest.get("format") != FORMAT:
        found = brief(manifest.get("format"))
        raise ModelFolderError(f"{path}: format {found} is not {FORMAT}: of another version. Save the model again")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(noted, dict) for noted in files.values()):
        raise ModelFolderError(f"{path}: files is no table of files. {AGAIN}")
    for name in files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or ":" in name:
            raise ModelFolderError(f"{path}: {brief(name)} lies outside the folder. {AGAIN}")
    if missing := {"ilm.json", "ilm.safetensors"} - {*files}:
        raise ModelFolderError(f"{path}: {min(missing)} is not in it. {AGAIN}")
    return files


def json_object(path: Path) -> dict[str, Any]:
    """What a file of JSON holds; ModelFolderError where that is no object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}. {AGAIN}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is no JSON: {first_line(error)}. {AGAIN}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} holds {brief(value)} in the place of an object. {AGAIN}")
    return value


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are no floats or not finite."""
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            raise ModelFolderError(f"{where}: {name} holds {tensor.dtype}, not floats. {AGAIN}")
        if not tensor.isfinite().all():
            row = int((~tensor.isfinite()).flatten().nonzero()[0]) // max(1, tensor[0].numel() if tensor.dim() else 1)
            raise ModelFolderError(f"{where}: {name} is not finite, first in row {row}. Train or save the model again")


def first_line(error: BaseException) -> str:
    """The first line of an error, cut."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) <= 120 else f"{text[:119]}…"
