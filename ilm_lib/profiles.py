"""Profiles: the settings of a run, validated before any work starts.

A profile is one YAML file in `params/`; a notebook's parameters cell and papermill's `-p` / `-f`
override it. Unknown keys are refused with the allowed ones beside them, because papermill itself
only logs a misspelt parameter and runs on with the default.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Mapping

import yaml

from ilm_lib.params import Params, ParamsError, merge, merge_dotted, unknown_key, validate

ROOT = Path(__file__).resolve().parent.parent


def load_params(source: str | Path | Mapping[str, Any] = "toy", **overrides: Any) -> Params:
    """Load a profile and apply overrides.

    Args:
        source: a profile's name (`params/<name>.yaml`), a YAML file, or a notebook's `globals()`.
            From a notebook, `profile` picks the file and every other plain value overrides it.
        overrides: dotted keys, e.g. `**{"phase1.steps": 100}`.

    Raises:
        ParamsError: unknown or invalid key; the message names it, with the allowed ones.
    """
    if isinstance(source, Mapping):
        given = _from_notebook(source)
        overrides = {**given.pop("overrides", {}), **overrides}
        source = given.pop("profile", "toy")
    else:
        given = {}
    base = _read_profile(source)
    params = validate(merge_dotted(merge(base, given), overrides))
    for name, changes in params.ablations.readings.items():
        try:
            params.with_(**changes)
        except ParamsError as error:
            raise ParamsError(f"ablations.readings, {name!r}: {error}") from None
    return params


def profile_path(name: str | Path) -> Path:
    path = Path(name)
    return path if path.suffix in {".yaml", ".yml"} else ROOT / "params" / f"{name}.yaml"


def runs_dir() -> Path:
    """Where stage artifacts go: `ILM_RUNS_DIR`, or `runs/` of the project."""
    return Path(os.environ.get("ILM_RUNS_DIR", ROOT / "runs"))


def reports_dir() -> Path:
    """Where reports go: `ILM_REPORTS_DIR`, or `reports/` of the project."""
    return Path(os.environ.get("ILM_REPORTS_DIR", ROOT / "reports"))


def _read_profile(name: str | Path) -> dict[str, Any]:
    path = profile_path(name)
    if not path.is_file():
        known = sorted(p.stem for p in (ROOT / "params").glob("*.yaml"))
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
    found = {k: v for k, v in namespace.items()
             if not k.startswith("_") and k not in _IPYTHON and isinstance(v, _PLAIN)}
    if not namespace.get(_CHECKED):
        for key in found:
            if key not in allowed:
                raise ParamsError(unknown_key("", key, sorted(allowed)))
    if isinstance(namespace, dict):
        namespace[_CHECKED] = True
    return {k: v for k, v in found.items() if k in allowed and v not in (None, {}, "", [], ())}
