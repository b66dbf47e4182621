"""The Q-Former's query tower f_q (section 3.1, Figure 2; BLIP-2, arXiv 2301.12597): what an item encoder is.

Learned queries attend to each other, and to the item's collaborative filtering embedding through cross attention.
Phase 1 adds a text tower over the same self-attention (`text_tower`). Post-norm, as in BERT, so that a BERT
checkpoint can initialise both.

The item is one vector, so cross attention has one key: its softmax is exactly 1 and the output is
out_proj(v_proj(e)) for every query. The query and key projections would get zero gradient; they are
not built. With `cf_keys` above 1 the vector is spread over that many keys and queries choose among them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ilm_lib.model.kernels import attention
from ilm_lib.settings import QFormerParams

KeysValues = tuple[Tensor, Tensor]  # (B, heads, T, D / heads) each


class FeedForward(nn.Module):
    """The feed-forward block of BERT: two linear layers, a residual connection, then the norm."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # of a slice, a linear layer would add its bias in a second pass
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    """One layer: self-attention, which the text tower shares; cross attention; the queries' feed-forward.

    Args:
        width: D.
        heads: of both attentions.
        cross: with cross attention to the item.
        inner: width inside the feed-forward.
        keys: how many vectors of an item cross attention chooses among.
    """

    def __init__(self, width: int, heads: int, cross: bool, inner: int, keys: int = 1):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        if cross:
            self.cross_value, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
            if keys > 1:
                self.cross_query, self.cross_key = nn.Linear(width, width), nn.Linear(width, width)
        self.cross = cross
        self.query_ffn = FeedForward(width, inner)

    def attend(
        self, x: Tensor, mask: Tensor | None = None, memory: KeysValues | None = None
    ) -> tuple[Tensor, KeysValues]:
        """The self-attention block.

        Args:
            x: (B, T, D).
            mask: broadcasts to (B, heads, T, M + T), True = sees.
            memory: M more keys and values, (B, heads, M, D / heads) each, put before those of x.

        Returns:
            (B, T, D), and the keys and values of x.
        """
        q, k, v = own = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()
        if memory is not None:
            k, v = (torch.cat([m.expand(len(x), -1, -1, -1), t], 2) for m, t in zip(memory, (k, v)))
        seen = attention(q, k, v, mask)  # (B, heads, T, D / heads)
        return self.norm(x + self.out(seen.transpose(1, 2).flatten(2))), own[1:]

    def attend_at(self, x: Tensor, at: int, mask: Tensor | None = None) -> Tensor:
        """The self-attention block's output (B, 1, D) at one position alone.

        For one position it takes less to bring its query into the space of x, and what it reads there into that
        of the values, than to project all of x to keys and values. The keys' bias adds the same to every score.
        """
        (B, _, D), H = x.shape, self.heads
        (wq, wk, wv), (bq, _, bv) = self.qkv.weight.view(3, H, -1, D), self.qkv.bias.view(3, H, 1, -1)
        q = ((x[:, at] @ wq.transpose(1, 2) + bq) * (D // H) ** -0.5) @ wk  # (H, B, D)
        scores = q.transpose(0, 1) @ x.transpose(1, 2)  # (B, H, T)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], torch.finfo(scores.dtype).min)
        read = scores.softmax(-1).to(scores.dtype) @ x  # (B, H, D)
        seen = read.transpose(0, 1) @ wv.transpose(1, 2) + bv  # (H, B, D / H)
        return self.norm(x[:, at : at + 1] + self.out(seen.permute(1, 0, 2).reshape(B, 1, D)))

    def read_item(self, x: Tensor, item: Tensor) -> Tensor:
        """The queries' own blocks: (B, T, D) after self-attention and item (B, keys, D) -> (B, T, D)."""
        if self.cross:
            x = self.cross_norm(x + self.cross_out(self._cross_attend(x, item)))
        return self.query_ffn(x)

    def _cross_attend(self, x: Tensor, item: Tensor) -> Tensor:
        """What cross attention reads: (B, T, D), or (B, 1, D) where one key leaves nothing to choose."""
        value = self.cross_value(item)
        if item.shape[1] == 1:
            return value
        heads = lambda t: t.view(*t.shape[:2], self.heads, -1).transpose(1, 2)
        query = heads(self.cross_query(x)).expand(len(item), -1, -1, -1)
        return attention(query, heads(self.cross_key(item)), heads(value), None).transpose(1, 2).flatten(2)


class QFormer(nn.Module):
    """The query tower f_q of equations 1 and 3.

    Args:
        params: sizes.
        cf_dim: d, size of a collaborative filtering embedding.
    """

    def __init__(self, params: QFormerParams, cf_dim: int):
        super().__init__()
        D, inner = params.width, params.inner or 4 * params.width
        self.params, self.num_query_tokens = params, params.num_query_tokens
        self.query_tokens = nn.Parameter(torch.randn(1, params.num_query_tokens, D) * 0.5)
        self.item_in = nn.Linear(cf_dim, params.cf_keys * D)
        self.norm = nn.LayerNorm(D, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(D, params.heads, i % params.cross_attention_frequency == 0, inner, params.cf_keys)
            for i in range(params.layers)
        )
        draw_weights(self, D)
        nn.init.normal_(self.item_in.weight, std=cf_dim**-0.5)

    def queries(self, cf: Tensor) -> Tensor:
        """[h_1..h_N] = f_q([q_1..q_N], e): (B, d) -> (B, N, D).

        Two items that a text is about go together, (B, 2, d) -> (B, 2 N, D): each is encoded as if alone.
        """
        return self.encode(cf)[0]

    def encode(self, cf: Tensor) -> tuple[Tensor, list[KeysValues]]:
        """`queries`, and every layer's keys and values of them for `generate`.

        Up to the first cross attention queries are the same for all items: one row stands for the batch.
        """
        x, item, memory = self.norm(self.query_tokens), self.keys(cf), []
        for layer in self.layers:
            x, own = layer.attend(x)
            x = layer.read_item(x, item)
            memory.append(own)
        if cf.dim() == 3:
            split = lambda t: t.expand(len(item), -1, -1, -1).unflatten(0, cf.shape[:2])  # (B, F, heads, N, D / heads)
            memory = [tuple(split(t).transpose(1, 2).flatten(2, 3) for t in own) for own in memory]
            x = x.view(len(cf), -1, x.shape[-1])
        return x, memory

    def keys(self, cf: Tensor) -> Tensor:
        """(B, d) or (B, F, d) -> (B or B F, keys, D), what cross attention reads."""
        return self.item_in(cf).view(cf.shape[:-1].numel(), self.params.cf_keys, -1)


def draw_weights(module: nn.Module, width: int) -> None:
    """Fresh weights for all linear layers and embeddings of a module of that width."""
    for part in module.modules():
        # BERT's 0.02 belongs to its width of 768; a narrower stack would start with its branches asleep.
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=0.02 * (768 / width) ** 0.5)
