"""The LLM before it is frozen: ours, pretrained on text-only prompts, or a reference to a named one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ilm_lib.devices import device
from ilm_lib.files import write_json
from ilm_lib.model.backbone import LanguageModel, load_backbone, new_backbone, weights_fingerprint
from ilm_lib.settings import Backbone
from ilm_lib.train.loop import fit
from ilm_lib.train.state import STATE


def pretrain(
    folder: Path, params: Backbone, tokenizer: PreTrainedTokenizerBase, batches: Callable[[int], Any], *, seed: int
) -> None:
    """Pretrain our decoder and leave model, tokenizer and log in a folder.

    Args:
        folder: where to.
        params: sizes of the decoder, and how it is trained.
        tokenizer: of the LLM.
        batches: text-only `prompts.Batch`es by step, with labels on the whole text.
    """
    torch.manual_seed(seed)
    model = new_backbone(params, tokenizer, max_length=1024).to(device())

    log = fit(
        LanguageModel(model),
        list(model.parameters()),
        lambda m, b: {"lm": m(b.to(device()))},
        batches,
        params,
        seed=seed,
        state=folder / STATE,
        label="backbone",
    )
    model.cpu().save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    log.to_parquet(folder / "log.parquet")
    write_json(
        folder / "backbone.json",
        {
            "name": None,
            "fingerprint": weights_fingerprint(model),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )


def reference(folder: Path, name: str, place: str, **kept: Any) -> None:
    """Leave a reference to the LLM that a profile names so, and that lies there, in place of a copy of its weights, and
    how it is to be loaded."""
    model, _ = load_backbone(place, dtype=kept.get("dtype", "auto"))
    write_json(
        folder / "backbone.json",
        {
            "name": name,
            **kept,
            "fingerprint": weights_fingerprint(model),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )
