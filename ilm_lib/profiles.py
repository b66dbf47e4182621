"""Profiles: the settings of a run, validated before any work starts, and the places that follow from them.

A profile is one YAML file in `params/`, which may take another's settings for its own (`extends`); a notebook's
parameters cell and papermill's `-p` / `-f` override it. Unknown keys are refused with the allowed ones beside them,
because papermill itself only logs a misspelt parameter and runs on with the default.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

from ilm_lib.contradictions import refuse_contradictions
from ilm_lib.explain import fitting, shown, unknown_key
from ilm_lib.settings import Params, ParamsError, validate
from ilm_lib.values import merge, merge_dotted, names_a_folder
from ilm_lib.yaml_file import read_yaml

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
        overrides: dotted keys, e.g. `**{"phase1.steps": 100}`. The profile is none of them: its runs lie in a folder
            of its name, and another's settings do not get there.

    Raises:
        ParamsError: unknown or invalid key, or settings that contradict each other; the message names it, with the
            file and line that gave it.
    """
    given: dict[str, Any] = {}
    extended = None
    if isinstance(source, Mapping):
        given = _from_notebook(source)
        overrides = {**_overrides(given.pop("overrides", {})), **overrides}
        source, extended = given.pop("profile", "toy"), given.pop("extends", None)
    values, places = _read_profile(source)
    assert isinstance(source, (str, Path))  # `_read_profile` saw to it
    if extended is not None and read_yaml(profile_path(source))[0].get("extends") != extended:
        raise ParamsError(f"extends: profile {shown(source)} does not extend {shown(extended)}; name one that does")
    settings = merge_dotted(merge(values, given), _overrides(overrides))

    def place(key: tuple[Any, ...]) -> str:
        key = tuple(takewhile(lambda part: isinstance(part, str), key))  # what follows counts in a list
        from_file = key in places and _at(settings, key) is _at(values, key)
        return f"{places[key]}: " if from_file else ""

    params = validate(settings, place)
    refuse_contradictions(params)
    return params


def _overrides(given: Any) -> dict[str, Any]:
    """Dotted keys and their values, checked to be keys."""
    if not isinstance(given, Mapping):
        raise ParamsError(f"overrides: {shown(given)} is no mapping; write e.g. {{'phase1.steps': 100}}")
    for key in given:
        if not isinstance(key, str) or not all(key.split(".")):
            raise ParamsError(f"overrides: the key {shown(key)} is no dotted key; write e.g. 'phase1.steps'")
        if key.split(".")[0] == "profile":
            raise ParamsError("overrides: profile names a file and the folder of its runs; give it as profile alone")
    return dict(given)


def _at(values: Any, key: Iterable[Any]) -> Any:
    """What lies in nested mappings at a path; None where nothing does."""
    for part in key:
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


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


def _read_profile(source: Any, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
    """A profile's settings with its name, and where its keys stand: {("phase1", "steps"): "mine.yaml:4"}.

    Args:
        above: files that extend this one.
    """
    if not isinstance(source, (str, Path)):
        raise ParamsError(f"profile: {shown(source)} is no name; give that of a file in params/, e.g. 'toy'")
    path, by_name = profile_path(source), Path(source).suffix not in {".yaml", ".yml"}
    if by_name and (not names_a_folder(str(source)) or not path.exists()):
        raise ParamsError(_no_profile(str(source)))
    values, lines = read_yaml(path)
    if path.name not in os.listdir(path.parent):  # a file system that does not tell A from a
        raise ParamsError(f"{path.name} is called otherwise in its folder; write the profile's name as it is there")
    name = values.setdefault("profile", path.stem)
    if isinstance(name, str) and names_a_folder(name) and name != path.stem:
        raise ParamsError(
            f"{path.name}:{lines['profile',]}: profile: {shown(name)} is another's name, whose runs it would mix with; "
            f"write profile: {path.stem[:80]} or leave the line out"
        )
    places = {key: f"{path.name}:{line}" for key, line in lines.items()}
    if "extends" not in values:
        return values, places
    extended, place = values.pop("extends"), places.pop(("extends",))
    under, beneath = _read_profile(_extended(extended, place, path, above), (*above, path))
    return merge(under, values), beneath | places


def _extended(name: Any, place: str, path: Path, above: tuple[Path, ...]) -> Path:
    """The file of the profile that one extends: beside it, or by name."""
    if not isinstance(name, str) or not names_a_folder(name) or name.endswith((".yaml", ".yml")):
        raise ParamsError(f"{place}: extends: {shown(name)} is no name; give that of a profile, e.g. extends: toy")
    beside = path.with_name(f"{name}.yaml")
    found = beside if beside.is_file() else profile_path(name)
    if not found.exists():
        raise ParamsError(f"{place}: extends: {_no_profile(name)}")
    if any(found.resolve() == each.resolve() for each in (*above, path)):
        raise ParamsError(f"{place}: extends: {shown(name)} is what this profile is made of; name another, or none")
    return found


def _no_profile(name: str) -> str:
    known = sorted({p.stem for folder in _profile_folders() for p in folder.glob("*.yaml")})
    close = difflib.get_close_matches(name, known, 1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"no profile {shown(name)} in params/.{hint} Known: {fitting(known, 150, 'the files of params/')}"


_CHECKED = "_ilm_parameters_checked"
_PLAIN = (bool, int, float, str, dict, list, tuple, type(None))
_IPYTHON = {"In", "Out", "exit", "quit", "open", "get_ipython"}


def _from_notebook(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters among a notebook's globals.

    On the first call nothing but parameters has been assigned, so any other plain value is a
    misspelt parameter, and a parameter that is no plain value is a wrong one. Later calls in the
    same kernel (a cell run again) look at known names only.
    """
    allowed = {*Params.model_fields, "overrides", "extends"}
    found = {k: v for k, v in namespace.items() if not str(k).startswith("_") and k not in _IPYTHON}
    plain = {k: v for k, v in found.items() if isinstance(v, _PLAIN)}
    if not namespace.get(_CHECKED):
        for key in plain:
            if key not in allowed:
                raise ParamsError(unknown_key("", str(key), sorted(allowed)))
        for key in allowed & (found.keys() - plain.keys()):
            if not isinstance(found[key], ModuleType) and not callable(found[key]):
                kind = type(found[key]).__name__
                raise ParamsError(f"{key}: a {kind} is no plain value; give a number, text, list or dict")
    if plain.get("profile") == "":
        raise ParamsError("profile: '' is no name; give that of a file in params/, e.g. 'toy'")
    if isinstance(namespace, dict):
        namespace[_CHECKED] = True
    return {k: v for k, v in plain.items() if k in allowed and v not in (None, {}, "", [], ())}
