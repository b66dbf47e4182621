"""The arithmetic of a plan: how many weights, FLOPs and bytes a training takes.

**Memory** is not guessed: one step is played with PyTorch's fake tensors, which have shapes and no numbers, and what it
allocates and frees is added up. Optimizer state and updates, which follow from the weights, are formulas.

**FLOPs** are those of matrix products, two for each multiplication and addition. With W weights in matrices and n
tokens: 2 W n forward, twice that backward, half of that where the weights are frozen and gradients only pass through
them (6 W n and 4 W n in all). Attention: 4 H forward in a layer of width H for each pair of positions of a prompt,
three times that in all. The output layer counts at labelled places alone, and padding nowhere.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from ilm_lib.devices import use_bfloat16
from ilm_lib.model.prompts import Batch
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.sections import Optim

Target = Literal["gpu", "cpu"]


def count(model: nn.Module) -> int:
    """All weights."""
    return sum(p.numel() for p in model.parameters())


def count_bare(model: nn.Module) -> int:
    """All weights but the embeddings of tokens and of their places, and the output layer of an LLM: what the paper's
    168M and 128M are held against, because vocabularies differ between data sets."""
    return sum(p.numel() for p in _bare(model))


def _bare(model: nn.Module) -> list[nn.Parameter]:
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    if isinstance(model, PreTrainedModel):
        tables.add(id(model.get_output_embeddings().weight))
    return [p for p in model.parameters() if id(p) not in tables]


# ---------------------------------------------------------------- FLOPs


@dataclass(frozen=True)
class Load:
    """What a batch has to be computed, padding left out.

    Attributes:
        tokens: positions that hold a token or an item token.
        pairs: of a position and one of the same prompt, each prompt's length squared.
        scored: labelled places.
        entities: distinct items and users.
    """

    tokens: float
    pairs: float
    scored: float
    entities: float

    @classmethod
    def of(cls, batch: Batch) -> Load:
        row = torch.arange(len(batch.segment))[:, None] * (int(batch.segment.max()) + 1)
        length = (batch.segment + row)[batch.segment > 0].unique(return_counts=True)[1].double()
        start = 0 if batch.start is None else len(batch.start)
        pairs = (length * (length + start)).sum() + start**2
        return cls(float(length.sum()) + start, float(pairs), float(batch.weight), float(len(batch.entities)))

    @classmethod
    def mean(cls, loads: list[Load]) -> Load:
        return cls(*(float(np.mean([getattr(load, f.name) for load in loads])) for f in fields(cls)))


def llm_flops(llm: PreTrainedModel, load: Load, *, products: int, attention: int) -> float:
    """FLOPs through an LLM.

    Args:
        products, attention: how often those of the forward pass: 1 and 1 forward, 3 and 3 in training, 2 and 3 where
            the weights are frozen and gradients pass through.
    """
    config = llm.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    matrices = sum(p.numel() for p in _bare(llm) if p.dim() == 2)
    head = llm.get_output_embeddings().weight.numel()
    return 2 * products * (matrices * load.tokens + head * load.scored) + attention * (
        4 * config.num_hidden_layers * width * load.pairs
    )


def query_flops(qformer: QFormer, entities: float) -> float:
    """FLOPs of a forward pass of the query tower. What its first layer does before it meets an item is done once."""
    p, D = qformer.params, qformer.params.width
    N, keys, inner = p.num_query_tokens, p.cf_keys, qformer.layers[0].query_ffn.up.out_features
    crossing = sum(bool(layer.cross) for layer in qformer.layers)
    places = entities * N
    cross = crossing * 2 * entities
    if keys > 1:  # there is something to choose among: queries ask for it
        cross = crossing * (places + 2 * keys * entities) + (crossing - 1) * places + N
    pairs = N * (places * (p.layers - 1) + N) + (crossing * keys * places if keys > 1 else 0)
    linear = 4 * D * D * ((p.layers - 1) * places + N) + 2 * D * inner * p.layers * places + D * D * cross
    return 2 * (linear + qformer.item_in.weight.numel() * entities) + 4 * D * pairs


def phase1_flops(model: QFormerForPhase1, texts: int, length: int, wanted: tuple[str, ...]) -> float:
    """FLOPs of a step of phase 1, forward and backward, in the mean over the kinds of batches that alternate.

    With ITM and no ITC it is too many: what picks its negatives then gets no gradient.
    """
    q, p, D = model.qformer, model.qformer.params, model.qformer.params.width
    N, vocab, layers, inner = p.num_query_tokens, len(model.word.weight), p.layers, model.text_ffn[0].up.out_features
    attend, ffn = 4 * D * D, 2 * D * inner
    compared, project = p.contrast_dim or D, D * (p.contrast_dim or 0)
    of_pairs = query_flops(q, 2 * texts) + 2 * (2 * texts * N * project + (texts * N) ** 2 * compared)
    kinds = [of_pairs] * len({"ii", "ui"} & {*wanted})
    if {"itc", "itg", "itm"} & {*wanted}:
        linear, pairs, tokens = 0.0, 0.0, texts * length
        if {"itc", "itm"} & {*wanted}:  # the text alone, in the last layer its first position
            linear += (layers - 1) * tokens * (attend + ffn) + texts * (attend + ffn)
            linear += texts * (N + 1) * project + texts * texts * N * compared
            pairs += (layers - 1) * tokens * length
        if "itm" in wanted:  # pairs, three for each text; the first layer attends before a pair is made
            rows, both, first, paired = 3 * texts, N + length, min(1, layers - 1), max(0, layers - 2)
            linear += first * (texts * both * attend + tokens * ffn) + rows * N * ffn * (layers - 1)
            linear += paired * rows * (both * attend + length * ffn) + rows * (attend + ffn)
            linear += 2 * D * D * rows * sum(bool(layer.cross) for layer in [*q.layers][:-1])
            pairs += first * texts * both**2 + paired * rows * both**2
        if "itg" in wanted:
            written = texts * (length - 1)
            linear += written * (layers * (attend + ffn) + D * D + vocab * D)
            pairs += layers * written * (N + length - 1)
        kinds.append(query_flops(q, texts) + 2 * linear + 4 * D * pairs)
    return 3 * float(np.mean(kinds))


# ---------------------------------------------------------------- memory


class _Living(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


@dataclass(frozen=True)
class Memory:
    """Bytes of a training.

    Attributes:
        weights: trained and frozen, with the table of CF vectors.
        gradients: of the trained weights.
        optimizer: its state, with the best weights where they are kept.
        activations: the most that a forward and a backward pass hold, with the gradients that are there by then.
        peak: at once; the driver's own share of a GPU, about half a GiB, is beside it.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def memory(
    make: Callable[[], tuple[nn.Module, list[nn.Parameter]]],
    loss: Callable[[nn.Module, Any], Mapping[str, Tensor]],
    batch: Any,
    optim: Optim,
    *,
    keep_best: bool = False,
    target: Target = "gpu",
) -> Memory:
    """The memory of one training, as `loop.fit` runs it.

    Args:
        make: a model and those of its weights that are trained; called under a fake mode.
        loss: as in `fit`.
        batch: what `loss` reads, of real tensors; only their shapes count, and what is in none is passed on.
        keep_best: the best weights are kept beside the last.
        target: "gpu" resolves precision "auto" to bfloat16, "cpu" asks this machine.
    """
    low = optim.precision != "float32" and (target == "gpu" or use_bfloat16(optim.precision))
    with FakeTensorMode() as mode:
        model, trained = make()
        with _Living() as living:
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                total = sum(loss(model.train(), _faked(mode, batch)).values())
            total.backward()
        size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)
        weights, gradients = size([*model.parameters(), *model.buffers()]), size(trained)
    state = 2 * gradients if optim.optimizer == "adamw" else sum(_factored(p) for p in trained)
    state += keep_best * gradients
    update = gradients if optim.optimizer == "adafactor" else 0  # of all weights at once
    peak = weights + state + max(living.most, gradients + update)
    return Memory(weights, gradients, state, living.most, peak)


def _factored(p: Tensor) -> int:
    """Bytes of Adafactor's second moment: of a matrix its rows and columns."""
    if p.dim() < 2:
        return 4 * p.numel()
    return 4 * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2])


def _faked(mode: FakeTensorMode, batch: Any) -> Any:
    fake = lambda values: {k: mode.from_tensor(v) if torch.is_tensor(v) else v for k, v in values.items()}
    return replace(batch, **fake(vars(batch))) if isinstance(batch, Batch) else fake(batch)
