"""Profiles: the settings of a run, validated before any work starts, and the places that follow from them.

A profile is one YAML file in `params/`; a notebook's parameters cell and papermill's `-p` / `-f`
override it. Unknown keys are refused with the allowed ones beside them, because papermill itself
only logs a misspelt parameter and runs on with the default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ilm_lib.settings import Params, ParamsError, merge, merge_dotted, unknown_key, validate

#: The installed code: nothing is ever written there.
PACKAGE = Path(__file__).resolve().parent
#: Where a run reads profiles and data of one's own and writes what it makes: the checkout, and where the library is
#: installed without one, the folder that Python was started in.
ROOT = PACKAGE.parent if (PACKAGE.parent / "pyproject.toml").is_file() else Path.cwd()


def load_params(source: str | Path | Mapping[str, Any] = "toy", **overrides: Any) -> Params:
    """Load a profile and apply overrides.

    Args:
        source: a profile's name (`params/<name>.yaml`), a YAML file, or a notebook's `globals()`.
            From a notebook, `profile` picks the file and every other plain value overrides it.
        overrides: dotted keys, e.g. `**{"phase1.steps": 100}`.

    Raises:
        ParamsError: unknown or invalid key; the message names it, with the allowed ones.
    """
    given: dict[str, Any] = {}
    if isinstance(source, Mapping):
        given = _from_notebook(source)
        overrides = {**given.pop("overrides", {}), **overrides}
    name = given.pop("profile", "toy") if isinstance(source, Mapping) else source
    params = validate(merge_dotted(merge(_read_profile(name), given), overrides))
    if not re.fullmatch(r"\w[\w.-]*", params.profile):  # it names folders, and goes to a shell
        raise ParamsError(f"profile {params.profile!r} cannot name a folder: use letters, digits and . _ -")
    for name, changes in params.ablations.readings.items():
        try:
            params.with_(**changes)
        except ParamsError as error:
            raise ParamsError(f"ablations.readings, {name!r}: {error}") from None
    return params


def profile_path(name: str | Path) -> Path:
    """The file of a profile, by name or as a path: one's own in `params/`, else the one that came with the library."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        return path
    own, packaged = (folder / f"{name}.yaml" for folder in _profile_folders())
    return own if own.is_file() or not packaged.is_file() else packaged


def runs_dir() -> Path:
    """Where everything goes that a run makes: `ILM_RUNS_DIR`, or `runs/` of `ROOT`."""
    return Path(os.environ.get("ILM_RUNS_DIR") or ROOT / "runs").expanduser()


def data_dir() -> Path:
    """The folder of the datasets: `ILM_DATA_DIR`, or `data/` of `ROOT`."""
    return Path(os.environ.get("ILM_DATA_DIR") or ROOT / "data").expanduser()


def report_dir(profile: str) -> Path:
    """The report that a run of a profile writes; `make publish` copies it to `reports/`, whose files are committed."""
    return runs_dir() / profile / "report"


def results_path(profile: str) -> Path:
    """Where a notebook writes its results."""
    return _made(profile) / "results.csv"


def claims_path(profile: str) -> Path:
    """Where a notebook writes the claims that it tested, with their verdicts."""
    return _made(profile) / "claims.csv"


def figure_path(profile: str, name: str) -> Path:
    """Where a notebook writes a figure."""
    return _made(profile) / "figures" / f"{name}.png"


def model_path(profile: str, method: str, seed: int) -> Path:
    """Where notebook 04 saves a model: `runs/toy/models/ilm-seed0`."""
    return runs_dir() / profile / "models" / f"{method.lower()}-seed{seed}"


def _made(profile: str) -> Path:
    # `ILM_MADE`: a run of the grid has a folder of its own, so that the report knows what each notebook made.
    return Path(os.environ.get("ILM_MADE") or runs_dir() / profile)


def _profile_folders() -> tuple[Path, Path]:
    return ROOT / "params", PACKAGE / "_profiles"  # the second is `params/` in an installed copy


def _read_profile(name: str | Path) -> dict[str, Any]:
    path = profile_path(name)
    if not path.is_file():
        known = sorted({p.stem for folder in _profile_folders() for p in folder.glob("*.yaml")})
        raise ParamsError(f"no profile {str(name)!r}: {path.name} is not in params/. Known: {', '.join(known)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ParamsError(f"{path.name} is not valid YAML: {error}") from None
    values.setdefault("profile", path.stem)
    return values


_CHECKED = "_ilm_parameters_checked"
_PLAIN = (bool, int, float, str, dict, list, tuple, type(None))
_IPYTHON = {"In", "Out", "exit", "quit", "open", "get_ipython"}


def _from_notebook(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among a notebook's globals.

    On the first call nothing but parameters has been assigned, so any other plain value is a
    misspelt parameter. Later calls in the same kernel (a cell run again) look at known names only.
    """
    allowed = {*Params.model_fields, "overrides"}
    found = {
        k: v for k, v in namespace.items() if not k.startswith("_") and k not in _IPYTHON and isinstance(v, _PLAIN)
    }
    if not namespace.get(_CHECKED):
        for key in found:
            if key not in allowed:
                raise ParamsError(unknown_key("", key, sorted(allowed)))
    if isinstance(namespace, dict):
        namespace[_CHECKED] = True
    return {k: v for k, v in found.items() if k in allowed and v not in (None, {}, "", [], ())}
