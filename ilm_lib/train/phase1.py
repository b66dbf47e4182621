"""Item-language representation learning (section 3.2): the training and the diagnostics of phase 1.

Item-text and interaction batches alternate, because in-batch negatives of the two cannot be mixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ilm_lib import processes
from ilm_lib.data.enough import TooSmall
from ilm_lib.devices import device
from ilm_lib.files import write_json
from ilm_lib.methods import TEXT_LOSSES
from ilm_lib.model.kernels import pair_similarity
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.text_codec import TextCodec, bert_folder
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.settings import Loss, Phase1, QFormerParams
from ilm_lib.train.loop import fit
from ilm_lib.train.losses import hard_negatives, interaction_loss, itc_loss, itg_loss, itm_loss, query_similarity
from ilm_lib.train.pairs import TEXT_KINDS, Batches, Pairs
from ilm_lib.train.state import STATE


class Losses(nn.Module):
    """`losses` as the forward pass of a module, for wrappers that must see the whole step (DDP)."""

    def __init__(self, model: QFormerForPhase1, params: Phase1, wanted: Sequence[Loss], codec: TextCodec):
        super().__init__()
        self.model, self.settings = model, (params, wanted, codec)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return losses(self.model, batch, *self.settings)


def losses(
    model: QFormerForPhase1, batch: Mapping[str, Tensor], params: Phase1, wanted: Sequence[Loss], codec: TextCodec
) -> dict[str, Tensor]:
    """Named phase-1 losses of one batch (equations 1 to 4 and BLIP-2's ITG and ITM).

    ITC's query pass serves ITG too, and ITM takes every text through its first layer once. Where texts are about two
    items, queries of both stand for them, and the losses are called "itc of two" and so on.

    Args:
        batch: of `Batches`, the rows of all processes; one alone may leave out "targets" and "share". Each process
            reads its own rows and compares them with everybody's; the mean over processes is the loss of the batch.
    """
    if "kind" in batch:
        count = len(batch["cf_a"])
        mine = torch.cat([processes.own(batch["cf_a"]), processes.own(batch["cf_b"])])
        a, b = model.query_proj(model.qformer.queries(mine)).chunk(2)
        return {
            batch["kind"]: interaction_loss(
                processes.everybody(a, count),
                processes.everybody(b, count),
                batch["ids_a"],
                batch["ids_b"],
                params.temperature_interaction,
                params.query_selection,
                params.center,
            )
        }
    out, cf, ids, entity = {}, batch["cf"], batch["ids"], batch["entity"]
    mask, row = ids != codec.pad, torch.arange(len(cf), device=cf.device)
    own, own_cf, own_ids, own_mask = (processes.own(x) for x in (row, cf, ids, mask))
    queries, memory = model.qformer.encode(own_cf)
    if "itc" in wanted or "itm" in wanted:
        loss, similarity = itc_loss(
            processes.everybody(model.query_proj(queries), len(cf)),
            processes.everybody(model.text_proj(model.cls(own_ids, own_mask)), len(cf)),
            entity,
            params.temperature_text,
            params.query_selection,
        )
        if "itc" in wanted:
            out["itc"] = loss
        if "itm" in wanted:
            text, item = (x[own] for x in hard_negatives(similarity, entity, params.temperature_negatives))
            logits = model.match(cf, ids, mask, pairs=(torch.cat([own, own, item]), torch.cat([own, text, own])))
            out["itm"] = processes.share(len(own), len(cf)) * itm_loss(logits, len(own))
    if "itg" in wanted:
        start, target = own_ids[:, :-1].clone(), own_ids[:, 1:].flatten()
        start[:, 0] = codec.dec
        positions = batch["targets"] if "targets" in batch else (target != codec.pad).nonzero()[:, 0]
        logits = model.generate(own_cf, start, own_mask[:, :-1], memory, positions)
        out["itg"] = batch.get("share", 1.0) * itg_loss(logits, target[positions])
    return out if cf.dim() == 2 else {f"{name} of two": loss for name, loss in out.items()}


def train_phase1(
    pairs: Pairs,
    cf: Tensor,
    qformer: QFormerParams,
    params: Phase1,
    wanted: Sequence[Loss],
    *,
    seed: int,
    state: Path | None = None,
) -> tuple[QFormerForPhase1, TextCodec, pd.DataFrame]:
    """Train a Q-Former on the wanted losses.

    Args:
        cf: (I + U, d) embeddings.
        wanted: any subset of itc, itg, itm, ii, ui.

    Returns:
        the Q-Former with its heads, its text codec, and the log (see `loop.fit`) with held-out losses.

    Raises:
        TooSmall: a wanted loss has no two pairs to compare.
    """
    codec = TextCodec.build(qformer, pairs.texts)
    torch.manual_seed(seed)
    model = QFormerForPhase1(QFormer(qformer, cf.shape[1]), len(codec.tokenizer))
    if qformer.text_tower:
        model.load_bert(bert_folder(qformer.text_tower))
    train, held = (Batches(p, codec.encode(p.texts), cf, codec.pad) for p in pairs.split(params.holdout, seed=0))
    _check_pairs(train, wanted)
    kinds = [k for k in ("ii", "ui") if k in wanted]
    if set(wanted) & set(TEXT_LOSSES):
        one, two = map(len, train.rows.values())
        texts = ["text"] if not two else ["text"] * max(1, round(one / two)) + ["texts of two"]
        kinds = texts + kinds

    def batch(step: int) -> dict[str, Tensor]:
        drawn = train.draw(kinds[step % len(kinds)], np.random.default_rng([seed, step]), params.batch_size)
        return _move(drawn, device())

    log = fit(
        Losses(model, params, wanted, codec),
        list(model.parameters()),
        lambda m, b: m(b),
        batch,
        params,
        seed=seed,
        evaluate=lambda m, step: heldout(m.model, held, params, wanted, codec),
        state=state,
        eval_every=max(1, params.steps // 10),
        label="phase 1",
    )
    return model.cpu(), codec, log


def _check_pairs(train: Batches, wanted: Sequence[Loss]) -> None:
    texts = max(map(len, train.rows.values()))
    found = {loss: texts if loss in TEXT_LOSSES else len(getattr(train.pairs, loss)) for loss in wanted}
    if short := [f"{loss} has {count}" for loss, count in found.items() if count < 2]:
        raise TooSmall(f"phase 1 compares pairs, and of training pairs {', '.join(short)}: leave out these losses")


@torch.no_grad()
def heldout(
    model: QFormerForPhase1, data: Batches, params: Phase1, wanted: Sequence[Loss], codec: TextCodec
) -> dict[str, float]:
    """Losses on held-out pairs, retrieval among held-out items, and query collapse.

    Keys: the wanted losses; "recall@1", "recall@10" of item-to-text retrieval; "query_cosine", the mean
    off-diagonal cosine of an item's queries (1 = collapsed).
    """
    rng, values = np.random.default_rng(0), {}
    where = next(model.parameters()).device
    torch.manual_seed(0)
    for kind in (*TEXT_KINDS, "ii", "ui"):
        count = len(data.rows[kind] if kind in TEXT_KINDS else getattr(data.pairs, kind))
        if count and (kind in wanted or (kind in TEXT_KINDS and set(wanted) & set(TEXT_LOSSES))):
            drawn = _move(data.draw(kind, rng, min(params.batch_size, 128)), where)
            found = losses(model, drawn, params, wanted, codec)
            values |= {name: float(processes.total(float(loss))) / processes.count() for name, loss in found.items()}
    rows = data.one_text_an_entity()[:1000]
    text = _move(data.text(rows), where) if len(rows) else {}
    some = text["cf"] if text else data.cf[torch.from_numpy(np.unique(data.pairs.ui))[:1000]].to(where)
    queries = model.qformer.queries(some)
    if "itc" in wanted and text:
        cls = model.text_proj(model.cls(text["ids"], text["ids"] != codec.pad))
        similarity = pair_similarity(model.query_proj(queries), cls[:, None], "best")
        rank = (similarity > similarity.diagonal()[:, None]).sum(1)
        values |= {f"recall@{k}": float((rank < k).float().mean()) for k in (1, 10)}
    if model.qformer.num_query_tokens > 1:
        cosine = query_similarity(queries)
        values["query_cosine"] = float((cosine.sum() - cosine.trace()) / (len(cosine) * (len(cosine) - 1)))
    return values


def _move(batch: dict[str, Any], where: torch.device | str) -> dict[str, Any]:
    return {name: value.to(where) if torch.is_tensor(value) else value for name, value in batch.items()}


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
        if not len(rows):
            continue
        rows = rows[np.random.default_rng(0).choice(len(rows), size=min(size, len(rows)), replace=False)]
        a, b = torch.from_numpy(rows.astype(np.int64)).T
        values[f"{kind} raw"] = float(
            interaction_loss(
                cf[a][:, None], cf[b][:, None], a, b, params.temperature_interaction, "best", params.center
            )
        )
        values[f"chance {kind}"] = math.log(len(rows))
    if texts := min(size, len(held.about(1))):
        values["chance itc"] = math.log(texts)
    return values


def run_phase1(
    folder: Path, pairs: Pairs, cf: Tensor, qformer: QFormerParams, params: Phase1, wanted: Sequence[Loss], *, seed: int
) -> None:
    """Train and leave the query tower, the rest of the model, the text tokenizer, log and diagnostics in a folder.

    Phase 2 starts from `qformer.safetensors`, the query tower alone; text tower and heads are in `phase1.safetensors`.
    """
    model, codec, log = train_phase1(pairs, cf, qformer, params, wanted, seed=seed, state=folder / STATE)
    save_file(model.qformer.state_dict(), folder / "qformer.safetensors")
    save_file(model.own_weights(), folder / "phase1.safetensors")
    codec.tokenizer.save_pretrained(folder / "tokenizer")
    log.to_parquet(folder / "log.parquet")
    with torch.no_grad():
        cosine = query_similarity(model.qformer.queries(cf[:2000]))
    write_json(
        folder / "diagnostics.json",
        {
            "query_similarity": cosine.tolist(),
            "vocab_size": len(codec.tokenizer),
            "yardsticks": yardsticks(pairs, cf, params) if len(pairs.ii) else {},
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )
