"""How an LLM reads many candidate answers after one prompt.

Every prompt is read once, into one key/value cache a row. `Tree` lets candidates stand side by side behind it, under
a mask that lets each see the prompt and its own ancestors ("tree attention"): no candidate ever copies the cache, and
the LLM is an ordinary Hugging Face model. Models that cannot read such a mask get a copy of the cache for every
candidate, as `generate` does: `Rows`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, PreTrainedModel

from ilm_lib.model.masks import additive, takes_4d_mask


@dataclass(frozen=True)
class Prefill:
    """What the LLM has read: reused by every search over the same prompts.

    Attributes:
        cache: keys and values of the prompts.
        logits: (B, V) after the last token.
        mask: (B, T).
        position: (B, 1) of the token that comes next; None: the number of tokens read.
    """

    cache: Cache
    logits: Tensor
    mask: Tensor
    position: Tensor | None = None

    @property
    def ahead(self) -> Tensor:
        """(B, 1) position of the token that comes next."""
        return self.mask.sum(1, keepdim=True) if self.position is None else self.position


def new_reader(llm: PreTrainedModel, prefill: Prefill, ahead: int) -> Tree | Rows:
    """The reader for answers of up to `ahead` tokens."""
    return (Tree if takes_4d_mask(llm, prefill.mask.shape[1] + ahead) else Rows)(llm, prefill)


class Tree:
    """Reads beams side by side behind their prompt, each seeing its ancestors alone."""

    def __init__(self, llm: PreTrainedModel, prefill: Prefill):
        self.llm, self.prompt = llm, prefill.mask.bool()
        self.ahead = prefill.ahead
        self.cache = copy.copy(prefill.cache)
        self.cache.layers = [Room(layer) for layer in prefill.cache.layers]
        self.seen = self.prompt.new_zeros(len(self.prompt), 1, 0)  # (B, k, G): ancestors among G tokens read so far
        self.depth = 0

    def read_stem(self, tokens: Tensor) -> Tensor:
        """(B, P) tokens that follow one another -> logits (B, P, V)."""
        P = tokens.shape[1]
        block = torch.ones(P, P, dtype=torch.bool, device=tokens.device).tril().expand(len(tokens), -1, -1)
        logits = self.forward(tokens, block, torch.arange(P, device=tokens.device))
        self.seen, self.depth = block[:, -1:], P
        return logits

    def read(self, tokens: Tensor, beam: Tensor) -> Tensor:
        """(B, k) next tokens, each of the beam (B, k) among those of the last read -> logits (B, k, V)."""
        k = tokens.shape[1]
        own = torch.eye(k, dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        self.seen = torch.cat([self.seen.gather(1, beam[:, :, None].expand(-1, -1, self.seen.shape[2])), own], 2)
        logits = self.forward(tokens, self.seen, torch.full((1,), self.depth, device=tokens.device))
        self.depth += 1
        return logits

    def forward(self, tokens: Tensor, seen: Tensor, depth: Tensor) -> Tensor:
        """tokens (B, n) that see the prompt and (B, n, G + n) `seen`; depth (n,) or (1,): tokens after the prompt."""
        prompt = self.prompt[:, None].expand(-1, tokens.shape[1], -1)
        see = torch.cat([prompt, seen], 2)[:, None]  # (B, 1, n, T + G + n)
        return self.llm(
            input_ids=tokens,
            attention_mask=additive(see, self.llm.dtype),
            past_key_values=self.cache,
            position_ids=(self.ahead + depth).expand_as(tokens),
            use_cache=True,
        ).logits


class Rows:
    """Reads every beam as a row of its own, with a copy of the cache: right for any causal LM with a cache."""

    def __init__(self, llm: PreTrainedModel, prefill: Prefill):
        self.llm, self.mask, self.ahead, self.beams = llm, prefill.mask, prefill.ahead, 1
        # Layers replace their tensors and never write into them, so the copy grows alone.
        self.cache = copy.copy(prefill.cache)
        self.cache.layers = [copy.copy(layer) for layer in prefill.cache.layers]

    def read_stem(self, tokens: Tensor) -> Tensor:
        return self._forward(tokens)

    def read(self, tokens: Tensor, beam: Tensor) -> Tensor:
        """As `Tree.read`. Row b's beams are rows b * k .. b * k + k - 1; their number may change."""
        B, k = tokens.shape
        source = (beam + self.beams * torch.arange(B, device=beam.device)[:, None]).flatten()
        self.cache.reorder_cache(source)
        self.mask, self.ahead, self.beams = self.mask[source], self.ahead[source], k
        return self._forward(tokens.reshape(-1, 1)).view(B, k, -1)

    def _forward(self, tokens: Tensor) -> Tensor:
        self.mask = torch.nn.functional.pad(self.mask, (0, tokens.shape[1]), value=1)
        position = self.ahead + torch.arange(tokens.shape[1], device=tokens.device)
        self.ahead = self.ahead + tokens.shape[1]
        return self.llm(
            input_ids=tokens,
            attention_mask=self.mask,
            past_key_values=self.cache,
            position_ids=position,
            use_cache=True,
        ).logits


class Room(DynamicLayer):
    """A cache layer with room behind it, so that a step writes its tokens and copies nothing else.

    Args:
        layer: what it begins with, copied; None: nothing.
        room: places behind it at first.
    """

    def __init__(self, layer: DynamicLayer | None = None, room: int = 64):
        super().__init__()
        self.length, self.room = 0, room
        if layer is not None:
            self.update(layer.keys, layer.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self._keys, self._values = key_states[..., :0, :], value_states[..., :0, :]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; their number is given below 0."""
        if self.is_initialized:
            self.length += tokens_to_remove
            self.keys, self.values = self._keys[..., : self.length, :], self._values[..., : self.length, :]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self._keys.shape[-2]:
            self._grow(start, max(self.length + self.room, 3 * start // 2))
        self._keys[..., start : self.length, :] = key_states
        self._values[..., start : self.length, :] = value_states
        self.keys, self.values = self._keys[..., : self.length, :], self._values[..., : self.length, :]
        return self.keys, self.values

    def _grow(self, length: int, size: int) -> None:
        grown = []
        for old in (self._keys, self._values):
            new = old.new_empty(*old.shape[:-2], size, old.shape[-1])
            new[..., :length, :] = old[..., :length, :]
            grown.append(new)
        self._keys, self._values = grown
