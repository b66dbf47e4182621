"""Items that nobody has had (`data.cold_items`): who finds them by their texts and tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import load_file

from ilm_lib.baselines.nearest_text import factors_of_texts, nearest_text_scores
from ilm_lib.devices import use_bfloat16
from ilm_lib.metrics import ranking_metrics
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import queries
from ilm_lib.sections import Precision
from ilm_lib.settings import Params
from ilm_lib.study import inputs
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.study.blend import recent_factors
from ilm_lib.study.scoring import ranking_inputs, ranking_model
from ilm_lib.study.vectors import MADE_BY, text_vectors
from ilm_lib.tasks.cold import rank_cold


def cold_ranking(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """The ten items that a method ranks first for each question of `data.cold_items`; see `keep`."""
    if method == "Nearest text":
        given = {"data": inputs.data(params), "text": text_vectors(params, build=build)}
        return stage("cold_ranking", make_text_ranking, params.profile, made_by=MADE_BY, build=build, given=given)
    if method == "Text and factors":
        given = {"data": inputs.data(params), "text": text_vectors(params, build=build)}
        given |= recent_factors(params, seed, build=build)
        return stage("cold_ranking", make_guessed_ranking, params.profile, made_by=MADE_BY, build=build, given=given)
    given = ranking_inputs(params, seed, method, build=build)
    return stage("cold_ranking", make_cold_ranking, params.profile, made_by=MADE_BY, build=build, given=given)


def make_text_ranking(folder: Path, *, data: Artifact, text: Artifact) -> None:
    """By the texts nearest to those of the whole history."""
    table = load_file(text.path("text.safetensors"))["item"]
    keep(folder, data, lambda users, histories: nearest_text_scores(table, histories, pool="max"))


def make_guessed_ranking(
    folder: Path, *, data: Artifact, text: Artifact, factors: Artifact, fold: dict[str, float]
) -> None:
    """By the nearest text and by the user's recent factors beside those guessed from texts, to equal parts."""
    texts, cf = load_file(text.path("text.safetensors"))["item"], inputs.cf_embeddings(factors)
    recent = FoldIn(**fold | {"item_scale": 1.0})
    known = recent.factorised(cf.item)
    guessed = factors_of_texts(texts, known.table, inputs.open_dataset(data).item_counts())

    def score(users: np.ndarray, histories: Sequence[np.ndarray]) -> np.ndarray:
        parts = nearest_text_scores(texts, histories, pool="max"), recent.factors_of(known, histories) @ guessed.T
        return sum((part - part.mean(1, keepdims=True)) / part.std(1, keepdims=True) for part in parts)

    keep(folder, data, score)


def make_cold_ranking(folder: Path, *, data: Artifact, precision: Precision, **model: Any) -> None:
    """By a trained read-out, whose table has of a cold item the projection of its vector alone."""
    ilm, _ = ranking_model(data=data, **model)
    with torch.autocast(ilm.device.type, torch.bfloat16, enabled=use_bfloat16(precision)):
        keep(folder, data, lambda users, histories: history_scores(ilm, histories))


@torch.no_grad()
def history_scores(ilm: ILM, histories: Sequence[np.ndarray]) -> np.ndarray:
    """(B, I) scores of all items after B histories, item rows in time order."""
    table, bias = ilm.table()
    asked = queries(ilm, [items.tolist() for items in histories])
    with torch.autocast(ilm.device.type, enabled=False):
        return torch.addmm(bias.float(), asked, table.float().T).cpu().numpy()


def keep(folder: Path, data: Artifact, score: Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]) -> None:
    """Leave cold.npz: (Q,) targets, and (Q, 10) items ranked first, "cold" among the cold items and "all" among all."""
    cold = inputs.cold_items(data)
    assert cold is not None, "the profile sets no data.cold_items"
    ranked = rank_cold(score, inputs.open_dataset(data), cold, batch_size=256)
    first = {name: top.astype(np.int32) for name, top in ranked.items()}
    np.savez_compressed(folder / "cold.npz", target=cold.targets, **first)


def cold_metrics(artifact: Artifact, among: str) -> dict[str, np.ndarray]:
    """HR and NDCG of every question, (Q,) each; `among` is "cold" or "all"."""
    with np.load(artifact.path("cold.npz")) as saved:
        return ranking_metrics(saved[among], saved["target"])


def cold_scores(params: Params, methods: Sequence[str], *, build: bool = False) -> pd.DataFrame:
    """How well methods rank the withheld items, mean over the report's seeds: a row a method and pool.

    Columns method, among ("cold": of the withheld items, "all": of all), HR@10, NDCG@10; the first row is chance.
    """
    cold = inputs.cold_items(inputs.data(params))
    assert cold is not None, "the profile sets no data.cold_items"
    number = len(cold.items)
    chance = np.minimum(1, [10 / number, (1 / np.log2(np.arange(2, 12)[:number])).sum() / number])
    rows: list[tuple[str, str, float, float]] = [("chance", "cold", *chance)]
    for method in methods:
        runs = [cold_ranking(params, seed, method, build=build) for seed in params.report_seeds]
        for among in ("cold", "all"):
            found = [cold_metrics(run, among) for run in runs]
            rows.append((method, among, *(float(np.mean([f[m] for f in found])) for m in ("HR@10", "NDCG@10"))))
    return pd.DataFrame(rows, columns=["method", "among", "HR@10", "NDCG@10"])
