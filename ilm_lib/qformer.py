"""The Q-Former (section 3.1, Figure 2; BLIP-2, arXiv 2301.12597): one stack of layers, two towers.

Queries and text share the self-attention and have feed-forward blocks of their own; only queries see
the collaborative filtering embedding, through cross attention. Post-norm, as in BERT, so that a BERT
checkpoint can initialise it.

The item is one vector, so cross attention has one key: its softmax is exactly 1 and the output is
out_proj(v_proj(e)) for every query. The query and key projections would get zero gradient; they are
not built.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ilm_lib.kernels import attention
from ilm_lib.params import QFormerParams


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int, cross: bool, inner: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        if cross:
            self.cross_value, self.cross_out = nn.Linear(width, width), nn.Linear(width, width)
            self.cross_norm = nn.LayerNorm(width, eps=1e-12)
        self.cross = cross
        self.query_ffn, self.text_ffn = FeedForward(width, inner), FeedForward(width, inner)

    def forward(self, x: Tensor, num_queries: int, item: Tensor | None, mask: Tensor | None) -> Tensor:
        """x: (B, N + L, D), queries first; item: (B, 1, D); mask: (B, 1, N + L, N + L) bool, True = sees."""
        B, T, D = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        seen = attention(q, k, v, mask)
        x = self.norm(x + self.out(seen.transpose(1, 2).reshape(B, T, D)))
        queries, text = x[:, :num_queries], x[:, num_queries:]
        parts = []
        if num_queries:
            if self.cross:
                queries = self.cross_norm(queries + self.cross_out(self.cross_value(item)))
            parts.append(self.query_ffn(queries))
        if text.shape[1]:
            parts.append(self.text_ffn(text))
        return torch.cat(parts, 1)


class QFormer(nn.Module):
    """Query tower f_q and text tower f_t of equations 1 and 3.

    Args:
        params: sizes. cf_dim: d, size of a collaborative filtering embedding.
        vocab_size: of the text tower's tokenizer.
    """

    def __init__(self, params: QFormerParams, cf_dim: int, vocab_size: int):
        super().__init__()
        D = params.width
        self.params, self.num_query_tokens = params, params.num_query_tokens
        self.query_tokens = nn.Parameter(torch.randn(1, params.num_query_tokens, D) * 0.5)
        self.item_in = nn.Linear(cf_dim, D)
        self.word, self.position = nn.Embedding(vocab_size, D), nn.Embedding(params.max_text_tokens, D)
        self.norm = nn.LayerNorm(D, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(D, params.heads, i % params.cross_attention_frequency == 0, 4 * D) for i in range(params.layers))
        self.lm_transform, self.lm_norm = nn.Linear(D, D), nn.LayerNorm(D, eps=1e-12)
        self.lm_bias = nn.Parameter(torch.zeros(vocab_size))
        self.match_head = nn.Linear(D, 2)
        for module in self.modules():
            # BERT's 0.02 belongs to its width of 768; a narrower stack would start with its branches asleep.
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02 * (768 / D) ** 0.5)
        nn.init.normal_(self.item_in.weight, std=cf_dim**-0.5)

    def queries(self, cf: Tensor) -> Tensor:
        """[h_1..h_N] = f_q([q_1..q_N], e): (B, d) -> (B, N, D)."""
        return self._run(cf, None, None, causal=False)[0]

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """f_t of ids (B, L) with mask (B, L): (B, L, D); position 0 is h_cls."""
        return self._run(None, ids, mask, causal=False)[1]

    def match(self, cf: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Matching logits (B, 2) from the CLS output of the text tower; column 1 is "match"."""
        return self.match_head(self._run(cf, ids, mask, causal=False)[1][:, 0])

    def generate(self, cf: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, L, vocab): text attends to the queries and causally to itself."""
        text = self._run(cf, ids, mask, causal=True)[1]
        return F.linear(self.lm_norm(F.gelu(self.lm_transform(text))), self.word.weight, self.lm_bias)

    def _run(self, cf: Tensor | None, ids: Tensor | None, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor]:
        parts, item, N = [], None, 0
        if cf is not None:
            N = self.num_query_tokens
            parts.append(self.query_tokens.expand(len(cf), -1, -1))
            item = self.item_in(cf)[:, None]  # (B, 1, D): the one key
        see = None
        if ids is not None:
            L = ids.shape[1]
            parts.append(self.word(ids) + self.position.weight[:L])
            see = torch.ones(N + L, N + L, dtype=torch.bool, device=ids.device)
            if causal:  # queries do not see text; text sees queries and what came before
                see[:N, N:] = False
                see[N:, N:] = torch.ones(L, L, dtype=torch.bool, device=ids.device).tril()
            keys = F.pad(mask.bool(), (N, 0), value=True)  # (B, N + L)
            see = (see & keys[:, None]).unsqueeze(1)  # (B, 1, N + L, N + L)
        x = self.norm(torch.cat(parts, 1))
        for layer in self.layers:
            x = layer(x, N, item, see)
        return x[:, :N], x[:, N:]

    @torch.no_grad()
    def load_bert(self, folder: Path) -> None:
        """Initialise both towers from a BERT-family checkpoint (safetensors), as BLIP-2 does.

        The feed-forward of a BERT layer goes to both towers; cross attention and queries stay new.

        Raises:
            ValueError: width, vocabulary or depth do not fit; names both sizes.
        """
        weights = load_file(folder / "model.safetensors")
        weights = {k.removeprefix("bert.").removeprefix("0.auto_model."): v for k, v in weights.items()}
        word = weights["embeddings.word_embeddings.weight"]
        if word.shape != self.word.weight.shape:
            raise ValueError(f"the checkpoint's word embeddings are {tuple(word.shape)} and the Q-Former's are "
                             f"{tuple(self.word.weight.shape)}: set qformer.width to {word.shape[1]} and use the "
                             "checkpoint's tokenizer")
        depth = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layer."))
        if len(self.layers) > depth:
            raise ValueError(f"the checkpoint has {depth} layers; set qformer.layers to at most that")
        self.word.weight.copy_(word)
        # The second token type never occurs; the first is a constant that positions can carry.
        position = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        self.position.weight.copy_(position[:len(self.position.weight)])
        _copy(self.norm, weights, "embeddings.LayerNorm")
        for i, layer in enumerate(self.layers):
            at = f"encoder.layer.{i}."
            for name in ("weight", "bias"):
                getattr(layer.qkv, name).copy_(torch.cat(
                    [weights[f"{at}attention.self.{p}.{name}"] for p in ("query", "key", "value")]))
            _copy(layer.out, weights, at + "attention.output.dense")
            _copy(layer.norm, weights, at + "attention.output.LayerNorm")
            for ffn in (layer.query_ffn, layer.text_ffn):
                _copy(ffn.up, weights, at + "intermediate.dense")
                _copy(ffn.down, weights, at + "output.dense")
                _copy(ffn.norm, weights, at + "output.LayerNorm")


def _copy(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    module.weight.copy_(weights[name + ".weight"])
    module.bias.copy_(weights[name + ".bias"])
