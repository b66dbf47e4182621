"""What the study of a profile consists of: its runs of notebooks, what each is given, and which of them still hold.

An executed notebook holds while it was made of the notebook, the parameters and the library that are there now, and
while the stages it stands on are there. All of it goes by content, so neither a clock nor another checkout that shares
the runs folder can pass off an old page as a new one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import yaml

from ilm_lib.executed import executed_path, library_digest, read_executed, write_plan
from ilm_lib.files import digest_of, sha256, write_text
from ilm_lib.profiles import ROOT, runs_dir
from ilm_lib.settings import Params
from ilm_lib.study.scope import by_beam, left_out


def runs(params: Params, seeds: int) -> dict[str, dict[str, Any]]:
    """The runs of notebooks that a study may have: name -> what it is given beside the profile's settings."""
    each = range(params.seed, params.seed + seeds)
    methods = ["OpenP5-R", *by_beam(params)]
    found: dict[str, dict[str, Any]] = {"01_data": {}}
    found |= {f"{n}-seed{s}": {"seed": s} for n in ("02_embeddings", "03_phase1") for s in each}
    found |= {f"04_phase2-{m}-seed{s}": {"seed": s, "method": m} for m in methods for s in each}
    overall = ("05_elm24_eval", "06_openp5_eval", "07_ablations", "09_readings", "10_scoring", "11_chat")
    found |= {name: {"seeds": list(each)} for name in overall}
    off = left_out(params)
    return {name: given for name, given in found.items() if name.partition("-")[0] not in off}


def shown(params: Params, seeds: int) -> list[str]:
    """The runs that the report shows, in its order. OpenP5-R also pretrains the LLM where it is no method of ours."""
    return [name for name, own in runs(params, seeds).items() if own.get("method", "") in ("", *params.methods)]


def parameters(params: Params, name: str, own: dict[str, Any]) -> str:
    """Every parameter of a run as YAML, so that nothing a reader left in a notebook gets into it.

    The first line says which notebook and library it was written for: where one changes, so does the file.
    """
    values = {**params.model_dump(mode="json"), "overrides": {}, **own}
    body = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return f"{_first_line(sha256(source(name)))}\n{body}"


def source(name: str) -> Path:
    """The notebook of a run: 04_phase2 of 04_phase2-ILM-seed0."""
    return ROOT / "notebooks" / f"{name.partition('-')[0]}.ipynb"


def made_of(notebook: bytes, parameters: str) -> str:
    """Digest of what a run is made of: the notebook, its parameters and the library as it is now."""
    body = parameters.partition("\n")[2]
    return digest_of(f"{_first_line(hashlib.sha256(notebook).hexdigest())}\n{body}")


def prepare(params: Params, seeds: int) -> None:
    """Write the parameters of every run that has changed, and what the report will show.

    A file is written only where its content changes: its time is what tells snakemake to run a notebook again.
    """
    for name, own in runs(params, seeds).items():
        path, text = runs_dir() / params.profile / "parameters" / f"{name}.yaml", parameters(params, name, own)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)
    write_plan(params.profile, shown(params, seeds))


def gone(params: Params, seeds: int) -> list[str]:
    """The runs of a study that have not been made, or do not hold any more."""
    home, found = runs_dir() / params.profile, []
    for name, own in runs(params, seeds).items():
        executed = read_executed(executed_path(params.profile, name))
        if (
            executed is None
            or executed.made_of != digest_of(parameters(params, name, own))
            or not all((home / stage / "manifest.json").is_file() for stage in executed.stages)
        ):
            found.append(name)
    return found


def _first_line(notebook: str) -> str:
    return f"# for the notebook {notebook[:16]} and the library {library_digest()[:16]}"
