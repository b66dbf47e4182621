"""Which notebooks the study of a profile leaves out, and why."""

from __future__ import annotations

from ilm_lib.errors import Refusal
from ilm_lib.methods import METHODS
from ilm_lib.settings import Params


class NothingToDo(Refusal, ValueError):
    """A notebook has nothing to do for a profile; the message says what it would need."""


def left_out(params: Params) -> dict[str, str]:
    """The notebooks that a profile has no use for, each with the reason."""
    reasons = {}
    if not params.evaluation.enabled:
        openp5 = ("03_phase1", "04_phase2", "06_openp5_eval", "07_ablations", "09_readings")
        reasons = dict.fromkeys(openp5, "evaluation.enabled is false")
    elif not any(METHODS[m].phase1 for m in params.methods):
        reasons["03_phase1"] = f"none of the methods {', '.join(params.methods)} has a phase 1"
    if not params.elm24.enabled:
        reasons["05_elm24_eval"] = "elm24.enabled is false"
    elif all(METHODS[m].encoder == "none" for m in params.methods):
        reasons["05_elm24_eval"] = f"none of the methods {', '.join(params.methods)} reads a film's vector"
    if not (params.score.enabled and params.evaluation.enabled):
        reasons["10_scoring"] = f"{'evaluation' if params.score.enabled else 'score'}.enabled is false"
    elif all(METHODS[m].encoder == "none" for m in params.methods):
        reasons["10_scoring"] = f"none of the methods {', '.join(params.methods)} reads an item's vector"
    if "09_readings" not in reasons and not params.ablations.readings:
        reasons["09_readings"] = "ablations.readings is empty"
    if "09_readings" not in reasons and "ILM" not in params.methods:
        reasons["09_readings"] = "it reads ILM in other ways, which is not among methods"
    return reasons


def need(params: Params, notebook: str) -> None:
    """Raises NothingToDo where the study of a profile leaves a notebook out."""
    if reason := left_out(params).get(notebook):
        raise NothingToDo(f"notebook {notebook} has nothing to do for profile {params.profile!r}: {reason}")


def first_aligned(params: Params) -> str:
    """The method whose phase 1 notebook 03 shows: ILM, or the first that has one."""
    need(params, "03_phase1")
    return next(m for m in ("ILM", *params.methods) if m in params.methods and METHODS[m].phase1)
