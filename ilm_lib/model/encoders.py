"""From collaborative filtering embeddings to tokens of the LLM: one interface, two encoders, a cache of tokens.

An item encoder maps (E, d) embeddings to (E, N, H) soft tokens. ILM and ILM-rand are the Q-Former with
a linear projection; MLP is CoLLM's two-layer network (arXiv 2310.19488).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from ilm_lib.model.qformer import QFormer
from ilm_lib.settings import QFormerParams


class ItemEncoder(nn.Module):
    """Interface of the item encoders.

    Attributes:
        num_query_tokens: N.
        out: the last linear layer, into the LLM's token space.
        dropout: on the embeddings, in training; 0 unless it is set.
    """

    num_query_tokens: int
    out: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.0)

    def forward(self, cf: Tensor) -> Tensor:
        """(E, d) embeddings -> (E, N, H) item tokens."""
        raise NotImplementedError

    @torch.no_grad()
    def calibrate(self, cf: Tensor, target_rms: float) -> None:
        """Scale the last layer so that new item tokens are as large as the LLM's own embeddings.

        Without it the first steps are spent on the scale, at a different cost for each encoder.
        """
        nn.init.zeros_(self.out.bias)
        self.out.weight.mul_(target_rms / self(cf).float().pow(2).mean().sqrt().clamp_min(1e-8))


class QFormerEncoder(ItemEncoder):
    """The query tower's outputs through one linear projection (section 3.3, Figure 2d)."""

    def __init__(self, qformer: QFormer, llm_width: int):
        super().__init__()
        self.qformer = qformer
        self.num_query_tokens = qformer.num_query_tokens
        self.out = nn.Linear(qformer.query_tokens.shape[-1], llm_width)

    def forward(self, cf: Tensor) -> Tensor:
        return self.out(self.qformer.queries(self.dropout(cf)))


class MLPEncoder(ItemEncoder):
    """Two layers, hidden size ten times the input (section 4.3); N tokens for the query-token figure."""

    def __init__(self, cf_dim: int, llm_width: int, num_tokens: int = 1):
        super().__init__()
        self.num_query_tokens, self.llm_width = num_tokens, llm_width
        self.up, self.out = nn.Linear(cf_dim, 10 * cf_dim), nn.Linear(10 * cf_dim, num_tokens * llm_width)

    def forward(self, cf: Tensor) -> Tensor:
        return self.out(nn.functional.gelu(self.up(self.dropout(cf)))).view(
            len(cf), self.num_query_tokens, self.llm_width
        )


class TokenCache:
    """Item tokens for inference: every item is encoded once while weights, embeddings and precision stay the same.

    Users, who may be millions, are encoded as they come. Several threads may ask one model. A copy of a model has a
    cache of its own.

    Args:
        num_items: I, the entities that are kept; those that follow are users.
    """

    def __init__(self, num_items: int):
        self.num_items, self._lock = num_items, threading.RLock()
        self.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.num_items,)

    def clear(self) -> None:
        """Forget all tokens. `look_up` cannot see writes that PyTorch does not count: those of fused optimisers,
        through `.data` and through numpy; `ILM.train` and `ILM.eval` call this."""
        with self._lock:
            self._source: Hashable = None
            self._table: Tensor | None = None  # (I, N, H), rows of unknown items are anything
            self._known: Tensor | None = None  # (I,) bool

    def look_up(self, encode: Callable[[Tensor], Tensor], entities: Tensor, source: Hashable) -> Tensor:
        """`encode(entities)` for distinct entities (E,), items before users.

        Args:
            encode: entities (E,) -> (E, N, H).
            source: what its result depends on, see `source_of`.
        """
        with self._lock:
            return self._look_up(encode, entities, source)

    def _look_up(self, encode: Callable[[Tensor], Tensor], entities: Tensor, source: Hashable) -> Tensor:
        if self._source != source:
            self.clear()
            self._source = source
        if self._known is None:
            with torch.inference_mode(False):  # what is made in that mode could not be written to outside of it
                self._known = torch.zeros(self.num_items, dtype=torch.bool, device=entities.device)
        items, users = entities[entities < self.num_items], entities[entities >= self.num_items]
        unknown = items[~self._known[items]]
        encoded = encode(torch.cat([unknown, users])) if len(unknown) + len(users) else None
        if encoded is not None and len(unknown):
            if self._table is None:
                with torch.inference_mode(False):
                    size = (self.num_items, *encoded.shape[1:])
                    self._table = torch.empty(size, dtype=encoded.dtype, device=encoded.device)
            self._table[unknown], self._known[unknown] = encoded[: len(unknown)], True
        if self._table is None or not len(items):
            assert encoded is not None, "no entities"
            return encoded
        known = self._table[items]
        return known if encoded is None else torch.cat([known, encoded[len(unknown) :]])


def source_of(cf: Tensor, *modules: nn.Module | None) -> Hashable:
    """What modules make of `cf` depends on: which tensors, and their versions, which rise with every write."""
    precision = torch.is_autocast_enabled(cf.device.type)
    version = lambda t: (t.data_ptr(), t.dtype, None if t.is_inference() else t._version)
    weights = [p for module in modules if module is not None for p in module.parameters()]
    return tuple(map(id, (cf, *modules))), cf.device, precision, *map(version, (cf, *weights))


def encoder_config(encoder: ItemEncoder | None) -> dict[str, Any] | None:
    """Sizes that `build_encoder` needs to make the encoder again."""
    if isinstance(encoder, MLPEncoder):
        return {
            "kind": "mlp",
            "cf_dim": encoder.up.in_features,
            "llm_width": encoder.llm_width,
            "num_tokens": encoder.num_query_tokens,
        }
    if isinstance(encoder, QFormerEncoder):
        q = encoder.qformer
        return {
            "kind": "qformer",
            "cf_dim": q.item_in.in_features,
            "llm_width": encoder.out.out_features,
            "params": q.params.model_dump(),
        }
    return None


def build_encoder(config: dict[str, Any] | None) -> ItemEncoder | None:
    """The encoder of a config, with fresh weights."""
    if config is None:
        return None
    if config["kind"] == "mlp":
        return MLPEncoder(config["cf_dim"], config["llm_width"], config["num_tokens"])
    return QFormerEncoder(QFormer(QFormerParams(**config["params"]), config["cf_dim"]), config["llm_width"])
