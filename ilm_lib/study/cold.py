"""Items that nobody has had (`data.cold_items`): who finds them by their texts and tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from ilm_lib.baselines.nearest_text import nearest_text_scores
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.metrics import ranking_metrics
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import last_queries
from ilm_lib.settings import Params
from ilm_lib.study import inputs
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.study.scoring import ranking_inputs, scoring_tasks, trained_scorer
from ilm_lib.study.vectors import MADE_BY, text_vectors
from ilm_lib.tasks.cold import rank_cold
from ilm_lib.tasks.scoring import ScoringTasks


def cold_ranking(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """The ten items that a method ranks first for each question of `data.cold_items`; see `keep`."""
    if method == "Nearest text":
        given = {"data": inputs.data(params), "text": text_vectors(params, build=build)}
        return stage("cold_ranking", make_text_ranking, params.profile, made_by=MADE_BY, build=build, given=given)
    given = ranking_inputs(params, seed, method, build=build)
    return stage("cold_ranking", make_cold_ranking, params.profile, made_by=MADE_BY, build=build, given=given)


def make_text_ranking(folder: Path, *, data: Artifact, text: Artifact) -> None:
    """By the texts nearest to those of the whole history."""
    table = load_file(text.path("text.safetensors"))["item"]
    keep(folder, data, lambda users, histories: nearest_text_scores(table, histories, pool="max"))


def make_cold_ranking(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    fold_in: dict[str, float] | None,
    llm: Artifact,
    trained: Artifact,
    shuffle_seed: int | None,
    precision: str,
    **wording: Any,
) -> None:
    """By a trained read-out, whose table has of a cold item the projection of its vector alone."""
    tasks = inputs.tasks_of(data, **wording)
    control = {} if shuffle_seed is None else {"shuffled": True, "seed": shuffle_seed}
    ilm = trained_scorer(llm, cf, trained, tasks=tasks, fold_in=fold_in, **control).to(device())
    scoring = scoring_tasks(ilm, tasks)
    with torch.autocast(ilm.device.type, torch.bfloat16, enabled=use_bfloat16(precision)):
        keep(folder, data, lambda users, histories: history_scores(ilm, scoring, histories))


@torch.no_grad()
def history_scores(ilm: ILM, scoring: ScoringTasks, histories: Sequence[np.ndarray]) -> np.ndarray:
    """(B, I) scores of all items after B histories, item rows in time order."""
    shown = scoring.prompt.history_max
    askers, guests = scoring.in_front([items[:-shown] for items in histories])
    prompts = [scoring.prompt.render(scoring.catalogue, u, items.tolist()) for u, items in zip(askers, histories)]
    table, bias = ilm.table()
    queries = last_queries(ilm, prompts, None if guests is None else guests.to(ilm.device))
    with torch.autocast(ilm.device.type, enabled=False):
        return torch.addmm(bias.float(), queries, table.float().T).cpu().numpy()


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
