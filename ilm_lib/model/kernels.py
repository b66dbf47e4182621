"""The numeric hot paths: pure functions on tensors, no modules, no state.

Shapes: B rows of a batch, T positions, H width of the LLM, N query tokens, S slots, E distinct
entities, K beams, I items, C tokens that may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK = (1 << 20, 1 << 26)  # scores that `table_nll` has at once on a CPU, whose caches hold them, and on a GPU


def interleave(embeddings: Tensor, tokens: Tensor, slot_row: Tensor, slot_start: Tensor, slot_entity: Tensor) -> Tensor:
    """Write item tokens into the input embeddings of the LLM (Figure 2d), all slots at once.

    Args:
        embeddings: (B, T, H) embeddings of the text, with placeholders at the slots.
        tokens: (E, N, H) item tokens of the distinct entities of the batch.
        slot_row: (S,) row of every slot.
        slot_start: (S,) its first position; it spans N of them.
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


def table_nll(queries: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Mean negative log likelihood (nats, float32) of the targets when (L, d) queries score all rows of a table.

    As `cross_entropy(queries @ table.T + bias, targets)`, without the (L, I) scores: they are made, turned into their
    gradient and used up in blocks of queries that stay near the processor. On one core of a CPU, 3,200 x 3,416 with
    d = 64: 42 ms in place of 83 ms of `mean_nll` (bfloat16), 3,200 x 12,101: 180 ms in place of 590 ms.

    Args:
        queries: (L, d).
        table, bias: (I, d) and (I,); a row of bias -inf is out of the ranking.
        targets: (L,) rows of the table.
    """
    return _TableNLL.apply(queries, table, bias, targets)


class _TableNLL(torch.autograd.Function):
    """All gradients are made in the forward pass, where the scores are."""

    @staticmethod
    def forward(ctx, queries: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        learns = any(ctx.needs_input_grad)
        d_queries, d_table, d_bias = torch.empty_like(queries), table.new_zeros(table.shape, dtype=torch.float32), 0
        total = bias.new_zeros((), dtype=torch.float32)
        block = max(16, BLOCK[queries.is_cuda] // len(table))
        for part in (slice(start, start + block) for start in range(0, len(queries), block)):
            query, target = queries[part], targets[part, None]
            scores = torch.addmm(bias.to(query), query, table.T).float()  # (block, I)
            best = scores.amax(1, keepdim=True)
            own = scores.gather(1, target)
            probability = scores.sub_(best).exp_()  # in place: scores are not needed again
            mass = probability.sum(1, keepdim=True)
            total += (best - own + mass.log()).sum()
            if learns:
                d = probability.div_(mass).scatter_add_(1, target, probability.new_full(target.shape, -1.0))
                d_bias = d_bias + d.sum(0)
                d = d.to(table.dtype)
                d_queries[part] = d @ table
                d_table += d.T @ query
        ctx.save_for_backward(d_queries, d_table, torch.as_tensor(d_bias))
        ctx.dtypes = table.dtype, bias.dtype
        return total / len(queries)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        d_queries, d_table, d_bias = ctx.saved_tensors
        scale = gradient / len(d_queries)
        return (
            d_queries * scale.to(d_queries),
            (d_table * scale).to(ctx.dtypes[0]),
            (d_bias * scale).to(ctx.dtypes[1]),
            None,
        )


def rivals(targets: Tensor, share: Tensor, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """The items that all places of a batch are ranked against: its targets, and `negatives` drawn evenly.

    Each stands for as many items as its chance to be here is small (Horvitz and Thompson), so that the sum of the
    softmax is about that over all items, at a fraction of the cost; with the targets of others in it, which are the
    popular items, it varies little. A place's own target stands for itself.

    Args:
        targets: (L,) item rows.
        share: (I,) of each item in the targets at large.

    Returns:
        (R,) item rows, (L,) which of them each target is, and (R,) log chances.
    """
    drawn = torch.randperm(len(share), device=share.device)[:negatives]
    items, inverse = torch.cat([targets, drawn]).unique(return_inverse=True)
    absent = (1 - share[items]) ** len(targets) * (1 - negatives / len(share))
    return items, inverse[: len(targets)], torch.log1p(-absent)


def rival_nll(scores: Tensor, own: Tensor, chance: Tensor) -> Tensor:
    """Mean negative log likelihood (nats) of the targets among `rivals`; arguments and shapes as it gives them.

    Args:
        scores: (L, R) less the log chances; a target's own, which is sure to be there, is put back.
    """
    place = torch.arange(len(own), device=own.device), own
    return mean_nll(scores.index_put(place, chance[own].to(scores), accumulate=True), own)


def pair_similarity(a: Tensor, b: Tensor, selection: str) -> Tensor:
    """Cosine similarities between two batches that have several query outputs each.

    Args:
        a: (B, N, D).
        b: (B, M, D); its row i and row i of `a` are a positive pair.
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
    """All valid answers as one tree of tokens, shared by all users.

    Nodes are numbered level by level and those of one parent by token, so that a node's children are a range of nodes:
    the tree takes a few integers a node, whether an item's name is four tokens or one of a hundred thousand.

    Attributes:
        token: (nodes,) the token id that leads to a node. Node 0 is the root.
        first: (nodes,) a node's first child.
        count: (nodes,) how many children it has.
        item: (nodes,) the item whose answer ends at this node, or -1.
        path: (I, L) the nodes of an item's answer, padded with its leaf.
        below: (nodes,) how many items lie at or below the node.
        stem: the tokens that all answers begin with; their nodes are 1..len(stem).
        widths: at each depth, number of nodes with children; on the host, so that a search need not ask the device.
        most: at each depth, most children of one node; on the host, too.
    """

    token: Tensor
    first: Tensor
    count: Tensor
    item: Tensor
    path: Tensor
    below: Tensor
    stem: tuple[int, ...]
    widths: tuple[int, ...]
    most: tuple[int, ...]

    @classmethod
    def build(cls, answers: Sequence[Sequence[int]] | np.ndarray, device: torch.device | str = "cpu") -> Trie:
        """The tree of all answers.

        Args:
            answers: token ids of every item's answer, end-of-sequence included, all distinct; an array (I, L) is padded
                with -1.
        """
        longest = max(map(len, answers))
        if isinstance(answers, np.ndarray):
            ids = answers
        else:
            ids = np.full((len(answers), longest), -1)
            for row, answer in zip(ids, answers):
                row[: len(answer)] = answer
        base, nodes, path = ids.max() + 1, 1, np.empty_like(ids)
        node = np.zeros(len(answers), np.int64)  # (I,) the node that each answer has come to
        token, parent, passed = [np.zeros(1, np.int64)], [], [node.copy()]
        widths, most = [], []
        for depth in range(longest):
            goes_on = ids[:, depth] >= 0
            edges, edge = np.unique(node[goes_on] * base + ids[goes_on, depth], return_inverse=True)
            node[goes_on] = nodes + edge
            nodes += len(edges)
            path[:, depth] = node
            passed.append(node[goes_on])
            parent.append(edges // base)
            token.append(edges % base)
            families = np.unique(parent[-1], return_counts=True)[1]
            widths.append(len(families))
            most.append(int(families.max()))
        if len(np.unique(node)) != len(node):
            raise ValueError("two items have the same answer: item indexes must be distinct")
        count, below = (np.bincount(np.concatenate(n), minlength=nodes) for n in (parent, passed))
        first = 1 + count.cumsum() - count
        item = np.full(nodes, -1)
        item[node] = np.arange(len(node))
        stem = 0
        while stem < longest - 1 and widths[stem] == most[stem] == 1:
            stem += 1
        arrays = (np.concatenate(token), first, count, item, path, below)
        tensors = (torch.from_numpy(array).to(device) for array in arrays)
        return cls(*tensors, stem=tuple(answers[0][:stem]), widths=(*widths, 0), most=tuple(most))  # type: ignore[misc]

    def ways(self, node: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Children of nodes (B, K) of one depth, (B, K, most[depth]), and where there is one (elsewhere it says 0)."""
        nth = torch.arange(self.most[depth], device=node.device)
        exists = nth < self.count[node][..., None]
        return torch.where(exists, self.first[node][..., None] + nth, 0), exists

    def children(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """All children of nodes (n,), in their order, (C,), and for each the index of its parent in `nodes`."""
        count = self.count[nodes]
        parent = torch.arange(len(nodes), device=nodes.device).repeat_interleave(count)
        nth = torch.arange(len(parent), device=nodes.device) - (count.cumsum(0) - count)[parent]
        return self.first[nodes][parent] + nth, parent

    def allowed(self, banned: Tensor | None, batch: int) -> Tensor:
        """(B, nodes) bool: the node leads to an item the row may still be recommended.

        Args:
            banned: (B, X) item rows, -1 where unused; None bans nothing.
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


def beam_step(
    scores: Tensor, logits: Tensor, width: int, columns: Tensor | None = None, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best continuations of all beams of a row.

    Args:
        scores: (B, K) log probability of every beam.
        logits: (B, K, V) of the next tokens.
        width: how many continuations to keep.
        columns: (B, K, C) token ids that may follow; None: any.
        allowed: (B, K, C) bool, which of them may.

    Returns:
        scores (B, width), the beam each came from, its token, and its place among the row's K * C columns (K * V
        tokens where there are no columns), (B, width) each.
    """
    total = scores[:, :, None] - logits.float().logsumexp(-1, keepdim=True)  # (B, K, 1)
    if columns is not None:
        logits = logits.gather(2, columns)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    # The best of a row are among the best of its beams: no (B, K * V) table of sums is made or sorted.
    ahead, column = logits.topk(min(width, logits.shape[2]), dim=2)  # (B, K, w)
    best, index = (total + ahead.float()).flatten(1).topk(min(width, ahead.shape[1] * ahead.shape[2]), dim=1)
    beam, column = index // ahead.shape[2], column.flatten(1).gather(1, index)
    flat = beam * logits.shape[2] + column  # (B, width), among the K * C columns of a row
    return best, beam, column if columns is None else columns.flatten(1).gather(1, flat), flat
