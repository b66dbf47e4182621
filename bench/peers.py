"""What people write today, in our own words: the other side of the benchmarks and of the tests of equality.

`PeerQFormer` is Hugging Face's `Blip2QFormerModel` with the embeddings and heads that phase 1 needs around
it, carrying the weights of a `QFormerForPhase1` of ours. It works as the public trainings of BLIP-2 do: a pass for
the queries, one for the text, one for matching over three times the batch and one for generation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.train.losses import itc_loss, itm_loss

# Modules that both have alike.
SHARED = ("word", "position", "lm_transform", "lm_norm", "match_head", "query_proj", "text_proj")
Draw = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


class PeerQFormer(nn.Module):
    """Both towers and heads.

    Args:
        ours: the Q-Former whose weights are copied.
        implementation: of attention, as transformers names it.
    """

    def __init__(self, ours: QFormerForPhase1, implementation: str = "sdpa"):
        super().__init__()
        tower = ours.qformer
        p, width = tower.params, tower.params.width
        config = Blip2QFormerConfig(
            hidden_size=width,
            num_hidden_layers=p.layers,
            num_attention_heads=p.heads,
            intermediate_size=4 * width,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-12,
            cross_attention_frequency=p.cross_attention_frequency,
            encoder_hidden_size=width,
            use_qformer_text_input=True,
            vocab_size=ours.word.num_embeddings,
        )
        config._attn_implementation = implementation
        self.model = Blip2QFormerModel(config)
        self.query_tokens = nn.Parameter(torch.empty_like(tower.query_tokens))
        self.lm_bias = nn.Parameter(torch.empty_like(ours.lm_bias))
        self.item_in = copy.deepcopy(tower.item_in)
        for name in SHARED:
            setattr(self, name, copy.deepcopy(getattr(ours, name)))
        with torch.no_grad():
            for mine, rows, other in weights(ours, self):
                other.copy_(mine[rows])

    def run(self, cf: Tensor | None, ids: Tensor | None, mask: Tensor | None, causal: bool = False) -> Tensor:
        """(B, N + L, D) of one pass; without `cf` text alone, without `ids` queries alone."""
        parts, item, N = [], None, 0
        if cf is not None:
            parts.append(self.query_tokens.expand(len(cf), -1, -1))
            item, N = self.item_in(cf)[:, None], self.query_tokens.shape[1]
        see = None
        if ids is not None:
            L = ids.shape[1]
            parts.append(self.word(ids) + self.position.weight[:L])
            see = torch.ones(N + L, N + L, dtype=torch.bool, device=ids.device)
            if causal:
                see = see.tril()
                see[:N, :N] = True
            see = see & F.pad(mask.bool(), (N, 0), value=True)[:, None, None]
            if self.model.config._attn_implementation == "eager":  # which adds its mask
                see = torch.zeros_like(see, dtype=parts[0].dtype).masked_fill(~see, torch.finfo(parts[0].dtype).min)
        return self.model(
            torch.cat(parts, 1), query_length=N, attention_mask=see, encoder_hidden_states=item
        ).last_hidden_state

    def logits(self, told: Tensor) -> Tensor:
        """(B, L, D) of the text -> (B, L, vocab)."""
        return F.linear(self.lm_norm(F.gelu(self.lm_transform(told))), self.word.weight, self.lm_bias)

    def losses(
        self,
        cf: Tensor,
        ids: Tensor,
        entity: Tensor,
        *,
        dec: int,
        pad: int,
        temperature: float,
        draw: Draw | None = None,
    ) -> dict[str, Tensor]:
        """ITC, ITG and ITM of one batch; `draw` draws the negatives, row by row unless told otherwise."""
        mask = ids != pad
        N = self.query_tokens.shape[1]
        queries, text = self.run(cf, None, None), self.run(None, ids, mask)
        loss, similarity = itc_loss(self.query_proj(queries), self.text_proj(text[:, 0]), entity, temperature, "best")
        text, item = (draw or negatives)(similarity, entity, temperature)
        joint = self.run(
            torch.cat([cf, cf, cf[item]]), torch.cat([ids, ids[text], ids]), torch.cat([mask, mask[text], mask])
        )
        start = ids.clone()
        start[:, 0] = dec
        logits = self.logits(self.run(cf, start, mask, causal=True)[:, N:])
        return {
            "itc": loss,
            "itm": itm_loss(self.match_head(joint[:, N]), len(cf)),
            "itg": F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad),
        }


def interleave_loop(embeddings: Tensor, tokens: Tensor, slots: Sequence[tuple[int, int, int]]) -> Tensor:
    """Item tokens (E, N, H) into a copy of the embeddings (B, T, H), one (row, start, entity) after the other."""
    out, N = embeddings.clone(), tokens.shape[1]
    for row, start, entity in slots:
        out[row, start : start + N] = tokens[entity]
    return out


def negatives(similarity: Tensor, entity: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A negative text for every item and a negative item for every text, one draw after the other."""
    same = entity[:, None] == entity[None]
    logits = similarity.detach().float() / temperature
    sides = [x.masked_fill(same, -1e4).softmax(1) for x in (logits, logits.T)]
    text, item = ([torch.multinomial(side[b], 1).item() for b in range(len(side))] for side in sides)
    return torch.tensor(text, device=similarity.device), torch.tensor(item, device=similarity.device)


def weights(ours: QFormerForPhase1, theirs: PeerQFormer) -> Iterator[tuple[nn.Parameter, slice, nn.Parameter]]:
    """(parameter of ours, its rows, parameter of theirs) for all that both have.

    Theirs has query and key projections of cross attention besides: their softmax has one key and is 1.
    """
    whole = slice(None)

    def same(a: nn.Module, b: nn.Module) -> Iterator[tuple[nn.Parameter, slice, nn.Parameter]]:
        yield from ((p, whole, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

    yield ours.qformer.query_tokens, whole, theirs.query_tokens
    yield ours.lm_bias, whole, theirs.lm_bias
    yield from same(ours.qformer.item_in, theirs.item_in)
    for name in SHARED:
        yield from same(getattr(ours, name), getattr(theirs, name))
    yield from same(ours.qformer.norm, theirs.model.layernorm)
    for a, text_ffn, b in zip(ours.qformer.layers, ours.text_ffn, theirs.model.encoder.layer, strict=True):
        width, own = a.out.in_features, b.attention.attention
        for i, part in enumerate((own.query, own.key, own.value)):
            rows = slice(i * width, (i + 1) * width)
            yield from ((p, rows, q) for p, q in zip(a.qkv.parameters(), part.parameters(), strict=True))
        pairs = [(a.out, b.attention.output.dense), (a.norm, b.attention.output.LayerNorm)]
        for ffn, up, down in (
            (a.query_ffn, b.intermediate_query, b.output_query),
            (text_ffn, b.intermediate, b.output),
        ):
            pairs += [(ffn.up, up.dense), (ffn.down, down.dense), (ffn.norm, down.LayerNorm)]
        if a.cross:
            cross = b.crossattention
            pairs += [
                (a.cross_value, cross.attention.value),
                (a.cross_out, cross.output.dense),
                (a.cross_norm, cross.output.LayerNorm),
            ]
        for mine, other in pairs:
            yield from same(mine, other)
