"""The Q-Former (section 3.1, Figure 2; BLIP-2, arXiv 2301.12597): one stack of layers, two towers.

Queries and text share the self-attention and have feed-forward blocks of their own; only queries see
the collaborative filtering embedding, through cross attention. Post-norm, as in BERT, so that a BERT
checkpoint can initialise it.

The item is one vector, so cross attention has one key: its softmax is exactly 1 and the output is
out_proj(v_proj(e)) for every query. The query and key projections would get zero gradient; they are
not built. With `cf_keys` above 1 the vector is spread over that many keys and queries choose among them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ilm_lib.kernels import attention
from ilm_lib.params import QFormerParams

KeysValues = tuple[Tensor, Tensor]  # (B, heads, T, D / heads) each


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous()  # of a slice, a linear layer would add its bias in a second pass
        return self.norm(x + self.down(F.gelu(self.up(x))))


class Layer(nn.Module):
    """One layer: a self-attention block that the towers share, then each tower's own blocks."""

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
        self.query_ffn, self.text_ffn = FeedForward(width, inner), FeedForward(width, inner)

    def attend(self, x: Tensor, mask: Tensor | None = None, memory: KeysValues | None = None,
               ) -> tuple[Tensor, KeysValues]:
        """The self-attention block.

        Args:
            x: (B, T, D). mask: broadcasts to (B, heads, T, M + T), True = sees.
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
        return self.norm(x[:, at:at + 1] + self.out(seen.permute(1, 0, 2).reshape(B, 1, D)))

    def tower(self, x: Tensor, item: Tensor | None = None) -> Tensor:
        """The tower's own blocks, (B, T, D): of queries with `item` (B, keys, D), of text without."""
        if item is None:
            return self.text_ffn(x)
        if self.cross:
            x = self.cross_norm(x + self.cross_out(self._read(x, item)))
        return self.query_ffn(x)

    def _read(self, x: Tensor, item: Tensor) -> Tensor:
        """What cross attention reads: (B, T, D), or (B, 1, D) where one key leaves nothing to choose."""
        value = self.cross_value(item)
        if item.shape[1] == 1:
            return value
        heads = lambda t: t.view(*t.shape[:2], self.heads, -1).transpose(1, 2)
        query = heads(self.cross_query(x)).expand(len(item), -1, -1, -1)
        return attention(query, heads(self.cross_key(item)), heads(value), None).transpose(1, 2).flatten(2)


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
        self.item_in = nn.Linear(cf_dim, params.cf_keys * D)
        self.word, self.position = nn.Embedding(vocab_size, D), nn.Embedding(params.max_text_tokens, D)
        self.norm = nn.LayerNorm(D, eps=1e-12)
        self.layers = nn.ModuleList(
            Layer(D, params.heads, i % params.cross_attention_frequency == 0, 4 * D, params.cf_keys)
            for i in range(params.layers))
        self.lm_transform, self.lm_norm = nn.Linear(D, D), nn.LayerNorm(D, eps=1e-12)
        self.lm_bias = nn.Parameter(torch.zeros(vocab_size))
        self.match_head = nn.Linear(D, 2)
        # Compared as they are, all queries turn to where the text is, and the LLM is left with one token for N.
        project = lambda: nn.Linear(D, params.contrast_dim) if params.contrast_dim else nn.Identity()
        self.query_proj, self.text_proj = project(), project()
        for module in self.modules():
            # BERT's 0.02 belongs to its width of 768; a narrower stack would start with its branches asleep.
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02 * (768 / D) ** 0.5)
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
        x, item, memory = self.norm(self.query_tokens), self._keys(cf), []
        for layer in self.layers:
            x, own = layer.attend(x)
            x = layer.tower(x, item)
            memory.append(own)
        if cf.dim() == 3:
            split = lambda t: t.expand(len(item), -1, -1, -1).unflatten(0, cf.shape[:2])  # (B, F, heads, N, D / heads)
            memory = [tuple(split(t).transpose(1, 2).flatten(2, 3) for t in own) for own in memory]
            x = x.view(len(cf), -1, x.shape[-1])
        return x, memory

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """f_t of ids (B, L) with mask (B, L): (B, L, D); position 0 is h_cls."""
        x, see = self._embed(ids), mask.bool()[:, None, None]
        for layer in self.layers:
            x = layer.tower(layer.attend(x, see)[0])
        return x

    def cls(self, ids: Tensor, mask: Tensor) -> Tensor:
        """h_cls (B, D): `text` without what other positions do in the last layer."""
        x, see = self._embed(ids), mask.bool()[:, None, None]
        for layer in self.layers[:-1]:
            x = layer.tower(layer.attend(x, see)[0])
        return self.layers[-1].tower(self.layers[-1].attend_at(x, 0, see))[:, 0]

    def match(self, cf: Tensor, ids: Tensor, mask: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Matching logits (M, 2) from the CLS output of the text tower; column 1 is "match".

        Queries and text see each other. The first layer attends before any item is seen: that part, and the text
        tower's, is done once for every text, however many pairs it is in.

        Args:
            cf: (B, d), or (B, 2, d) where a text is about two items. ids, mask: (B, L).
            pairs: (M,) rows of cf and (M,) rows of ids; None pairs row with row.
        """
        items, texts = pairs if pairs is not None else (torch.arange(len(ids), device=ids.device),) * 2
        together, L = 1 if cf.dim() == 2 else cf.shape[1], ids.shape[1]
        # index_select and not x[rows]: where a row is taken twice, the latter's gradients add up in any order.
        item = self._keys(cf).unflatten(0, (-1, together)).index_select(0, items).flatten(0, 1)
        N = together * self.num_query_tokens
        see = F.pad(mask.bool(), (N, 0), value=True)[:, None, None]
        queries = self.norm(self.query_tokens).repeat(1, together, 1).expand(len(ids), -1, -1)
        x = torch.cat([queries, self._embed(ids)], 1)
        for i, layer in enumerate(self.layers[:-1]):
            queries, text = layer.attend(x, see)[0].split([N, L], 1)
            if i == 0:
                queries, text, see = (x.index_select(0, texts) for x in (queries, layer.tower(text), see))
            else:
                text = layer.tower(text)
            queries = layer.tower(queries.unflatten(1, (together, -1)).flatten(0, 1), item)  # each reads its own item
            x = torch.cat([queries.view(len(text), N, -1), text], 1)
        cls = self.layers[-1].tower(self.layers[-1].attend_at(x, N, see))[:, 0]
        return self.match_head(cls if len(self.layers) > 1 else cls.index_select(0, texts))

    def generate(self, cf: Tensor, ids: Tensor, mask: Tensor, memory: list[KeysValues] | None = None,
                 at: Tensor | None = None) -> Tensor:
        """Logits (B, L, vocab): text attends to the queries and causally to itself.

        Args:
            memory: of `encode(cf)`, where that is at hand: queries do not see text and need no second pass.
            at: (P,) positions in the flattened batch; logits (P, vocab) of those alone.
        """
        memory = self.encode(cf)[1] if memory is None else memory
        x, L = self._embed(ids), ids.shape[1]
        see = torch.ones(L, L, dtype=torch.bool, device=ids.device).tril() & mask.bool()[:, None]  # (B, L, L)
        see = F.pad(see, (memory[0][0].shape[2], 0), value=True)[:, None]  # (B, 1, L, N + L)
        for layer, seen in zip(self.layers, memory):
            x = layer.tower(layer.attend(x, see, seen)[0])
        if at is not None:
            x = x.flatten(0, 1)[at]
        return F.linear(self.lm_norm(F.gelu(self.lm_transform(x))), self.word.weight, self.lm_bias)

    def _keys(self, cf: Tensor) -> Tensor:
        """(B, d) or (B, F, d) -> (B or B F, keys, D), what cross attention reads."""
        return self.item_in(cf).view(cf.shape[:-1].numel(), self.params.cf_keys, -1)

    def _embed(self, ids: Tensor) -> Tensor:
        return self.norm(self.word(ids) + self.position.weight[:ids.shape[1]])

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
        position = (weights["embeddings.position_embeddings.weight"]
                    + weights["embeddings.token_type_embeddings.weight"][0])
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
