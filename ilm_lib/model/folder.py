"""The folder of a saved model: safetensors and JSON, a card, and a manifest that holds every other file to its bytes.

Nothing of a folder is believed: `read_folder` checks all of it against the manifest before it loads anything, and what
it then loads against each other. No file is unpickled and no code in it is run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ilm_lib.files import open_to_others, replace_folder
from ilm_lib.model.backbone import load_backbone, tokenizer_fingerprint, weights_fingerprint
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.door import agree
from ilm_lib.model.encoders import ItemEncoder, build_encoder, encoder_config
from ilm_lib.model.factor_score import FactorScore
from ilm_lib.model.finder import Finder
from ilm_lib.model.finder_file import finder_config, finder_tensors, read_finder, write_finder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.manifest import AGAIN, CARD, FORMAT, UNREADABLE, check_finite, first_line, json_object, sign, verify
from ilm_lib.model.model_card import model_card
from ilm_lib.model.refusals import ModelFolderError, WrongKind, WrongValue, brief
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.settings import ItemPositions

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM


class Parts(NamedTuple):
    """What an ILM is made of, in the order of its arguments."""

    llm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: ItemEncoder | None
    cf: Tensor
    num_items: int
    catalogue: Catalogue | None
    item_positions: ItemPositions
    fold_in: FoldIn | None
    head: ScoreHead | None
    factors: FactorScore | None
    finder: Finder | None


class Config(BaseModel):
    """`ilm.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal[3]
    encoder: dict[str, Any] | None
    num_items: int = Field(gt=0)
    num_users: int = Field(ge=0)
    item_positions: ItemPositions
    backbone: str | None  # its name, where it is not in the folder, and then its type and fingerprints
    backbone_dtype: str
    backbone_fingerprint: str
    tokenizer_fingerprint: str
    fold_in: dict[str, float] | None
    catalogue: dict[str, Any] | None
    head: dict[str, Any] | None = None
    factors: dict[str, Any] | None = None  # weight, and fold_in with a half-life
    finder: dict[str, Any] | None = None


def write_folder(
    ilm: ILM, given: str | Path, backbone: str | None, metrics: Mapping[str, float] | None, *, users: bool
) -> Path:
    """Write a model to a folder that appears whole or not at all; see `ILM.save_pretrained`."""
    folder = _path(given).absolute()
    folder = folder.resolve() if folder.is_symlink() else folder  # the link stays
    if Path.cwd().is_relative_to(folder):
        raise ModelFolderError(f"{folder} is where this program runs, and would be replaced. Give a folder of its own")
    _check_named(backbone, metrics, folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "ilm.json").is_file()):
        raise ModelFolderError(f"{folder} is there and holds no model: saving would replace it. Give a new folder")
    if not users and ilm.catalogue and ilm.encoder is not None and ilm.fold_in is None and not _scores_histories(ilm):
        raise WrongValue(
            "users=False, and without its users this model could recommend to nobody: give it a fold_in "
            "(baselines.cf.fold_in) first"
        )
    catalogue = ilm.catalogue if users or ilm.catalogue is None else ilm.catalogue.without_users()
    cf = (ilm.cf if users else ilm.cf[: ilm.num_items]).contiguous()
    trained = {"encoder": ilm.encoder, "head": ilm.head}
    weights = {f"{n}.{k}": v.contiguous() for n, m in trained.items() if m for k, v in m.state_dict().items()}
    found = finder_tensors(ilm.finder) if ilm.finder else {}
    check_finite({"cf": cf, **weights, **found}, "this model")
    config = {
        "format": FORMAT,
        "encoder": encoder_config(ilm.encoder),
        "num_items": ilm.num_items,
        "num_users": len(cf) - ilm.num_items,
        "item_positions": ilm.prompts.item_positions,
        "backbone": backbone,
        "backbone_dtype": str(ilm.llm.dtype).removeprefix("torch."),
        "backbone_fingerprint": weights_fingerprint(ilm.llm),
        "tokenizer_fingerprint": tokenizer_fingerprint(ilm.tokenizer),
        "fold_in": asdict(ilm.fold_in) if ilm.fold_in else None,
        "catalogue": catalogue.to_json() if catalogue else None,
        "head": ilm.head.config() if ilm.head else None,
        "factors": ilm.factors.config() if ilm.factors else None,
        "finder": finder_config(ilm.finder) if ilm.finder else None,
    }
    numbers = ilm.catalogue.indexing.user_index.tolist() if ilm.catalogue else []
    vocabulary = ilm.tokenizer.get_vocab()
    of_users = sum(f"user_{number}" in vocabulary for number in numbers)
    card = model_card(config, cf.shape[1], ilm.llm, metrics, user_tokens=of_users)

    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ModelFolderError(f"{folder} cannot be written: {error.strerror}. Give another folder") from error
    save_file({"cf": cf, **weights}, temporary / "ilm.safetensors")
    if backbone is None:
        ilm.llm.save_pretrained(temporary / "backbone")
        ilm.tokenizer.save_pretrained(temporary / "backbone")
    if ilm.finder is not None:
        write_finder(ilm.finder, temporary / "finder")
    # ASCII, so that a title which is no valid Unicode does not end the work
    (temporary / "ilm.json").write_text(json.dumps(config), encoding="utf-8")
    (temporary / CARD).write_text(card, encoding="utf-8")
    sign(temporary)
    open_to_others(temporary)
    replace_folder(temporary, folder)
    return Path(given)


def _scores_histories(ilm: ILM) -> bool:
    return ilm.head is not None and not ilm.head.prompt.shows_users


def _check_named(backbone: Any, metrics: Any, folder: Path) -> None:
    """Refuse a reference that could not be followed, and measures that a card cannot show."""
    if backbone is not None and not isinstance(backbone, str):
        raise WrongKind(f"backbone is {brief(backbone)}: give the name of the LLM as text, or None for a copy")
    if backbone is not None and (not backbone.strip() or Path(backbone).absolute().is_relative_to(folder)):
        raise WrongValue(f"backbone is {brief(backbone)}: give the name of an LLM outside the folder that is written")
    for name, value in (metrics or {}).items():
        number = isinstance(value, Real) and isfinite(value)
        if not (isinstance(name, str) and name.isprintable() and "|" not in name and number):
            raise WrongValue(f"metrics: {brief(name)}: {brief(value)}: give plain names and finite numbers")


def read_folder(given: str | Path, dtype: torch.dtype | str, device_map: str | None) -> Parts:
    """Check and load what `write_folder` wrote; see `ILM.from_pretrained`."""
    check_dtype(dtype)
    folder = _path(given)
    verify(folder)
    config = _read_config(where := folder / "ilm.json")
    cf, encoder, head = _read_weights(folder / "ilm.safetensors", config)
    try:
        catalogue = Catalogue.from_json(config.catalogue) if config.catalogue else None
        fold_in = FoldIn(**config.fold_in) if config.fold_in else None  # type: ignore[arg-type]
        factors = FactorScore.from_config(config.factors) if config.factors else None
        agree(cf.shape, config.num_items, catalogue)
    except UNREADABLE as error:
        raise ModelFolderError(f"{where}: {first_line(error)}. {AGAIN}") from error
    if config.backbone is None:
        llm, tokenizer = _load(folder / "backbone", dtype=dtype, device_map=device_map)
    else:
        llm, tokenizer = _referenced(config, dtype, device_map)
    width, layers = llm.get_input_embeddings().embedding_dim, llm.config.get_text_config().num_hidden_layers
    if config.encoder is not None and config.encoder["llm_width"] != width:
        raise ModelFolderError(f"{where}: the item encoder does not fit an LLM of width {width}. {AGAIN}")
    if head is not None and (head.llm_width != width or head.states not in (1, layers + 1)):
        raise ModelFolderError(f"{where}: the head does not fit an LLM of width {width} and {layers} layers. {AGAIN}")
    vectors, finder = (cf, config.num_items), None
    if config.finder is not None:
        finder = read_finder(folder / "finder", config.finder, config.num_items)
    return Parts(llm, tokenizer, encoder, *vectors, catalogue, config.item_positions, fold_in, head, factors, finder)


def _read_config(path: Path) -> Config:
    values = json_object(path)
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelFolderError(f"{path}: {key}: {first['msg']} (got {brief(first['input'])}). {AGAIN}") from error


def _read_weights(path: Path, config: Config) -> tuple[Tensor, ItemEncoder | None, ScoreHead | None]:
    """The embeddings, the item encoder and the head, finite and of the sizes that the config gives."""
    try:
        weights = load_file(path)
    except UNREADABLE as error:
        raise ModelFolderError(f"{path} cannot be read: {first_line(error)}. {AGAIN}") from error
    trained: dict[str, Any] = {}
    for name, build in (("encoder", build_encoder), ("head", ScoreHead.from_config)):
        try:
            trained[name] = None if (given := getattr(config, name)) is None else build(given)
        except UNREADABLE as error:
            raise ModelFolderError(f"{path.parent / 'ilm.json'}: {name}: {first_line(error)}. {AGAIN}") from error
    wanted = {f"{n}.{k}": tuple(v.shape) for n, m in trained.items() if m for k, v in m.state_dict().items()}
    wanted["cf"] = (config.num_items + config.num_users, config.encoder["cf_dim"] if config.encoder else -1)
    for name in sorted(wanted.keys() | weights.keys()):
        found = tuple(weights[name].shape) if name in weights else None
        if found is None or name not in wanted:
            raise ModelFolderError(f"{path}: {name} is {'missing' if found is None else 'unknown'}. {AGAIN}")
        if len(found) != len(wanted[name]) or any(f != w for f, w in zip(found, wanted[name]) if w >= 0):
            raise ModelFolderError(f"{path}: {name} is {found}, by ilm.json {wanted[name]}. {AGAIN}")
    check_finite(weights, str(path))
    cf = weights.pop("cf").float()  # whatever type the model was saved in, and whatever PyTorch's default is
    for name, module in trained.items():
        if module is not None:
            own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
            module.float().load_state_dict(own)
    head = trained["head"]
    if (
        head is not None
        and (sizes := head.config())
        and (sizes["num_items"], sizes["vector_dim"]) != (config.num_items, cf.shape[1])
    ):
        raise ModelFolderError(f"{path.parent / 'ilm.json'}: the head is of other items than the embeddings. {AGAIN}")
    return cf, trained["encoder"], head


def _referenced(
    config: Config, dtype: torch.dtype | str, device_map: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The LLM that a model names, in the type it was trained with until its weights are checked."""
    name = str(config.backbone)
    llm, tokenizer = _load(name, dtype=config.backbone_dtype, device_map=device_map)
    for what, found, wanted in (
        ("weights", weights_fingerprint(llm), config.backbone_fingerprint),
        ("tokenizer", tokenizer_fingerprint(tokenizer), config.tokenizer_fingerprint),
    ):
        if found != wanted:
            raise ModelFolderError(
                f"the {what} of backbone {brief(name, 120)} are not those the model was trained with: get the same "
                "revision, or train again"
            )
    kept = dtype == "auto" or dtype in (config.backbone_dtype, llm.dtype)
    return llm if kept else llm.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype), tokenizer


def _load(name: str | Path, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        return load_backbone(name, **kwargs)
    except UNREADABLE as error:
        raise ModelFolderError(f"the LLM in {name} cannot be loaded: {first_line(error)}. {AGAIN}") from error


def check_dtype(dtype: Any) -> None:
    """ "auto", a floating type of torch or the name of one."""
    named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise WrongValue(f'dtype is {brief(dtype)}: give "auto", "float32", "bfloat16" or "float16"')


def _path(given: str | Path) -> Path:
    if not isinstance(given, (str, Path)) or not str(given) or "\0" in str(given):
        raise WrongKind(f"folder is {brief(given)}: give the path of a folder")
    return Path(given)
