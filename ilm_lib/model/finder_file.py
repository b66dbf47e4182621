"""The part of a saved model that finds items by words: `finder/`, of tensors, and a tokenizer where phase 1 reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ilm_lib.model.finder import Aligned, Finder, Weights
from ilm_lib.model.manifest import AGAIN, UNREADABLE, check_finite, first_line
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.refusals import ModelFolderError
from ilm_lib.model.text_codec import TextCodec
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.settings import QFormerParams

TOWERS = "towers."


def finder_config(finder: Finder) -> dict[str, Any]:
    """What `ilm.json` says of a finder."""
    towers = finder.aligned and {
        "params": finder.aligned.model.qformer.params.model_dump(
            exclude={"text_tower"}
        ),  # a place on the disk of who trained
        "cf_dim": finder.aligned.model.qformer.item_in.in_features,
        "vocab_size": len(finder.aligned.model.word.weight),
    }
    return {"weights": finder.weights._asdict(), "encoder": finder.encoder, "towers": towers}


def finder_tensors(finder: Finder) -> dict[str, Tensor]:
    """What `finder.safetensors` holds."""
    tensors = {"texts": torch.from_numpy(finder.texts), "known": torch.from_numpy(finder.known)}
    if finder.aligned is not None and finder.items is not None:
        tensors["items"] = finder.items
        tensors |= {TOWERS + name: value for name, value in finder.aligned.model.state_dict().items()}
    return {name: value.contiguous() for name, value in tensors.items()}


def write_finder(finder: Finder, folder: Path) -> None:
    """Write a finder's tensors and tokenizer to a folder that is not there yet."""
    folder.mkdir()
    save_file(finder_tensors(finder), folder / "finder.safetensors")
    if finder.aligned is not None:
        finder.aligned.codec.tokenizer.save_pretrained(folder / "tokenizer")


def read_finder(folder: Path, config: dict[str, Any], num_items: int) -> Finder:
    """The finder that `write_finder` wrote; ModelFolderError where its parts do not fit each other."""
    path = folder / "finder.safetensors"
    try:
        tensors = load_file(path)
        check_finite(tensors, str(path))
        texts, known, items = tensors.pop("texts"), tensors.pop("known"), tensors.pop("items", None)
        aligned = _aligned(folder / "tokenizer", config["towers"], tensors) if config["towers"] else None
        weights, encoder = Weights(**{k: float(v) for k, v in config["weights"].items()}), config["encoder"]
        if not np.isfinite(weights).all() or not isinstance(encoder, (str, type(None))):
            raise ValueError(f"weights {weights} of encoder {encoder!r}")
        finder = Finder(texts.numpy(), known.numpy(), items, aligned, weights, encoder)
    except ModelFolderError:
        raise
    except UNREADABLE as error:
        raise ModelFolderError(f"{path}: {first_line(error)}. {AGAIN}") from error
    shapes = [tuple(t.shape) for t in (texts, known, *([] if items is None else [items]))]
    fits = [len(shape) for shape in shapes] == [2, 1, 3][: len(shapes)] and (items is None) == (aligned is None)
    if not fits or any(shape[0] != num_items for shape in shapes) or (aligned is None and tensors):
        raise ModelFolderError(f"{path}: tensors of shapes {shapes} are no finder of {num_items} items. {AGAIN}")
    return finder


def towers_of(folder: Path, params: QFormerParams, cf_dim: int) -> Aligned:
    """Phase 1's towers, of a folder that `train.phase1.run_phase1` left, as stage phase1 of a study is.

    Args:
        params: the sizes that they were trained with, and cf_dim: d.
    """
    query_tower = load_file(folder / "qformer.safetensors")
    tensors = load_file(folder / "phase1.safetensors") | {
        f"qformer.{name}": value for name, value in query_tower.items()
    }
    return _towers(folder / "tokenizer", params, cf_dim, tensors)


def _aligned(folder: Path, sizes: dict[str, Any], tensors: dict[str, Tensor]) -> Aligned:
    own = {name.removeprefix(TOWERS): value for name, value in tensors.items()}
    if int(sizes["vocab_size"]) != len(own["word.weight"]):
        raise ValueError(f"word embeddings of {len(own['word.weight'])} tokens, by ilm.json {sizes['vocab_size']}")
    return _towers(folder, QFormerParams(**sizes["params"]), int(sizes["cf_dim"]), own)


def _towers(tokenizer_folder: Path, params: QFormerParams, cf_dim: int, tensors: dict[str, Tensor]) -> Aligned:
    model = QFormerForPhase1(QFormer(params, cf_dim), len(tensors["word.weight"]))
    model.load_state_dict(tensors)
    kind = get_tokenizer_config(tokenizer_folder).get("tokenizer_class")
    read = PreTrainedTokenizerFast if kind in ("PreTrainedTokenizerFast", "TokenizersBackend") else AutoTokenizer
    tokenizer = read.from_pretrained(tokenizer_folder, trust_remote_code=False)
    if len(tokenizer) > len(model.word.weight):
        raise ValueError(f"a tokenizer of {len(tokenizer)} tokens for embeddings of {len(model.word.weight)}")
    return Aligned(model, TextCodec(tokenizer, params.max_text_tokens))
