"""What a model that talks tells of an item by its tokens alone, in the study: the writing tasks as single turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ilm_lib.data.elm24 import read_facts
from ilm_lib.devices import device
from ilm_lib.settings import Params
from ilm_lib.study import elm_inputs, inputs
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.study.conversation import MADE_BY, model_of, talker_inputs, told_in_turns
from ilm_lib.study.probes import facts_right
from ilm_lib.tasks.elm import evaluate

ROWS = 10  # of a task that are asked on average, where the profile does not say how many


def answers(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """Writing tasks about items that taught nothing, as single turns; answers.parquet."""
    asked = params.elm24.model_dump(include={"rows_per_task", "max_new_tokens", "no_repeat_ngram"})
    given = talker_inputs(params, seed, method, build=build) | {
        "rows": elm_inputs.data(params, seed, build=build),
        "asked": asked | {"rows_per_task": asked["rows_per_task"] or ROWS},
    }
    return stage("single_turns", make_answers, params.profile, made_by=MADE_BY, build=build, given=given)


def make_answers(folder: Path, *, trained: Artifact, rows: Artifact, asked: dict[str, int], **given: Any) -> None:
    """Each row once with the items' own tokens and once with those of others; columns of `tasks.elm.evaluate`, and
    variant."""
    ilm = model_of(trained, **given).eval().to(device())
    tasks = told_in_turns(given["data"], rows, ilm)
    test = tasks.part("test")
    lengths = {name: asked[name] for name in ("max_new_tokens", "no_repeat_ngram")}
    most = asked["rows_per_task"] * test["task"].nunique()
    own = test.sample(min(most, len(test)), random_state=0).sort_index().reset_index(drop=True)  # of all items
    scored = []
    for variant, shown in (("", own), ("vectors=another", of_others(own))):
        found = evaluate(ilm, tasks, shown, **lengths)
        scored.append(found.assign(item=own["item"], other=own["other"], variant=variant))
    pd.concat(scored).to_parquet(folder / "answers.parquet")


def of_others(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows whose prompts show other items than their targets are about: each the next of all."""
    items = np.unique(rows[["item", "other"]].to_numpy())
    items = items[items >= 0]
    following = dict(zip(items, np.roll(items, -1))) | {-1: -1}
    return rows.assign(item=rows["item"].map(following), other=rows["other"].map(following))


def load(params: Params, seed: int, method: str, *, build: bool = False) -> pd.DataFrame:
    return pd.read_parquet(answers(params, seed, method, build=build).path("answers.parquet"))


def by_item(params: Params, seed: int, method: str, *, build: bool = False) -> dict[str, np.ndarray]:
    """By variant, (I,) the mean log probability (nats) of a token of the right answers about each item."""
    rows = load(params, seed, method, build=build)
    sums = rows.groupby(["variant", "item"])[["nll", "tokens"]].sum()
    return {str(variant): -(part["nll"] / part["tokens"]).to_numpy() for variant, part in sums.groupby("variant")}


def measured(params: Params, seed: int, method: str, *, build: bool = False) -> dict[str, dict[str, tuple[float, int]]]:
    """By variant: nats a token of the targets, and genres and decades that are right of those that are named; beside
    each of how many things it is."""
    rows, texts = load(params, seed, method, build=build), inputs.dataset(params)
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for variant, part in rows.groupby("variant"):
        about = [[read_facts(texts.texts[i]) for i in pair if i >= 0] for pair in part[["item", "other"]].to_numpy()]
        tokens = int(part["tokens"].sum())
        found[str(variant)] = {"log_pplx": (float(part["nll"].sum()) / tokens, tokens)}
        found[str(variant)] |= facts_right(part["generated"].tolist(), about)
    return found
