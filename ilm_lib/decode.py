"""Batched beam search over item tokens and text, free or constrained to a trie of valid answers.

Every prompt is read once, into one key/value cache a row. The beams of a row stand side by side behind
it, and a mask lets each see the prompt and its own ancestors ("tree attention"): no beam ever copies the
cache, and the LLM is an ordinary Hugging Face model. Models that cannot read such a mask get a copy of
the cache for every beam, as `generate` does.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, DynamicLayer, PreTrainedModel

from ilm_lib.kernels import Trie, beam_step
from ilm_lib.masks import additive, takes_4d_mask


@dataclass(frozen=True)
class Prefill:
    """What the LLM has read: reused by every search over the same prompts.

    Attributes:
        cache: keys and values of the prompts. logits: (B, V) after the last token. mask: (B, T).
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


@dataclass(frozen=True)
class Beams:
    """Finished hypotheses, best first.

    Attributes:
        tokens: (B, K, L) token ids, the end-of-sequence token left out and padded with -1.
        scores: (B, K) log probability of the whole answer, over its length to the power of the length
            penalty; -inf where fewer than K were found.
        items: (B, K) item rows, -1 where none; None in free search.
    """

    tokens: Tensor
    scores: Tensor
    items: Tensor | None


@torch.no_grad()
def beam_search(llm: PreTrainedModel, prefill: Prefill, *, beams: int, eos_id: int, max_new_tokens: int,
                trie: Trie | None = None, banned: Tensor | None = None, length_penalty: float = 0.0) -> Beams:
    """The `beams` most probable answers that a beam of that width finds.

    The rule is that of Hugging Face's `generate(num_beams=beams, do_sample=False)`, whose length penalty is 1
    by default and 0 here: of 2K continuations those that end among the first K are finished, and the K best
    others go on. What has not ended after `max_new_tokens` is dropped, where `generate` counts it as finished.

    Args:
        trie: restricts answers to those of the items; None searches freely.
        banned: (B, X) item rows that may not be recommended, -1 where unused; needs a trie.
        length_penalty: scores are divided by length to this power, the end-of-sequence token counted.
    """
    B, K, device = len(prefill.logits), beams, prefill.logits.device
    if trie:
        max_new_tokens = min(max_new_tokens, trie.path.shape[1])
    reader = new_reader(llm, prefill, max_new_tokens)
    open_nodes = trie.allowed(banned, B) if trie else None
    done_scores = torch.full((B, K), -torch.inf, device=device)
    done_tokens = torch.full((B, K, max_new_tokens), -1, device=device)
    done_items = torch.full((B, K), -1, device=device)
    settled = torch.zeros(B, 1, dtype=torch.bool, device=device)

    # What all answers begin with is read in one go: it is no choice.
    stem = trie.stem[:max_new_tokens - 1] if trie else ()
    tokens = torch.tensor(stem, dtype=torch.long, device=device).expand(B, 1, -1)
    node = torch.full((B, 1), len(stem), device=device)  # the nodes of the stem are the first ones
    live, logits = torch.zeros(B, 1, device=device), prefill.logits[:, None]
    if stem:
        read = torch.cat([logits, reader.read_stem(tokens[:, 0])], 1)  # (B, P + 1, V)
        spent = read[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 0, :, None])
        live, logits = spent.sum(1), read[:, -1:]

    for step in range(len(stem), max_new_tokens):
        columns = allowed = None
        if trie:
            child, there = trie.ways(node, step)  # (B, k, C)
            columns, allowed = trie.token[child], there & open_nodes.gather(1, child.flatten(1)).view_as(child)
        scores, beam, token, place = beam_step(live, logits, 2 * K, columns, allowed)
        path = torch.cat([tokens.gather(1, beam[:, :, None].expand(-1, -1, step)), token[:, :, None]], 2)
        if trie:
            node = child.flatten(1).gather(1, place)  # (B, 2K); any where the score is -inf
        ends, length = token == eos_id, step + 1

        finished = torch.where(ends & ~settled, scores / length**length_penalty, -torch.inf)[:, :K]
        done_scores, pick = torch.cat([done_scores, finished], 1).topk(K, 1)
        padded = torch.nn.functional.pad(path[:, :K, :-1], (0, max_new_tokens - step), value=-1)
        done_tokens = torch.cat([done_tokens, padded], 1).gather(1, pick[:, :, None].expand(-1, -1, max_new_tokens))
        if trie:
            done_items = torch.cat([done_items, trie.item[node[:, :K]]], 1).gather(1, pick)

        if length == max_new_tokens:
            break
        # No more beams than the trie has ways on here.
        width = min(K, scores.shape[1], trie.widths[length] if trie else K)
        live, keep = torch.where(ends, -torch.inf, scores).topk(width, 1)
        # A row whose K-th answer beats every live beam is settled: without a penalty scores only fall.
        settled |= live[:, :1] / length**length_penalty <= done_scores[:, -1:]
        if trie is None and bool(settled.all()):
            break
        tokens = path.gather(1, keep[:, :, None].expand(-1, -1, length))
        node = node.gather(1, keep) if trie else node
        logits = reader.read(tokens[:, :, -1], beam.gather(1, keep))
    found = done_scores > -torch.inf  # what did not end in time is no answer
    items = torch.where(found, done_items, -1) if trie else None
    return Beams(torch.where(found[..., None], done_tokens, -1), done_scores, items)


def new_reader(llm: PreTrainedModel, prefill: Prefill, ahead: int) -> "Tree | Rows":
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
        return self.llm(input_ids=tokens, attention_mask=additive(see, self.llm.dtype), past_key_values=self.cache,
                        position_ids=(self.ahead + depth).expand_as(tokens), use_cache=True).logits


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
        return self.llm(input_ids=tokens, attention_mask=self.mask, past_key_values=self.cache, position_ids=position,
                        use_cache=True).logits


class Room(DynamicLayer):
    """A copy of a cache layer with room behind it, so that a step writes its tokens and copies nothing else."""

    def __init__(self, layer: DynamicLayer, room: int = 64):
        super().__init__()
        self.is_initialized, self.dtype, self.device = True, layer.dtype, layer.device
        self.length, self.room = layer.keys.shape[-2], room
        self._grow(layer.keys, layer.values, self.length + room)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        start, self.length = self.length, self.length + key_states.shape[-2]
        if self.length > self._keys.shape[-2]:
            self._grow(self._keys[..., :start, :], self._values[..., :start, :], self.length + self.room)
        self._keys[..., start:self.length, :] = key_states
        self._values[..., start:self.length, :] = value_states
        self.keys, self.values = self._keys[..., :self.length, :], self._values[..., :self.length, :]
        return self.keys, self.values

    def _grow(self, keys: Tensor, values: Tensor, size: int) -> None:
        grown = []
        for old in (keys, values):
            new = old.new_empty(*old.shape[:-2], size, old.shape[-1])
            new[..., :old.shape[-2], :] = old
            grown.append(new)
        self._keys, self._values = grown
        self.keys, self.values = (t[..., :self.length, :] for t in grown)
