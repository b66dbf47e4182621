"""What phase 1 adds to the Q-Former: the text tower f_t and the heads of its losses (section 3.1, Figure 2).

Text goes through the query tower's self-attention with feed-forward blocks of its own, and never sees an item but
through the queries. Phase 2 has no use for any of this: an item encoder is the query tower alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from ilm_lib.model.qformer import FeedForward, KeysValues, Layer, QFormer, draw_weights


class QFormerForPhase1(nn.Module):
    """Query tower, text tower and heads.

    Args:
        qformer: the query tower, whose self-attention the text shares.
        vocab_size: of the text tower's tokenizer.
    """

    def __init__(self, qformer: QFormer, vocab_size: int):
        super().__init__()
        params, D = qformer.params, qformer.params.width
        self.word, self.position = nn.Embedding(vocab_size, D), nn.Embedding(params.max_text_tokens, D)
        self.text_ffn = nn.ModuleList(FeedForward(D, params.inner or 4 * D) for _ in qformer.layers)
        self.lm_transform, self.lm_norm = nn.Linear(D, D), nn.LayerNorm(D, eps=1e-12)
        self.lm_bias = nn.Parameter(torch.zeros(vocab_size))
        self.match_head = nn.Linear(D, 2)
        # Compared as they are, all queries turn to where the text is, and the LLM is left with one token for N.
        project = lambda: nn.Linear(D, params.contrast_dim) if params.contrast_dim else nn.Identity()
        self.query_proj, self.text_proj = project(), project()
        draw_weights(self, D)
        self.qformer = qformer

    def text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """f_t of ids (B, L) with mask (B, L): (B, L, D); position 0 is h_cls."""
        x, see = self.embed(ids), mask.bool()[:, None, None]
        for layer, ffn in self._layers():
            x = ffn(layer.attend(x, see)[0])
        return x

    def cls(self, ids: Tensor, mask: Tensor) -> Tensor:
        """h_cls (B, D): `text` without what other positions do in the last layer."""
        x, see = self.embed(ids), mask.bool()[:, None, None]
        *lower, (last, last_ffn) = self._layers()
        for layer, ffn in lower:
            x = ffn(layer.attend(x, see)[0])
        return last_ffn(last.attend_at(x, 0, see))[:, 0]

    def match(self, cf: Tensor, ids: Tensor, mask: Tensor, pairs: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Matching logits (M, 2) from the CLS output of the text tower; column 1 is "match".

        Queries and text see each other. The first layer attends before any item is seen: that part, and the text
        tower's, is done once for every text, however many pairs it is in.

        Args:
            cf: (B, d), or (B, 2, d) where a text is about two items.
            ids: (B, L).
            mask: (B, L).
            pairs: (M,) rows of cf and (M,) rows of ids; None pairs row with row.
        """
        items, texts = pairs if pairs is not None else (torch.arange(len(ids), device=ids.device),) * 2
        together, L = 1 if cf.dim() == 2 else cf.shape[1], ids.shape[1]
        # index_select and not x[rows]: where a row is taken twice, the latter's gradients add up in any order.
        item = self.qformer.keys(cf).unflatten(0, (-1, together)).index_select(0, items).flatten(0, 1)
        N = together * self.qformer.num_query_tokens
        see = F.pad(mask.bool(), (N, 0), value=True)[:, None, None]
        queries = self.qformer.norm(self.qformer.query_tokens).repeat(1, together, 1).expand(len(ids), -1, -1)
        x = torch.cat([queries, self.embed(ids)], 1)
        *lower, (last, last_ffn) = self._layers()
        for i, (layer, ffn) in enumerate(lower):
            queries, text = layer.attend(x, see)[0].split([N, L], 1)
            text = ffn(text)
            if i == 0:
                queries, text, see = (each.index_select(0, texts) for each in (queries, text, see))
            queries = layer.read_item(queries.unflatten(1, (together, -1)).flatten(0, 1), item)  # each its own item
            x = torch.cat([queries.view(len(text), N, -1), text], 1)
        cls = last_ffn(last.attend_at(x, N, see))[:, 0]
        return self.match_head(cls if lower else cls.index_select(0, texts))

    def generate(
        self, cf: Tensor, ids: Tensor, mask: Tensor, memory: list[KeysValues] | None = None, at: Tensor | None = None
    ) -> Tensor:
        """Logits (B, L, vocab): text attends to the queries and causally to itself.

        Args:
            cf: (B, d), or (B, 2, d) where a text is about two items.
            ids: (B, L).
            mask: (B, L).
            memory: of `QFormer.encode(cf)`, where that is at hand: queries do not see text and need no second pass.
            at: (P,) positions in the flattened batch; logits (P, vocab) of those alone.
        """
        memory = self.qformer.encode(cf)[1] if memory is None else memory
        x, L = self.embed(ids), ids.shape[1]
        see = torch.ones(L, L, dtype=torch.bool, device=ids.device).tril() & mask.bool()[:, None]  # (B, L, L)
        see = F.pad(see, (memory[0][0].shape[2], 0), value=True)[:, None]  # (B, 1, L, N + L)
        for (layer, ffn), queries in zip(self._layers(), memory):
            x = ffn(layer.attend(x, see, queries)[0])
        if at is not None:
            x = x.flatten(0, 1)[at]
        return F.linear(self.lm_norm(F.gelu(self.lm_transform(x))), self.word.weight, self.lm_bias)

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) ids -> (B, L, D), what the first layer reads."""
        return self.qformer.norm(self.word(ids) + self.position.weight[: ids.shape[1]])

    def _layers(self) -> Iterator[tuple[Layer, FeedForward]]:
        """Every layer with the text's feed-forward block."""
        return zip(self.qformer.layers, self.text_ffn)

    def own_weights(self) -> dict[str, Tensor]:
        """The state dict without the query tower."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("qformer.")}

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
            raise ValueError(
                f"the checkpoint's word embeddings are {tuple(word.shape)} and the Q-Former's are "
                f"{tuple(self.word.weight.shape)}: set qformer.width to {word.shape[1]} and use the "
                "checkpoint's tokenizer"
            )
        depth = 1 + max(int(k.split(".")[2]) for k in weights if k.startswith("encoder.layer."))
        if len(self.qformer.layers) > depth:
            raise ValueError(f"the checkpoint has {depth} layers; set qformer.layers to at most that")
        self.word.weight.copy_(word)
        # The second token type never occurs; the first is a constant that positions can carry.
        position = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self.position.weight.copy_(position[: len(self.position.weight)])
        _copy(self.qformer.norm, weights, "embeddings.LayerNorm")
        for i, (layer, text_ffn) in enumerate(self._layers()):
            prefix = f"encoder.layer.{i}."
            for name in ("weight", "bias"):
                getattr(layer.qkv, name).copy_(
                    torch.cat([weights[f"{prefix}attention.self.{p}.{name}"] for p in ("query", "key", "value")])
                )
            _copy(layer.out, weights, prefix + "attention.output.dense")
            _copy(layer.norm, weights, prefix + "attention.output.LayerNorm")
            for ffn in (layer.query_ffn, text_ffn):
                _copy(ffn.up, weights, prefix + "intermediate.dense")
                _copy(ffn.down, weights, prefix + "output.dense")
                _copy(ffn.norm, weights, prefix + "output.LayerNorm")


def _copy(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    module.weight.copy_(weights[name + ".weight"])
    module.bias.copy_(weights[name + ".bias"])
