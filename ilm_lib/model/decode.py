"""Batched beam search over item tokens and text, free or constrained to a trie of valid answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ilm_lib.model.kernels import Trie, beam_step
from ilm_lib.model.readers import Prefill, new_reader


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
def beam_search(
    llm: PreTrainedModel,
    prefill: Prefill,
    *,
    beams: int,
    eos_id: int,
    max_new_tokens: int,
    trie: Trie | None = None,
    banned: Tensor | None = None,
    length_penalty: float = 0.0,
) -> Beams:
    """The `beams` most probable answers that a beam of that width finds.

    The rule is that of Hugging Face's `generate(num_beams=beams, do_sample=False)`, whose length penalty is 1
    by default and 0 here: of 2K continuations those that end among the first K are finished, and the K best
    others go on. What has not ended after `max_new_tokens` is dropped, where `generate` counts it as finished.

    Args:
        llm: the model that read the prompts.
        prefill: what it read.
        beams: K, width of the search.
        eos_id: the token that ends an answer.
        max_new_tokens: of an answer, the end-of-sequence token counted.
        trie: restricts answers to those of the items; None searches freely.
        banned: (B, X) item rows that may not be recommended, -1 where unused; needs a trie.
        length_penalty: scores are divided by length to this power, the end-of-sequence token counted.
    """
    B, K, device = len(prefill.logits), beams, prefill.logits.device
    if trie:
        max_new_tokens = min(max_new_tokens, trie.path.shape[1])
    reader = new_reader(llm, prefill, max_new_tokens)
    open_nodes = trie.allowed(banned, B) if trie else None
    done = _Finished(B, K, max_new_tokens, device)
    settled = torch.zeros(B, 1, dtype=torch.bool, device=device)

    # What all answers begin with is read in one go: it is no choice.
    stem = trie.stem[: max_new_tokens - 1] if trie else ()
    tokens = torch.tensor(stem, dtype=torch.long, device=device).expand(B, 1, -1)
    node = torch.full((B, 1), len(stem), device=device)  # the nodes of the stem are the first ones
    live, logits = torch.zeros(B, 1, device=device), prefill.logits[:, None]
    if stem:
        read = torch.cat([logits, reader.read_stem(tokens[:, 0])], 1)  # (B, P + 1, V)
        spent = read[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 0, :, None])
        live, logits = spent.sum(1), read[:, -1:]

    for step in range(len(stem), max_new_tokens):
        columns = allowed = items = None
        if trie and open_nodes is not None:
            child, exists = trie.ways(node, step)  # (B, k, C)
            columns, allowed = trie.token[child], exists & open_nodes.gather(1, child.flatten(1)).view_as(child)
        scores, beam, token, column = beam_step(live, logits, 2 * K, columns, allowed)
        path = torch.cat([tokens.gather(1, beam[:, :, None].expand(-1, -1, step)), token[:, :, None]], 2)
        if trie:
            node = child.flatten(1).gather(1, column)  # (B, 2K); any where the score is -inf
            items = trie.item[node[:, :K]]
        ends, penalty = token == eos_id, (step + 1) ** length_penalty
        done.add(torch.where(ends & ~settled, scores / penalty, -torch.inf)[:, :K], path[:, :K, :-1], items)

        if step + 1 == max_new_tokens:
            break
        # No more beams than the trie has ways on here.
        width = min(K, scores.shape[1], trie.widths[step + 1] if trie else K)
        live, keep = torch.where(ends, -torch.inf, scores).topk(width, 1)
        # A row whose K-th answer beats every live beam is settled: without a penalty scores only fall.
        settled |= live[:, :1] / penalty <= done.scores[:, -1:]
        if trie is None and bool(settled.all()):
            break
        tokens = path.gather(1, keep[:, :, None].expand(-1, -1, step + 1))
        node = node.gather(1, keep) if trie else node
        logits = reader.read(tokens[:, :, -1], beam.gather(1, keep))
    return done.beams(with_items=trie is not None)


class _Finished:
    """The K best answers of every row that have ended so far."""

    def __init__(self, rows: int, beams: int, length: int, device: torch.device):
        self.scores = torch.full((rows, beams), -torch.inf, device=device)
        self.tokens = torch.full((rows, beams, length), -1, device=device)
        self.items = torch.full((rows, beams), -1, device=device)

    def add(self, scores: Tensor, tokens: Tensor, items: Tensor | None) -> None:
        """Candidates (B, w), whose score is -inf where they have not ended; their tokens (B, w, n) and items."""
        K, length = self.scores.shape[1], self.tokens.shape[2]
        self.scores, pick = torch.cat([self.scores, scores], 1).topk(K, 1)
        padded = F.pad(tokens, (0, length - tokens.shape[2]), value=-1)
        self.tokens = torch.cat([self.tokens, padded], 1).gather(1, pick[:, :, None].expand(-1, -1, length))
        if items is not None:
            self.items = torch.cat([self.items, items], 1).gather(1, pick)

    def beams(self, *, with_items: bool) -> Beams:
        """What did not end in time is no answer."""
        found = self.scores > -torch.inf
        tokens = torch.where(found[..., None], self.tokens, -1)
        return Beams(tokens, self.scores, torch.where(found, self.items, -1) if with_items else None)
