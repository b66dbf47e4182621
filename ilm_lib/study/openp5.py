"""The OpenP5 evaluation of the study (sections 4.4 and 5): who ranks how, for whom, and with which variant of ILM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ilm_lib.baselines.cf import CFEmbeddings, top_k
from ilm_lib.baselines.popularity import popularity_top_k
from ilm_lib.baselines.sasrec import load_sasrec, sasrec_top_k, train_sasrec
from ilm_lib.data import Dataset
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.files import write_json
from ilm_lib.methods import CF_METHODS, METHODS
from ilm_lib.methods import baselines as named_baselines
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.settings import HistoryRule, ItemPositions, Params, Precision, SASRec, Wording
from ilm_lib.study import inputs, stages
from ilm_lib.study.artifacts import Artifact, stage
from ilm_lib.tasks.openp5 import TASKS, rank
from ilm_lib.tasks.openp5 import beam_recall as measure_beam_recall
from ilm_lib.train.pause import OutOfTime, is_over
from ilm_lib.train.state import STATE, load_state, save_state

# ---------------------------------------------------------------- stages


def baselines(params: Params) -> tuple[str, ...]:
    """The baselines of a profile that read no prompt; that of dot products is called by what made the vectors."""
    return named_baselines("file" if params.embeddings.file else params.embeddings.engine)


def sasrec(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The sequential baseline, trained on the interactions alone."""
    given = {"data": inputs.data(params), "settings": params.sasrec, "seed": seed}
    return stage("sasrec", make_sasrec, params.profile, made_by="02_embeddings", build=build, given=given)


def make_sasrec(folder: Path, *, data: Artifact, settings: SASRec, seed: int) -> None:
    """Leave the network, its log and its size."""
    model, log = train_sasrec(inputs.open_dataset(data), settings, seed=seed, state=folder / STATE)
    model.save_pretrained(folder / "sasrec")
    log.to_parquet(folder / "log.parquet")
    write_json(folder / "sasrec.json", {"parameters": model.num_parameters(), "steps": settings.steps})


def evaluation(params: Params, seed: int, method: str, *, shuffled: bool = False, build: bool = False) -> Artifact:
    """The ten items each method ranks first for every test user, task, prompt and history rule.

    With `build` what it needs is made first where it is missing: embeddings, LLM, both phases of the method.

    Args:
        shuffled: of the control whose items and users carry another one's embedding.
    """
    e, given = params.evaluation, {"data": inputs.data(params)}
    given |= {"max_users": e.max_users, "wordings": e.prompts, "rules": e.histories}
    if METHODS[method].encoder is not None:
        return _llm_evaluation(params, seed, method, given, shuffled=shuffled, build=build)
    make: Callable[..., None] = {
        "Popularity": make_popularity_ranking,
        **dict.fromkeys(CF_METHODS.values(), make_cf_ranking),
        "SASRec": make_sasrec_ranking,
        "Oracle": make_oracle_ranking,
    }[method]
    if method in CF_METHODS.values():
        given["cf"] = inputs.embeddings(params, seed, build=build)
        if params.data.split == "temporal":  # much of a history has been in no training, and some users are new
            fold = stages.history_fold_in(params, given["cf"])
            given["fold_in"] = None if fold is None else vars(fold).copy()
    if method == "SASRec":
        given["trained"] = sasrec(params, seed, build=build)
    return stage("evaluation", make, params.profile, made_by="06_openp5_eval", build=build, given=given)


def _llm_evaluation(
    params: Params, seed: int, method: str, given: dict[str, Any], *, shuffled: bool, build: bool
) -> Artifact:
    e, trained = params.evaluation, METHODS[method].encoder != "none"
    given |= {
        "cf": inputs.embeddings(params, seed, build=build),
        "llm": stages.backbone(params, seed, build=build),
        "trained": stages.phase2(params, seed, method, shuffled=shuffled, build=build) if trained else None,
        "shuffle_seed": seed if shuffled else None,
        "item_positions": params.phase2.item_positions,
        **e.model_dump(include={"beams", "constrained", "batch_size", "precision"}),
        **inputs.wording(params),
    }
    return stage("evaluation", make_llm_ranking, params.profile, made_by="06_openp5_eval", build=build, given=given)


