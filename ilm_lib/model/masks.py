"""Attention masks of any shape for a Hugging Face causal LM, and whether a model takes them.

Packed training rows (a prompt sees itself alone) and trees of candidate answers (a node sees its ancestors
alone) need a mask over pairs of positions. Most models take one in place of the usual (B, T) mask; those that
build position biases from the (B, T) mask, carry a recurrent state or run a kernel without masks do not.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_taken: WeakKeyDictionary[PreTrainedModel, dict[str, bool]] = WeakKeyDictionary()


def additive(see: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that eager and fused attention add to their scores: 0 or the type's lowest number.

    Args:
        see: (B, 1, T, S) bool, True where a position sees another.

    A position that sees nothing (padding) may see all: its output is of no use, but must not be NaN.
    """
    see = see | ~see.any(-1, keepdim=True)
    return torch.zeros(see.shape, dtype=dtype, device=see.device).masked_fill_(~see, torch.finfo(dtype).min)


def takes_4d_mask(llm: PreTrainedModel, length: int) -> bool:
    """Whether the model reads rows of `length` positions under any (B, 1, T, S) mask as it should.

    Behaviour decides, not the name of the architecture: the model reads two short texts shuffled into one row,
    and either comes out as it does alone, or it does not. Two things need no trial: positions must be an argument,
    and rows no longer than the shortest sliding window, whose mask this one replaces. The answer of the trial is
    kept per model and attention implementation.
    """
    if length > _window(llm) or not takes_positions(llm):
        return False
    answers = _taken.setdefault(llm, {})
    implementation = llm.config._attn_implementation
    if implementation not in answers:
        modes = [(module, module.training) for module in llm.modules()]
        llm.eval()
        try:
            answers[implementation] = _trial(llm)
        except Exception:  # a model may refuse such a mask in any way it likes
            answers[implementation] = False
        finally:
            for module, mode in modes:
                module.training = mode
    return answers[implementation]


def takes_positions(llm: PreTrainedModel) -> bool:
    """Whether positions are an argument of the model, and not its own affair."""
    return "position_ids" in inspect.signature(llm.forward).parameters


def _window(llm: PreTrainedModel) -> float:
    """Positions that every layer of the model can look back over, in a row that its tables of positions cover."""
    config = llm.config.get_text_config()
    context = getattr(config, "max_position_embeddings", None) or float("inf")
    kinds = set(getattr(config, "layer_types", None) or getattr(config, "attention_layers", None) or ["unknown"])
    if kinds <= {"full_attention", "global"}:
        return context
    windows = [getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size")]
    return min([context, *(w for w in windows if isinstance(w, int))])


@torch.no_grad()
def _trial(llm: PreTrainedModel) -> bool:
    """Two texts token by token in turn in one row, each token under a mask that hides the other text."""
    device, dtype = llm.device, llm.get_input_embeddings().weight.dtype
    draw = torch.randint(llm.get_input_embeddings().num_embeddings, (2, 6), generator=torch.Generator().manual_seed(0))
    texts, mixed = draw.to(device), draw.T.reshape(1, 12).to(device)
    position = torch.arange(12, device=device)
    see = (position[:, None] % 2 == position % 2) & (position[:, None] >= position)
    with torch.autocast(device.type, enabled=False):
        alone = llm(input_ids=texts, use_cache=False, attention_mask=torch.ones_like(texts)).logits.float()
        together = llm(
            input_ids=mixed,
            use_cache=False,
            position_ids=position[None] // 2,
            attention_mask=additive(see[None, None], dtype),
        ).logits.float()
        leaking = llm(input_ids=mixed, use_cache=False, attention_mask=torch.ones_like(mixed)).logits.float()
    error, leak = ((got[0].view(6, 2, -1).transpose(0, 1) - alone).abs().mean() for got in (together, leaking))
    # Rounding differs with the shape; what it may be is measured by what the other text would have changed.
    return bool(error <= 3 * torch.finfo(dtype).eps ** 0.5 * leak)
