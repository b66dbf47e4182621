"""The numeric hot paths: pure functions on tensors, no modules, no state.

Shapes: B rows of a batch, T positions, H width of the LLM, N query tokens, S slots, E distinct
entities, K beams, I items, C distinct tokens in the trie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import torch
from torch import Tensor


def interleave(embeddings: Tensor, tokens: Tensor, slot_row: Tensor, slot_start: Tensor, slot_entity: Tensor) -> Tensor:
    """Write item tokens into the input embeddings of the LLM (Figure 2d), all slots at once.

    Args:
        embeddings: (B, T, H) embeddings of the text, with placeholders at the slots.
        tokens: (E, N, H) item tokens of the distinct entities of the batch.
        slot_row, slot_start: (S,) row and first position of every slot, which spans N positions.
        slot_entity: (S,) index into `tokens`.

    Returns:
        (B, T, H), a new tensor; gradients reach both `embeddings` and `tokens`.
    """
    (_, T, H), N = embeddings.shape, tokens.shape[1]
    positions = (slot_row * T + slot_start)[:, None] + torch.arange(N, device=tokens.device)  # (S, N), rows end to end
    # A table lookup, not tokens[slot_entity]: its backward pass adds up slots that share an entity in parallel.
    filled = torch.nn.functional.embedding(slot_entity, tokens.flatten(1)).view(-1, H)  # (S * N, H)
    return embeddings.flatten(0, 1).index_copy(0, positions.flatten(), filled.to(embeddings.dtype)).view_as(embeddings)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, (B, heads, T, D) each; mask bool, broadcast to (B, heads, T, T), True = sees.

    On a CPU the fused kernel's backward pass in bfloat16 takes up to nine times as long as the three lines
    (192 x 4 heads x 44 tokens: 226 ms against 25 ms); in float32 it is the faster one (384 x 4 heads x 40
    tokens: 109 ms against 204 ms).
    """
    if q.is_cuda or q.dtype == torch.float32:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
    return weights.softmax(-1).to(v.dtype) @ v


def mean_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log likelihood (nats, float32) of `targets` (L,) under `logits` (L, V) of any float type.

    As `cross_entropy(logits.float(), targets)`, with two buffers of the size of the logits in place of five:
    on a CPU that is a sixth of a step of a small model, with a large vocabulary it is most of the memory.
    """
    return _MeanNLL.apply(logits, targets)


class _MeanNLL(torch.autograd.Function):
    """The gradient is softmax minus one-hot: it is made where the softmax is, in the forward pass."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        probability = logits.softmax(-1, dtype=torch.float32)
        # log sum exp from the largest logit, whose probability never vanishes as that of a target may.
        total = logits.amax(-1).float() - probability.amax(-1).log()
        picked = logits.gather(1, targets[:, None])[:, 0].float()
        if ctx.needs_input_grad[0]:
            probability[torch.arange(len(targets), device=targets.device), targets] -= 1
            ctx.save_for_backward(probability.div_(len(targets)).to(logits.dtype))
        return (total - picked).mean()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * gradient.to(ctx.saved_tensors[0].dtype), None