def make_llm_ranking(
    folder: Path,
    *,
    data: Artifact,
    max_users: int | None,
    wordings: Sequence[Wording],
    rules: Sequence[HistoryRule],
    cf: Artifact,
    llm: Artifact,
    trained: Artifact | None,
    shuffle_seed: int | None,
    item_positions: ItemPositions,
    beams: int,
    constrained: bool,
    batch_size: int,
    precision: Precision,
    **wording: Any,
) -> None:
    """The frozen LLM writes its items, for every task, wording and history rule. A task and wording is kept once it is
    done: a run that was interrupted goes on after it."""
    tasks = inputs.tasks_of(data, **wording)
    users = inputs.sample_users(tasks.data, "test", max_users)
    control = {} if shuffle_seed is None else {"shuffled": True, "seed": shuffle_seed}
    ilm = stages.trained_ilm(llm, cf, trained, tasks=tasks, item_positions=item_positions, **control)
    ilm, tops = ilm.to(device()), {}
    for task, asked in product(TASKS, wordings):
        part, run = folder / f"state.{task}-{asked}.safetensors", {"task": task, "wording": asked}
        if (done := load_state(part, run)) is None:
            if is_over():
                raise OutOfTime(f"evaluation: stopped before {task} {asked}; run it again, and it goes on")
            found = rank(
                ilm,
                tasks,
                task=task,
                wording=asked,
                split="test",
                users=users,
                history_rules=rules,
                beams=beams,
                constrained=constrained,
                batch_size=batch_size,
                autocast=use_bfloat16(precision),
            )
            done = {str(rule): torch.from_numpy(top) for rule, top in found.items()}, {}
            save_state(part, done[0], {"run": run})
        tops |= {f"{task}|{asked}|{rule}": top.numpy() for rule, top in done[0].items()}
    save_tops(folder, tasks.data, users, tops)


def make_popularity_ranking(folder: Path, *, data: Artifact, **asked: Any) -> None:
    """The most popular items, the same for all but for their histories."""
    loaded = inputs.open_dataset(data)
    train = loaded.train_matrix()
    _rank_without_prompts(folder, loaded, lambda exclude: popularity_top_k(train, 10, exclude=exclude), **asked)


def make_cf_ranking(
    folder: Path, *, data: Artifact, cf: Artifact, fold_in: dict[str, float] | None = None, **asked: Any
) -> None:
    """Dot products of user and item embeddings; with `fold_in`, of users as their histories have it."""
    loaded, vectors = inputs.open_dataset(data), inputs.cf_embeddings(cf)
    if fold_in is not None:
        fold = FoldIn(**fold_in)
        items = vectors.item / fold.item_scale
        histories: list[np.ndarray] = [np.zeros(0, int)] * loaded.num_users
        for user in loaded.users_of("test"):
            histories[user] = loaded.history(user, "test")
        vectors = CFEmbeddings(fold.many(items, histories), items)
    _rank_without_prompts(folder, loaded, lambda exclude: top_k(vectors, 10, exclude=exclude), **asked)


def make_sasrec_ranking(folder: Path, *, data: Artifact, trained: Artifact, **asked: Any) -> None:
    """What SASRec expects next."""
    loaded, model = inputs.open_dataset(data), load_sasrec(trained.path("sasrec")).to(device())
    users = loaded.users_of("test")

    def ranking(exclude: Any) -> np.ndarray:
        top = np.full((loaded.num_users, 10), -1)
        top[users] = sasrec_top_k(model, loaded, "test", 10, exclude=exclude is not None, users=users)
        return top

    _rank_without_prompts(folder, loaded, ranking, **asked)


def make_oracle_ranking(folder: Path, *, data: Artifact, **asked: Any) -> None:
    """The toy generator's own log-preference for the next item.

    It never repeats an item, and the oracle knows, so its ranking leaves the history out under both rules.
    """
    loaded = inputs.open_dataset(data)
    with np.load(data.path("openp5/oracle.npz")) as saved:
        column = {str(item): i for i, item in enumerate(saved["item_ids"])}
        scores = saved["scores"][:, [column[item] for item in loaded.items]]  # (U, I)
    seen = loaded.seen_matrix("test")
    _rank_without_prompts(folder, loaded, lambda exclude: top_k(scores, 10, exclude=seen), **asked)


