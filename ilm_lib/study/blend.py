"""A user's recent factors beside a read-out (`model.factor_score`): chosen on dev, then the test users are ranked.

SASRec gets the same beside it, so that nobody's ranking is compared with two of another's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ilm_lib.baselines.sasrec import load_sasrec, read_last
from ilm_lib.data import Dataset
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.files import read_json, write_json
from ilm_lib.methods import CF_METHODS
from ilm_lib.model.factor_score import FactorScore
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import queries
from ilm_lib.model.scoring import top_items
from ilm_lib.sections import HistoryRule, Precision
from ilm_lib.settings import Params
from ilm_lib.study import inputs, openp5
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.study.openp5 import save_tops
from ilm_lib.study.scoring import ranking_inputs, ranking_model
from ilm_lib.study.vectors import MADE_BY, history_fold_in

HALF_LIVES = (0.0, 50.0, 20.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5)  # items; 0: all of a history count alike
WEIGHTS = (0.0, *(2.0**n for n in range(10)))  # of x . y beside logits
BATCH = 256  # histories ranked at once


@dataclass(frozen=True)
class Reader:
    """What ranks by a product: (B, d) queries after histories, and (I, d) rows and (I,) biases to hold them against."""

    ask: Callable[[Sequence[np.ndarray]], Tensor]
    table: Tensor
    bias: Tensor


def blended(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """A method's ranking with the recent factors beside it; of the factorisation itself, by these alone.

    `blend.json` has "half_life", "weight" and the dev metrics they were chosen by, `grid.parquet` those of all others,
    and tops.npz is as `save_tops` leaves it. Its task "straightforward" is asked of the factorisation alone: the
    vector of a user's training part.
    """
    given: dict[str, Any] = {
        "data": inputs.data(params),
        "factors": inputs.embeddings(params, seed, build=build),
        "fold": vars(_fold(params, seed)).copy(),
        "dev_users": params.score.dev_users,
    }
    if method == "SASRec":
        given["network"] = openp5.sasrec(params, seed, build=build)
    elif method not in CF_METHODS.values():
        given |= ranking_inputs(params, seed, method, build=build)
    return stage("blend", make_blended, params.profile, made_by=MADE_BY, build=build, given=given)


def recent_factors(params: Params, seed: int, *, build: bool = False) -> dict[str, Any]:
    """The profile's factors, and how a user's are made of a history: with the half-life that alone ranks best."""
    alone = blended(params, seed, CF_METHODS[params.embeddings.engine], build=build)
    half_life = read_json(alone.path("blend.json"))["half_life"]
    return {"factors": inputs.embeddings(params, seed), "fold": vars(replace(_fold(params, seed), half_life=half_life))}


def _fold(params: Params, seed: int) -> FoldIn:
    fold = history_fold_in(params, seed, ("cf",))
    if fold is None:
        raise ValueError("embeddings.file says nothing of how its vectors were factorised: no recent factors of them")
    return fold


def make_blended(
    folder: Path,
    *,
    data: Artifact,
    factors: Artifact,
    fold: dict[str, float],
    dev_users: int,
    network: Artifact | None = None,
    precision: Precision = "float32",
    **model: Any,
) -> None:
    """Choose on dev by NDCG@10, history excluded, the smaller weight where two are equal; rank all test users."""
    loaded, alone = inputs.open_dataset(data), not (model or network)
    items = torch.from_numpy(inputs.cf_embeddings(factors).scaled_table()[: loaded.num_items])
    if model:
        reader = of_readout(ranking_model(data=data, **model)[0], precision)
    else:
        reader = of_network(network) if network else nothing(loaded.num_items)
    users = inputs.sample_users(loaded, "dev", dev_users)
    grid = choose(reader, FoldIn(**fold), items, loaded, users, (1.0,) if alone else WEIGHTS)
    grid.to_parquet(folder / "grid.parquet")
    best = grid.loc[grid["dev NDCG@10"].idxmax()]
    write_json(folder / "blend.json", {name: float(value) for name, value in best.items()})

    own = FactorScore(replace(FoldIn(**fold), half_life=best["half_life"]), best["weight"])
    users = loaded.users_of("test")
    before = [loaded.history(u, "test") for u in users]
    shown = {"sequential": before} | ({"straightforward": [loaded.train_sequence(u) for u in users]} if alone else {})
    tops = {}
    for task, histories in shown.items():
        found = rank(reader, own, items, histories, {"kept": None, "excluded": before})
        tops |= {f"{task}||{rule}": top for rule, top in found.items()}
    save_tops(folder, loaded, users, tops)


def of_readout(ilm: ILM, precision: Precision) -> Reader:
    """A trained read-out."""

    @torch.no_grad()
    def ask(histories: Sequence[np.ndarray]) -> Tensor:
        with torch.autocast(ilm.device.type, torch.bfloat16, enabled=use_bfloat16(precision)):
            return queries(ilm, [items.tolist() for items in histories]).float().cpu()

    table, bias = ilm.table()
    return Reader(ask, table.float().cpu(), bias.float().cpu())


def of_network(network: Artifact) -> Reader:
    """SASRec."""
    model = load_sasrec(network.path("sasrec")).to(device()).eval()
    table = model.lm_head.weight.detach().float().cpu()
    return Reader(lambda histories: read_last(model, histories).float().cpu(), table, torch.zeros(len(table)))


def nothing(num_items: int) -> Reader:
    """What says nothing of any item, so that the factors alone rank."""
    return Reader(lambda histories: torch.zeros(len(histories), 0), torch.zeros(num_items, 0), torch.zeros(num_items))


def choose(
    reader: Reader, fold: FoldIn, items: Tensor, data: Dataset, users: np.ndarray, weights: Sequence[float]
) -> pd.DataFrame:
    """Dev metrics of users (U',) by half-life and weight, history excluded.

    Args:
        items: (I, D) scaled vectors.

    Returns:
        Columns half_life, weight, "dev HR@10", "dev NDCG@10"; lighter weights first.
    """
    folds = {half_life: replace(fold, half_life=half_life) for half_life in HALF_LIVES}
    factorised = fold.factorised(items.numpy())  # the same, whatever the half-life
    table = torch.from_numpy(factorised.table).float()  # (I, F)
    total = np.zeros((len(weights), len(folds), 2))
    for start in range(0, len(users), BATCH):
        part = users[start : start + BATCH]
        seen = [data.history(u, "dev") for u in part]
        asked = reader.ask(seen)  # (B, d)
        target = torch.from_numpy(data.dev_targets()[part].astype(np.int64))[:, None]  # (B, 1)
        base = torch.addmm(reader.bias, asked, reader.table.T)  # (B, I)
        for row, gone in zip(base, seen):
            row[gone] = -torch.inf
        for h, faded in enumerate(folds.values()):
            says = torch.from_numpy(faded.factors_of(factorised, seen)).float() @ table.T  # (B, I)
            for w, weight in enumerate(weights):
                scores = torch.add(base, says, alpha=weight)
                place = (scores >= scores.gather(1, target)).sum(1) - 1  # of equals the target comes last
                hit = (place < 10).float()
                total[w, h] += float(hit.sum()), float((hit / (place + 2).log2()).sum())
    rows = [(h, w, *metrics) for w, of_w in zip(weights, total / len(users)) for h, metrics in zip(folds, of_w)]
    return pd.DataFrame(rows, columns=["half_life", "weight", "dev HR@10", "dev NDCG@10"])


def rank(
    reader: Reader,
    own: FactorScore,
    items: Tensor,
    shown: Sequence[np.ndarray],
    banned: dict[HistoryRule, Sequence[np.ndarray] | None],
) -> dict[HistoryRule, np.ndarray]:
    """(B, 10) items ranked first after histories, -1 where none is left, by what each of them may not have."""
    table, tops = own.table(reader.table, items), {rule: [] for rule in banned}
    for start in range(0, len(shown), BATCH):
        part = slice(start, start + BATCH)
        asked = own.queries(reader.ask(shown[part]), items, shown[part])
        for rule, bans in banned.items():
            tops[rule].append(top_items(asked, table, reader.bias, 10, bans[part] if bans else None)[0].numpy())
    return {rule: np.concatenate(found) for rule, found in tops.items()}


def serving_model(params: Params, seed: int, method: str, *, build: bool = False) -> ILM:
    """What a profile trained, with the recent factors beside its read-out where dev said so."""
    given = ranking_inputs(params, seed, method, build=build)
    given.pop("precision")
    ilm, _ = ranking_model(**given)
    fold = history_fold_in(params, seed, params.score.vectors)
    if fold is not None:
        found = read_json(blended(params, seed, method, build=build).path("blend.json"))
        if found["weight"]:
            ilm.factors = FactorScore(replace(fold, half_life=found["half_life"]), found["weight"])
    return ilm