def pair_similarity(a: Tensor, b: Tensor, selection: str) -> Tensor:
    """Cosine similarities between two batches that have several query outputs each.

    Args:
        a: (B, N, D); b: (B, M, D). Row i of `a` and row i of `b` are a positive pair.
        selection: "best" takes the best pair of queries for every (i, j) (BLIP-2); "positive" picks
            the queries by the positive pair and uses them against all negatives (equations 2 and 4).

    Returns:
        (B, B) similarities, row i against column j.
    """
    a, b = torch.nn.functional.normalize(a, dim=-1), torch.nn.functional.normalize(b, dim=-1)
    if selection == "best":
        return torch.einsum("ind,jmd->ijnm", a, b).flatten(2).amax(-1)
    own = torch.einsum("ind,imd->inm", a, b).flatten(1).argmax(-1)  # (B,)
    rows = torch.arange(len(a), device=a.device)
    return a[rows, own // b.shape[1]] @ b[rows, own % b.shape[1]].T


@dataclass(frozen=True)
class Trie:
    """All valid answers as one integer transition table, shared by all users.

    Attributes:
        tokens: (C,) the token ids that occur in answers.
        next: (nodes, C) the node after a token, or -1. Node 0 is the root.
        item: (nodes,) the item whose answer ends at this node, or -1.
        path: (I, L) the nodes of an item's answer, padded with its leaf.
        below: (nodes,) how many items lie at or below the node.
        stem: the tokens that all answers begin with; their nodes are 1..len(stem).
        widths: number of nodes with children at each depth; on the host, so that a search need not ask the device.
    """

    tokens: Tensor
    next: Tensor
    item: Tensor
    path: Tensor
    below: Tensor
    stem: tuple[int, ...]
    widths: tuple[int, ...]

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> "Trie":
        """Args: answers: token ids of every item's answer, end-of-sequence included, all distinct."""
        tokens = sorted({t for a in answers for t in a})
        column = {t: i for i, t in enumerate(tokens)}
        table: list[dict[int, int]] = [{}]
        paths = []
        for answer in answers:
            node, path = 0, []
            for token in answer:
                child = table[node].setdefault(column[token], len(table))
                if child == len(table):
                    table.append({})
                node = child
                path.append(node)
            paths.append(path)
        longest = max(map(len, paths))
        path = torch.tensor([p + [p[-1]] * (longest - len(p)) for p in paths])
        if len(set(path[:, -1].tolist())) != len(paths):
            raise ValueError("two items have the same answer: item indexes must be distinct")
        next_node = torch.full((len(table), len(tokens)), -1, dtype=torch.long)
        for node, children in enumerate(table):
            for col, child in children.items():
                next_node[node, col] = child
        item = torch.full((len(table),), -1, dtype=torch.long)
        item[path[:, -1]] = torch.arange(len(paths))
        below = torch.zeros(len(table), dtype=torch.long)
        for p in paths:
            below[[0, *p]] += 1
        stem = 0  # nodes are numbered as they are met, so the stem of the first answer is 1, 2, ...
        while len(table[stem]) == 1 and len(paths[0]) > stem + 1:
            stem += 1
        widths = [1] + [sum(len(table[n]) > 0 for n in set(path[:, d].tolist())) for d in range(longest)]
        tensors = (t.to(device) for t in (torch.tensor(tokens), next_node, item, path, below))
        return cls(*tensors, tuple(answers[0][:stem]), tuple(widths))

    def allowed(self, banned: Tensor | None, batch: int) -> Tensor:
        """(B, nodes) bool: the node leads to an item the row may still be recommended.

        Args: banned: (B, X) item rows, -1 where unused; None bans nothing.
        """
        if banned is None:
            return (self.below > 0).expand(batch, -1)
        row, column = (banned >= 0).nonzero(as_tuple=True)
        mask = torch.zeros(batch, len(self.path), dtype=torch.bool, device=banned.device)
        mask[row, banned[row, column]] = True  # an item banned twice is banned once
        row, item = mask.nonzero(as_tuple=True)
        path = self.path[item]  # (bans, L); padding repeats the leaf, which is lost all the same
        lost = torch.zeros(batch, len(self.below), dtype=torch.long, device=path.device)
        lost.index_put_((row[:, None].expand_as(path), path), torch.ones_like(path), accumulate=True)
        return self.below - lost > 0


def beam_step(scores: Tensor, logits: Tensor, width: int, columns: Tensor | None = None, allowed: Tensor | None = None,
              ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations of all beams of a row.

    Args:
        scores: (B, K) log probability of every beam; logits: (B, K, V) of the next tokens.
        width: how many continuations to keep.
        columns: (C,) the token ids that may follow; None: any. allowed: (B, K, C) bool, which of them may.

    Returns:
        scores (B, width), the beam each came from, its token, and its column, (B, width) each.
    """
    total = scores[:, :, None] - logits.float().logsumexp(-1, keepdim=True)  # (B, K, 1)
    if columns is not None:
        logits = logits[..., columns]
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    # The best of a row are among the best of its beams: no (B, K * V) table of sums is made or sorted.
    ahead, column = logits.topk(min(width, logits.shape[2]), dim=2)  # (B, K, w)
    best, index = (total + ahead.float()).flatten(1).topk(min(width, ahead.shape[1] * ahead.shape[2]), dim=1)
    beam, column = index // ahead.shape[2], column.flatten(1).gather(1, index)
    return best, beam, column if columns is None else columns[column], column