def _rank_without_prompts(
    folder: Path,
    loaded: Dataset,
    ranking: Callable[[Any], np.ndarray],
    *,
    max_users: int | None,
    wordings: Sequence[Wording],
    rules: Sequence[HistoryRule],
) -> None:
    """Baselines read no prompt: one ranking a history rule, (U, 10), stands for all tasks and wordings."""
    users, tops = inputs.sample_users(loaded, "test", max_users), {}
    for rule in rules:
        top = ranking(loaded.seen_matrix("test") if rule == "excluded" else None)[users]
        tops |= {f"{task}|{asked}|{rule}": top for task in TASKS for asked in wordings}
    save_tops(folder, loaded, users, tops)


def save_tops(folder: Path, loaded: Dataset, users: np.ndarray, tops: dict[str, np.ndarray]) -> None:
    """Leave tops.npz: users, their targets, and (U', 10) items ranked first, by "task|prompt|history"."""
    first = {name: top[:, :10].astype(np.int32) for name, top in tops.items()}
    np.savez_compressed(folder / "tops.npz", users=users, target=loaded.test_targets()[users], **first)


def beam_recall(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """How much of the true top ten the beam finds, by scoring every item for a sample of users; recall.json."""
    given = {
        "data": inputs.data(params),
        "cf": inputs.embeddings(params, seed),
        "llm": stages.backbone(params, seed),
        "trained": stages.phase2(params, seed, method) if METHODS[method].encoder != "none" else None,
        "item_positions": params.phase2.item_positions,
        "beams": params.evaluation.beams,
        "users": min(100, 1 + 300_000 // inputs.dataset(params).num_items),  # the cost grows with the catalogue
        **inputs.wording(params),
    }
    return stage("beam_recall", make_beam_recall, params.profile, made_by="06_openp5_eval", build=build, given=given)


def make_beam_recall(
    folder: Path,
    *,
    data: Artifact,
    cf: Artifact,
    llm: Artifact,
    trained: Artifact | None,
    item_positions: ItemPositions,
    beams: int,
    users: int,
    **wording: Any,
) -> None:
    """Leave recall.json: by task the mean recall, the share of users with all ten, and how many users."""
    tasks = inputs.tasks_of(data, **wording)
    ilm = stages.trained_ilm(llm, cf, trained, tasks=tasks, item_positions=item_positions).to(device())
    rows = inputs.sample_users(tasks.data, "test", users)
    found = {task: measure_beam_recall(ilm, tasks, task=task, users=rows, beams=beams) for task in TASKS}
    summary = {
        t: {"recall": float(v.mean()), "complete": float((v == 1).mean()), "users": len(v)} for t, v in found.items()
    }
    write_json(folder / "recall.json", summary)


# ---------------------------------------------------------------- variants of a profile


def shuffled_control(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """ILM trained and evaluated with every item and user carrying another one's embedding."""
    only = params.with_(**{"evaluation.prompts": ("seen",), "evaluation.histories": ("excluded",)})
    return evaluation(only, seed, "ILM", shuffled=True, build=build)


def beside(params: Params, key: str, value: Any) -> Params:
    """The profile with one dotted key changed, for seen prompts alone; the profile itself where that is its value."""
    changed = params.with_(**{key: value})
    return params if changed == params else changed.with_(**{"evaluation.prompts": ("seen",)})


def variant(params: Params, **changes: Any) -> Params:
    """The profile with dotted keys changed, at the length of the ablation runs and with one backbone for all seeds."""
    short = params.ablations
    return params.with_(
        **{
            "phase1.steps": short.phase1_steps,
            "phase2.steps": short.phase2_steps,
            "phase2.eval_every": short.phase2_steps,
            "backbone.seed": params.seed,
            "evaluation.prompts": ("seen",),
            "evaluation.max_users": short.max_users,
            **changes,
        }
    )


def with_tokens(params: Params, tokens: int) -> Params:
    """The variant of Figure 3 with that many tokens an item, from the Q-Former or from the MLP."""
    return variant(params, **{"qformer.num_query_tokens": tokens, "phase2.mlp_tokens": tokens})


def prompts_read(params: Params) -> int:
    """How many prompts about a user, of both tasks, our LLM reads in its training, on average."""
    b = params.backbone
    return round(b.steps * b.accumulate * b.batch_size / inputs.dataset(params).num_users)
