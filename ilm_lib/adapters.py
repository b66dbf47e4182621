"""From collaborative filtering embeddings to tokens of the LLM: one interface, two encoders.

An item encoder maps (E, d) embeddings to (E, N, H) soft tokens. ILM and ILM-rand are the Q-Former with
a linear projection; MLP is CoLLM's two-layer network (arXiv 2310.19488).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilm_lib.qformer import QFormer


class ItemEncoder(nn.Module):
    """Interface of the item encoders.

    Attributes:
        num_query_tokens: N. out: the last linear layer, into the LLM's token space.
    """

    num_query_tokens: int
    out: nn.Linear

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
    """Q-Former outputs through one linear projection (section 3.3, Figure 2d)."""

    def __init__(self, qformer: QFormer, llm_width: int):
        super().__init__()
        self.qformer = qformer
        self.num_query_tokens = qformer.num_query_tokens
        self.out = nn.Linear(qformer.query_tokens.shape[-1], llm_width)

    def forward(self, cf: Tensor) -> Tensor:
        return self.out(self.qformer.queries(cf))

    def trained_parameters(self) -> list[nn.Parameter]:
        """The query tower and the projection to the LLM; the text tower and the heads of phase 1 have no part in it."""
        phase1_only = ("word", "position", "lm_", "match_head", "text_ffn", "query_proj", "text_proj")
        return [p for name, p in self.named_parameters()
                if not any(part.startswith(phase1_only) for part in name.split("."))]


class MLPEncoder(ItemEncoder):
    """Two layers, hidden size ten times the input (section 4.3); N tokens for the query-token figure."""

    def __init__(self, cf_dim: int, llm_width: int, num_tokens: int = 1):
        super().__init__()
        self.num_query_tokens, self.llm_width = num_tokens, llm_width
        self.up, self.out = nn.Linear(cf_dim, 10 * cf_dim), nn.Linear(10 * cf_dim, num_tokens * llm_width)

    def forward(self, cf: Tensor) -> Tensor:
        return self.out(nn.functional.gelu(self.up(cf))).view(len(cf), self.num_query_tokens, self.llm_width)

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.parameters())
