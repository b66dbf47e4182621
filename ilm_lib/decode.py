"""Batched beam search over item tokens and text, free or constrained to a trie of valid answers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ilm_lib.kernels import Trie, beam_step


@dataclass(frozen=True)
class Prefill:
    """What the LLM has read: reused by every search over the same prompts.

    Attributes:
        cache: keys and values of the prompts. logits: (B, V) after the last token. mask: (B, T).
    """

    cache: Cache
    logits: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Beams:
    """Finished hypotheses, best first.

    Attributes:
        tokens: (B, K, L) token ids, the end-of-sequence token left out and padded with -1.
        scores: (B, K) log probability of the whole answer; -inf where fewer than K were found.
        items: (B, K) item rows, -1 where none; None in free search.
    """

    tokens: Tensor
    scores: Tensor
    items: Tensor | None


@torch.no_grad()
def beam_search(llm: PreTrainedModel, prefill: Prefill, *, beams: int, eos_id: int, max_new_tokens: int,
                trie: Trie | None = None, banned: Tensor | None = None) -> Beams:
    """The `beams` most probable answers that a beam of that width finds.

    The rule is that of Hugging Face's `generate(num_beams=beams, do_sample=False, length_penalty=0)`:
    of 2K continuations those that end among the first K are finished, and the K best others go on. What
    has not ended after `max_new_tokens` is dropped, where `generate` counts it as finished.

    Args:
        trie: restricts answers to those of the items; None searches freely.
        banned: (B, X) item rows that may not be recommended, -1 where unused; needs a trie.
    """
    B, K, device = len(prefill.logits), beams, prefill.logits.device
    columns = trie.tokens if trie else torch.arange(prefill.logits.shape[1], device=device)
    open_nodes = trie.allowed(banned, B) if trie else None
    node = torch.zeros(B, 1, dtype=torch.long, device=device)
    live, tokens = torch.zeros(B, 1, device=device), torch.empty(B, 1, 0, dtype=torch.long, device=device)
    done_scores = torch.full((B, K), -torch.inf, device=device)
    done_tokens = torch.full((B, K, max_new_tokens), -1, device=device)
    done_items = torch.full((B, K), -1, device=device)

    cache, mask, before = fork(prefill.cache), prefill.mask, 1
    logits = prefill.logits[:, None]  # (B, 1, V)
    for step in range(max_new_tokens):
        logp = logits.float().log_softmax(-1)[..., columns]  # (B, k, C)
        if trie:
            child = trie.next[node]  # (B, k, C)
            ok = (child >= 0) & open_nodes.gather(1, child.clamp_min(0).flatten(1)).view_as(child)
            logp = logp.masked_fill(~ok, -torch.inf)
        scores, beam, column = beam_step(live, logp, 2 * K)
        token = columns[column]  # (B, 2K)
        path = torch.cat([tokens.gather(1, beam[:, :, None].expand(-1, -1, step)), token[:, :, None]], 2)
        if trie:
            node = trie.next[node.gather(1, beam), column]  # (B, 2K); -1 where the score is -inf
        ends = token == eos_id

        finished = torch.where(ends, scores, -torch.inf)[:, :K]
        done_scores, pick = torch.cat([done_scores, finished], 1).topk(K, 1)
        padded = torch.nn.functional.pad(path[:, :K, :-1], (0, max_new_tokens - step), value=-1)
        done_tokens = torch.cat([done_tokens, padded], 1).gather(1, pick[:, :, None].expand(-1, -1, max_new_tokens))
        if trie:
            done_items = torch.cat([done_items, trie.item[node[:, :K]]], 1).gather(1, pick)

        live, keep = torch.where(ends, -torch.inf, scores).topk(min(K, scores.shape[1]), 1)
        # Where the trie leaves fewer than K ways on (" item_" is forced), the LLM reads only those.
        open_beams = max(1, int((live > -torch.inf).sum(1).max()))
        live, keep = live[:, :open_beams], keep[:, :open_beams]
        # Scores only fall, so a row whose K-th answer beats every live beam is settled.
        if step + 1 == max_new_tokens or bool((live[:, 0] <= done_scores[:, -1]).all()):
            break
        tokens = path.gather(1, keep[:, :, None].expand(-1, -1, step + 1))
        node = node.gather(1, keep) if trie else node
        beam, k = beam.gather(1, keep), live.shape[1]
        # Row b's beams are rows b * k .. b * k + k - 1 of the cache; the number of beams may grow.
        source = (beam + before * torch.arange(B, device=device)[:, None]).flatten()
        cache.reorder_cache(source)
        mask, before = mask[source], k
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        out = llm(input_ids=tokens[:, :, -1].reshape(-1, 1), attention_mask=mask, past_key_values=cache,
                  position_ids=mask.sum(1, keepdim=True) - 1, use_cache=True)
        logits = out.logits[:, -1].view(B, k, -1)
    found = done_scores > -torch.inf  # what did not end in time is no answer
    items = torch.where(found, done_items, -1) if trie else None
    return Beams(torch.where(found[..., None], done_tokens, -1), done_scores, items)


def fork(cache: Cache) -> Cache:
    """A cache that can grow without changing the original: layers replace their tensors, never write them."""
    branch = copy.copy(cache)
    branch.layers = [copy.copy(layer) for layer in cache.layers]
    return branch
