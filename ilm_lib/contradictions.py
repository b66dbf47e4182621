"""Settings that are right one by one and make a study that is wrong together.

Looked at where a profile is loaded, and not in every copy with other values: a study's own variants may hold them.
"""

from __future__ import annotations

from ilm_lib.settings import Params, ParamsError

#: What makes a profile another study, and no reading of the paper.
_NO_READING = {"profile", "seed", "seeds", "method", "methods", "ablations"}


def refuse_contradictions(params: Params) -> None:
    """Raises ParamsError for settings that cannot be meant together; the message names them."""
    e, data = params.evaluation, params.data
    if narrow := [beams for beams in e.wide_beams if beams <= e.beams]:
        raise ParamsError(f"evaluation.wide_beams: {narrow[0]} is not above evaluation.beams {e.beams}; leave it out")
    if data.source == "toy" and (wide := max((e.beams, *e.wide_beams))) > data.num_items:
        raise ParamsError(
            f"evaluation.beams and wide_beams: {wide} is more than data.num_items {data.num_items}; give at most those"
        )
    if params.backbone.pretrained and params.ablations.backbone_steps:
        raise ParamsError(
            "ablations.backbone_steps train our LLM for so long, and backbone.pretrained names another; leave one out"
        )
    usual = {"dtype": "auto", "recompute": False, "sharded": False}
    if kept := [name for name, value in usual.items() if getattr(params.backbone, name) != value]:
        if not params.backbone.pretrained:
            raise ParamsError(f"backbone.{kept[0]} is of a named LLM: set backbone.pretrained, or leave it out")
    if params.score.user and "cf" not in params.score.vectors:
        raise ParamsError("score.user needs factors to fold a history into: add cf to score.vectors, or leave user out")
    for table in ("readings", "scored"):
        for name, changes in getattr(params.ablations, table).items():
            try:
                _reading(params, name, changes)
            except ParamsError as error:
                raise ParamsError(f"ablations.{table}, {name[:40]!r}: {error}") from None


def _reading(params: Params, name: str, changes: dict) -> None:
    if name == "as in the profile":
        raise ParamsError("so is called what the readings are compared with; choose another name")
    for key in changes:
        section = key.split(".")[0]
        if section in _NO_READING:
            raise ParamsError(f"{key} is no reading of the paper; a profile of its own may change it")
        if section == "embeddings" and params.embeddings.file:
            raise ParamsError(f"{key} changes nothing beside embeddings.file; leave the reading out")
        if section == "backbone" and params.backbone.pretrained:
            raise ParamsError(f"{key} changes nothing beside backbone.pretrained; leave the reading out")
    params.with_(**changes)
