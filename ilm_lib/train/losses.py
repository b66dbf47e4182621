"""Phase-1 losses (section 3.2): item-text contrast, generation and matching; interaction contrast.

Every contrastive loss has a chance level of ln(B), which the reports draw beside it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ilm_lib.model.kernels import mean_nll, pair_similarity


def contrastive_loss(similarity: Tensor, temperature: float, ids_a: Tensor, ids_b: Tensor) -> Tensor:
    """Symmetric in-batch cross entropy (CLIP, arXiv 2103.00020).

    Args:
        similarity: (B, B) cosines; the diagonal holds the positive pairs.
        temperature: divides the similarities.
        ids_a: (B,) identities of the rows. Another pair of the batch that shares an item or a user with this one is a
            likely positive, no negative, and is masked.
        ids_b: (B,) those of the columns.
    """
    logits = similarity / temperature
    shared = (ids_a[:, None] == ids_a[None]) | (ids_b[:, None] == ids_b[None])
    shared.fill_diagonal_(False)
    logits = logits.masked_fill(shared, float("-inf"))
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def itc_loss(queries: Tensor, cls: Tensor, items: Tensor, temperature: float, selection: str) -> tuple[Tensor, Tensor]:
    """Item-text contrast, equations 1 and 2.

    Args:
        queries: (B, N, D) query outputs.
        cls: (B, D) h_cls.
        items: (B,) item rows.

    Returns:
        the loss and the (B, B) similarities, item against text (for hard negatives).
    """
    similarity = pair_similarity(queries, cls[:, None], selection)
    return contrastive_loss(similarity, temperature, items, items), similarity


def interaction_loss(
    a: Tensor, b: Tensor, ids_a: Tensor, ids_b: Tensor, temperature: float, selection: str, center: bool
) -> Tensor:
    """Item-item or user-item contrast, equations 3 and 4.

    Args:
        a: (B, N, D) query outputs of one side of co-interaction pairs.
        b: (B, N, D) those of the other side.
        center: subtract the mean of the batch first. Layer-normed outputs share a large common part
            that leaves all cosines near 1.
    """
    if center:
        mean = torch.cat([a, b]).mean(0, keepdim=True)
        a, b = a - mean, b - mean
    return contrastive_loss(pair_similarity(a, b, selection), temperature, ids_a, ids_b)


def itg_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Item-grounded text generation: mean cross entropy per text token that is no padding.

    Args:
        logits: (L, V) at the places whose next token is no padding.
        target: (L,) those tokens.
    """
    return mean_nll(logits, target)


def hard_negatives(
    similarity: Tensor, items: Tensor, temperature: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """One negative text for every item and one negative item for every text, drawn by similarity.

    BLIP-2's rule, as two batched draws. Returns two (B,) index tensors.

    The first of B exponential clocks to ring, as in `torch.multinomial`, whose check of its input would make the
    host wait for the device.
    """
    same = items[:, None] == items[None]
    logits = similarity.detach().float() / temperature
    # Not -inf: where all rows of the batch are one item, any of them has to do.
    weights = [x.masked_fill(same, -1e4).softmax(1) for x in (logits, logits.T)]
    text, item = ((w / torch.empty_like(w).exponential_(generator=generator)).argmax(1) for w in weights)
    return text, item


def itm_loss(logits: Tensor, matched: int) -> Tensor:
    """Item-text matching: binary cross entropy of (M, 2) logits; the first `matched` rows match."""
    target = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    target[:matched] = 1
    return F.cross_entropy(logits, target)


def query_similarity(queries: Tensor) -> Tensor:
    """(N, N) mean cosine between an item's query outputs; near 1 off the diagonal means collapse."""
    unit = F.normalize(queries, dim=-1)
    return torch.einsum("bnd,bmd->nm", unit, unit) / len(queries)
