"""What a report is made of: executed notebooks that carry what their runs made, and whether a report still shows them.

A notebook run by the grid is one file that is put in place whole. Its metadata hold the rows, claims and figures that
the run wrote, so nothing that another run left behind, or a reader wrote from JupyterLab, gets into a report.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilm_lib.errors import Refusal
from ilm_lib.files import digest_of, hold, read_json, sha256, write_json, write_text
from ilm_lib.profiles import PACKAGE, ROOT, profile_path, report_dir, runs_dir

_KEY = "ilm"  # in a notebook's metadata


class NoRun(Refusal, FileNotFoundError):
    """A profile has not been studied, or not to the end."""


@dataclass(frozen=True)
class Executed:
    """An executed notebook.

    Attributes:
        made_of: digest of the notebook's source, its parameters and the library.
        stages: folders of the stages it stands on, below the profile's.
        results, claims: CSV files; empty: it wrote none.
        figures: PNG files by name.
    """

    path: Path
    made_of: str
    stages: tuple[str, ...]
    results: str
    claims: str
    figures: dict[str, bytes]


def write_executed(notebook: Mapping[str, Any], folder: Path, path: Path, *, made_of: str) -> None:
    """Write an executed notebook that carries what its run left in a folder, sealed by a digest of all of it.

    Args:
        notebook: as JSON values.
        folder: results.csv, claims.csv, figures/, stages.txt; each may be missing.
    """

    def text(name: str) -> str:
        path = folder / name
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    carried = {
        "made_of": made_of,
        "stages": sorted(set(text("stages.txt").splitlines())),
        "results": text("results.csv"),
        "claims": text("claims.csv"),
        "figures": {p.stem: base64.b64encode(p.read_bytes()).decode() for p in sorted(folder.glob("figures/*.png"))},
    }
    whole = {**notebook, "metadata": {**notebook["metadata"], _KEY: carried}}
    carried["seal"] = digest_of(whole)
    write_text(path, json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_executed(path: Path) -> Executed | None:
    """An executed notebook with what it carries; None where there is none, or it is not as the grid has left it."""
    try:
        whole = read_json(path)
        found = whole["metadata"][_KEY]
        if found.pop("seal") != digest_of(whole):
            return None
        figures = {name: base64.b64decode(data) for name, data in found["figures"].items()}
        stages = tuple(found["stages"])
        return Executed(path, found["made_of"], stages, found["results"], found["claims"], figures)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def executed_path(profile: str, name: str) -> Path:
    """Where the grid puts an executed notebook: `runs/toy/notebooks/04_phase2-ILM-seed0.ipynb`."""
    return runs_dir() / profile / "notebooks" / f"{name}.ipynb"


def write_plan(profile: str, names: Sequence[str]) -> None:
    """Note what the report of a profile shows: the names of its executed notebooks, in order."""
    write_json(runs_dir() / profile / "study.json", {"notebooks": list(names)})


def read_plan(profile: str) -> list[Path]:
    """The executed notebooks that the report of a profile shows.

    Raises:
        NoRun: there is no plan, or one of them is missing.
    """
    again, plan = f"make study PROFILE={profile}", runs_dir() / profile / "study.json"
    if not plan.is_file():
        raise NoRun(f"no executed notebooks in {plan.parent}; make them: {again}")
    paths = [executed_path(profile, name) for name in read_json(plan)["notebooks"]]
    if missing := [path.name for path in paths if not path.is_file()]:
        raise NoRun(f"{missing[0]} is not in {paths[0].parent}, and {len(missing) - 1} more; make them: {again}")
    return paths


def study_lock(profile: str) -> AbstractContextManager[int]:
    """The lock of a profile in a runs folder: one process at a time runs its study or renders its report.

    Raises:
        Busy: another process holds it; the message says which.
    """
    home = runs_dir() / profile
    busy = f"{home} is in use by {{holder}}. Wait for its end, stop it, or set ILM_RUNS_DIR to another folder"
    return hold(home / ".lock", busy.replace(str(home), str(home).replace("{", "{{").replace("}", "}}")))


def library_digest() -> str:
    """Digest of the library's files, byte by byte."""
    files = (p for p in PACKAGE.rglob("*") if p.suffix in {".py", ".css", ".js"})
    return digest_of({str(p.relative_to(PACKAGE)): sha256(p) for p in files})


def report_key(profile: str, notebooks: Sequence[Path]) -> str:
    """Digest of all that a report shows: the executed notebooks, the profile, pictures, and the code that renders."""
    source = profile_path(profile)
    pictures = {p.name: sha256(p) for p in (ROOT / "notebooks").glob("*.svg")}
    shown = [(path.name, sha256(path)) for path in notebooks]
    return digest_of([shown, sha256(source) if source.is_file() else "", pictures, library_digest()])


def note_report(profile: str, key: str) -> None:
    """Note what the report that was just written is made of; `stands` reads it."""
    write_json(runs_dir() / profile / "report.json", {"made_of": key, "files": _files(report_dir(profile))})


def stands(profile: str, key: str) -> bool:
    """Whether the report of a profile is there, as it was written, and made of what `key` stands for."""
    try:
        noted = read_json(runs_dir() / profile / "report.json")
        return bool(noted == {"made_of": key, "files": _files(report_dir(profile))})
    except (FileNotFoundError, ValueError):
        return False


def _files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
