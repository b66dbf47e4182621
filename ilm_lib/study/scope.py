"""Which notebooks the study of a profile leaves out, and why."""

from __future__ import annotations

from ilm_lib.errors import Refusal
from ilm_lib.methods import METHODS
from ilm_lib.settings import Params

OF_THE_BEAM = ("06_openp5_eval", "07_ablations", "09_readings")


class NothingToDo(Refusal, ValueError):
    """A notebook has nothing to do for a profile; the message says what it would need."""


def left_out(params: Params) -> dict[str, str]:
    """The notebooks that a profile has no use for, each with the reason."""
    reasons: dict[str, str] = {}

    def leave(reason: str, *notebooks: str) -> None:
        for notebook in notebooks:
            reasons.setdefault(notebook, reason)

    all_of = lambda what, attribute: all(getattr(METHODS[m], attribute) == what for m in params.methods)
    names, readouts = ", ".join(params.methods), params.evaluation.readouts
    if not params.evaluation.enabled:
        leave("evaluation.enabled is false", "03_phase1", "04_phase2", *OF_THE_BEAM, "10_scoring")
    if "beam" not in readouts:
        leave("evaluation.readouts has no beam", *OF_THE_BEAM)
    if "score" not in readouts:
        leave("evaluation.readouts has no score", "10_scoring")
    if not params.chat.enabled:
        leave("chat.enabled is false", "11_chat")
    if params.embeddings.file:
        leave("vectors of a file say nothing of somebody new", "11_chat")
    if all_of((), "phase1"):
        leave(f"none of the methods {names} has a phase 1", "03_phase1")
    if not params.elm24.enabled:
        leave("elm24.enabled is false", "05_elm24_eval")
    if all_of("none", "encoder"):
        leave(f"none of the methods {names} reads a film's vector", "05_elm24_eval")
        leave(f"none of the methods {names} reads an item's vector", "10_scoring", "11_chat")
    if not params.ablations.readings:
        leave("ablations.readings is empty", "09_readings")
    if "ILM" not in params.methods:
        leave("it reads ILM in other ways, which is not among methods", "09_readings")
    return reasons


def by_beam(params: Params) -> list[str]:
    """The methods whose item encoder notebook 04 trains to be read by a beam."""
    return [m for m in params.methods if m != "OpenP5-R" and "beam" in params.evaluation.readouts]


def need(params: Params, notebook: str) -> None:
    """Raises NothingToDo where the study of a profile leaves a notebook out."""
    if reason := left_out(params).get(notebook):
        raise NothingToDo(f"notebook {notebook} has nothing to do for profile {params.profile!r}: {reason}")


def first_aligned(params: Params) -> str:
    """The method whose phase 1 notebook 03 shows: ILM, or the first that has one."""
    need(params, "03_phase1")
    return next(m for m in ("ILM", *params.methods) if m in params.methods and METHODS[m].phase1)
