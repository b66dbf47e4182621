"""The item vectors of the score read-out: one kind, or several put end to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.numpy import load_file, save_file

from ilm_lib.baselines import nearest_text
from ilm_lib.baselines.sasrec import load_sasrec
from ilm_lib.baselines.vectors import centred, fuse, parts_of, principal_parts
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.sections import VectorKind
from ilm_lib.settings import Params
from ilm_lib.study import inputs, openp5, stages
from ilm_lib.study.artifacts import Artifact, stage

MADE_BY = "10_scoring"


def vectors(
    params: Params, seed: int, kinds: Sequence[VectorKind], *, whole_texts: bool = False, build: bool = False
) -> Artifact:
    """Vectors of items and users, in the form of `inputs.embeddings`; of "cf" alone they are these.

    Args:
        whole_texts: a text's part is its sentence vector less the mean of all, and not principal components of it.
    """
    cf = inputs.embeddings(params, seed, build=build) if "cf" in kinds else None
    if cf is not None and len(kinds) == 1:
        return cf
    given = {
        "data": inputs.data(params),
        "cf": cf,
        "sasrec": openp5.sasrec(params, seed, build=build) if "sasrec" in kinds else None,
        "text": text_vectors(params, build=build) if "text" in kinds else None,
        "text_dim": None if whole_texts else params.score.text_dim,
    }
    return stage("vectors", make_vectors, params.profile, made_by=MADE_BY, build=build, given=given)


def make_vectors(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact | None,
    sasrec: Artifact | None,
    text: Artifact | None,
    text_dim: int | None,
) -> None:
    """Leave embeddings.safetensors."""
    others = []
    if sasrec is not None:
        others.append(load_sasrec(sasrec.path("sasrec")).get_input_embeddings().weight.detach().float().numpy())
    if text is not None:
        table = load_file(text.path("text.safetensors"))["item"]
        others.append(centred(table) if text_dim is None else principal_parts(table, text_dim))
    factors = None if cf is None else inputs.cf_embeddings(cf)
    fused = fuse(factors, others, inputs.open_dataset(data).train_matrix())
    save_file({"user": fused.user, "item": fused.item}, folder / "embeddings.safetensors")


def text_vectors(params: Params, *, build: bool = False) -> Artifact:
    """A sentence encoder's vectors of the items' texts."""
    given = {"data": inputs.data(params), "encoder": params.elm24.sentence_encoder}
    return stage("text_vectors", make_text_vectors, params.profile, made_by=MADE_BY, build=build, given=given)


def make_text_vectors(folder: Path, *, data: Artifact, encoder: str | None) -> None:
    """Leave text.safetensors: "item" (I, D) unit vectors, zeros for items without a text."""
    save_file({"item": nearest_text.text_vectors(inputs.open_dataset(data), encoder)}, folder / "text.safetensors")


def text_parts(text: Artifact, dim: int) -> int:
    """How many numbers of a fused vector are of `text_vectors`, its last ones."""
    return parts_of(load_file(text.path("text.safetensors"))["item"], dim)


def history_fold_in(params: Params, seed: int, kinds: Sequence[VectorKind]) -> FoldIn | None:
    """How a user's vector of these kinds is made of a history; None without factors, or where they came from a file."""
    if "cf" not in kinds:
        return None
    cf, fused = (vectors(params, seed, which) for which in (("cf",), kinds))
    return stages.history_fold_in(params, cf, fused if len(kinds) > 1 else None)
