"""The OpenP5 evaluation of the study (sections 4.4 and 5): who ranks how, for whom, and with which variant of ILM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ilm_lib import exhaustive, study
from ilm_lib.artifacts import Artifact, stage, write_json
from ilm_lib.embeddings import popularity_top_k, top_k
from ilm_lib.metrics import ranking_metrics
from ilm_lib.paper import RESULT_COLUMNS
from ilm_lib.params import METHODS, Params
from ilm_lib.recommendation import TASKS, rank
from ilm_lib.sasrec import load_sasrec, sasrec_top_k, train_sasrec
from ilm_lib.training import device, use_bfloat16

BASELINES = ("Popularity", "iALS", "SASRec")
RANK_CODE = ("kernels", "masks", "decode", "recommendation", "embeddings")
SASREC_CODE = ("sasrec", "training", "data.dataset", "kernels", "backbone", "masks", "prompts", "embeddings")


def sasrec(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The sequential baseline, trained on the interactions alone."""
    def make(folder: Path) -> None:
        model, history = train_sasrec(study.dataset(params), params.sasrec, seed=seed, state=folder / "state.pt")
        model.save_pretrained(folder / "sasrec")
        history.to_parquet(folder / "history.parquet")
        write_json(folder / "sasrec.json", {"parameters": model.num_parameters(), "steps": params.sasrec.steps})

    return stage("sasrec", params.profile, {**params.sasrec.model_dump(), "seed": seed}, [study.data(params)],
                 SASREC_CODE, make if build else None, "02_embeddings")


def evaluation(params: Params, seed: int, method: str, *, build: bool = False, **kwargs: Any) -> Artifact:
    """The ten items each method ranks first for every test user, task, prompt and history rule.

    With `build` what it needs is made first where it is missing: embeddings, backbone, both phases of the method.
    """
    e, plain = params.evaluation, method in (*BASELINES, "Oracle")
    inputs = [study.data(params)]
    if method == "SASRec":
        inputs += [sasrec(params, seed, build=build)]
    elif plain:
        inputs += [study.embeddings(params, seed, build=build)]
    elif METHODS[method].encoder == "none":
        inputs += [study.embeddings(params, seed, build=build), study.backbone(params, seed, build=build)]
    else:
        trained = study.phase2(params, seed, method, build=build, **kwargs)
        inputs += [study.embeddings(params, seed), trained]
    settings = {"evaluation": e.model_dump(exclude={"enabled", "wide_beams"}), "seed": seed,
                "method": method if plain else METHODS[method].encoder, **kwargs}

    def make(folder: Path) -> None:
        loaded = study.dataset(params)
        users = study.sample_users(loaded.num_users, e.max_users)
        if plain:
            tops = _baseline_tops(params, seed, method, users)
        else:
            ilm = study.load_ilm(params, seed, method, **kwargs).to(device())
            tasks = study.recommendation_tasks(params)
            tops = {f"{task}|{prompt}|{history}": top for task in TASKS for prompt in e.prompts
                    for history, top in rank(
                        ilm, tasks, task=task, prompt=prompt, split="test", users=users, histories=e.histories,
                        beams=e.beams, constrained=e.constrained, batch_size=e.batch_size,
                        autocast=use_bfloat16(e.precision)).items()}
        np.savez_compressed(folder / "tops.npz", users=users, target=loaded.test_targets()[users],
                            **{k: v[:, :10].astype(np.int32) for k, v in tops.items()})

    return stage("evaluation", params.profile, settings, inputs, SASREC_CODE if method == "SASRec" else RANK_CODE,
                 make if build else None, "06_openp5_eval")


def beam_recall(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """How much of the true top ten the beam finds, by scoring every item for a sample of users; recall.json."""
    users = min(100, 1 + 300_000 // study.dataset(params).num_items)  # the cost grows with the catalogue
    inputs = [study.data(params), study.embeddings(params, seed), study.backbone(params, seed)]
    inputs += [] if METHODS[method].encoder == "none" else [study.phase2(params, seed, method)]

    def make(folder: Path) -> None:
        ilm, tasks = study.load_ilm(params, seed, method).to(device()), study.recommendation_tasks(params)
        rows = study.sample_users(tasks.data.num_users, users)
        found = {t: exhaustive.beam_recall(ilm, tasks, task=t, users=rows, beams=params.evaluation.beams)
                 for t in TASKS}
        write_json(folder / "recall.json", {t: {"recall": float(v.mean()), "complete": float((v == 1).mean()),
                                                "users": len(v)} for t, v in found.items()})

    settings = {"beams": params.evaluation.beams, "method": method, "seed": seed, "users": users}
    return stage("beam_recall", params.profile, settings, inputs, ("exhaustive", *RANK_CODE[:-1]),
                 make if build else None, "06_openp5_eval")


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
    return params.with_(**{
        "phase1.steps": short.phase1_steps, "phase2.steps": short.phase2_steps, "phase2.eval_every": short.phase2_steps,
        "backbone.seed": params.seed, "evaluation.prompts": ("seen",), "evaluation.max_users": short.max_users,
        **changes})


def with_tokens(params: Params, tokens: int) -> Params:
    """The variant of Figure 3 with that many tokens an item, from the Q-Former or from the MLP."""
    return variant(params, **{"qformer.num_query_tokens": tokens, "phase2.mlp_tokens": tokens})


def prompts_read(params: Params) -> int:
    """How many prompts about a user, of both tasks, our LLM reads in its training, on average."""
    b = params.backbone
    return round(b.steps * b.accumulate * b.batch_size / study.dataset(params).num_users)


def dev_score(params: Params, seed: int, method: str, *, build: bool = False) -> dict[str, float]:
    """What a run is chosen by, and what phase 1 says of it on held-out pairs.

    Keys: "dev HR@10", "dev NDCG@10" of the kept checkpoint (history kept, both tasks), and those of `phase1.heldout`.
    """
    values = _heldout(study.phase1(params, seed, method, build=build)) if METHODS[method].phase1 else {}
    history = pd.read_parquet(study.phase2(params, seed, method, build=build)("history.parquet"))
    steps = history.pivot(index="step", columns="name", values="value")
    best = steps.loc[steps["dev NDCG@10"].idxmax()]
    return values | {name: float(best[name]) for name in ("dev HR@10", "dev NDCG@10")}


def loss_ranges(params: Params) -> pd.DataFrame:
    """Where each loss of the profile's runs starts and ends, lowest to highest over the seeds, as text: what another
    run can be held against. Train values are means over a twentieth of the steps (a tenth in phase 1)."""
    trained = [m for m in params.methods if METHODS[m].encoder != "none"]
    parts = []
    for s in params.report_seeds:
        runs = [("backbone", study.backbone(params, s)), ("SASRec", sasrec(params, s))]
        runs += [(f"phase 2, {m}", study.phase2(params, s, m)) for m in trained]
        runs += [(f"phase 1, {m}", study.phase1(params, s, m)) for m in trained if METHODS[m].phase1]
        parts += [pd.read_parquet(a("history.parquet")).assign(run=name, seed=s) for name, a in runs
                  if a("history.parquet").exists()]
    rows = pd.concat(parts).sort_values("step", kind="stable")
    values = rows.groupby(["run", "name", "seed", "split"], sort=False)["value"]
    first, last = values.first().unstack("split"), values.last().unstack("split")
    ends = pd.DataFrame({"train, start": first["train"], "train, end": last["train"], "held out, end": last["heldout"]})
    low, high = (ends.groupby(level=["run", "name"], sort=False).agg(f) for f in ("min", "max"))
    span = lambda a, b: "" if np.isnan(a) else f"{a:.3f}" if f"{a:.3f}" == f"{b:.3f}" else f"{a:.3f} to {b:.3f}"
    text = {c: [span(a, b) for a, b in zip(low[c], high[c])] for c in ends}
    out = pd.DataFrame(text, index=low.index).reset_index().rename(columns={"name": "loss or measure"})
    return out.sort_values("run", kind="stable", ignore_index=True)


def _heldout(aligned: Artifact) -> dict[str, float]:
    history = pd.read_parquet(aligned("history.parquet"))
    return history[history["split"] == "heldout"].groupby("name")["value"].last().to_dict()


def by_user(params: Params, method: str, prompt: str, history: str, task: str = "both", *, build: bool = False,
            ) -> dict[str, np.ndarray]:
    """HR and NDCG of every test user, (U',) each: means over the report's seeds and the tasks asked for.

    Users are what a bootstrap may draw: the two tasks of a user have one answer.
    """
    runs = [per_user_metrics(evaluation(params, s, method, build=build), task, prompt, history)
            for s in params.report_seeds]
    tasks = len(TASKS) if task == "both" else 1
    return {metric: np.mean([run[metric].reshape(tasks, -1).mean(0) for run in runs], 0) for metric in runs[0]}


def per_user_metrics(artifact: Artifact, task: str, prompt: str, history: str) -> dict[str, np.ndarray]:
    """HR and NDCG of every test example. Task "both" counts the two tasks together (12,080 on ML1M)."""
    with np.load(artifact("tops.npz")) as saved:
        target = saved["target"]
        tasks = TASKS if task == "both" else (task,)
        tops = [saved[f"{t}|{prompt}|{history}"] for t in tasks]
    return ranking_metrics(np.concatenate(tops), np.concatenate([target] * len(tops)))


def history_share(params: Params, method: str, task: str) -> float:
    """Share of the ten items ranked first, seen prompts and history kept, that the user has had already.

    In training every straightforward target is an item of the user's own past: the better a model knows a user, the
    more of its list is history, and the fewer places are left for the next item.
    """
    seen, shares = study.dataset(params).seen_matrix("test"), []
    for s in params.report_seeds:
        with np.load(evaluation(params, s, method)("tops.npz")) as saved:
            top, users = saved[f"{task}|seen|kept"], saved["users"]
        had = seen[np.repeat(users, top.shape[1]), np.maximum(top, 0).ravel()]
        shares.append(float((np.asarray(had).reshape(top.shape) & (top >= 0)).mean()))
    return float(np.mean(shares))


def result_rows(params: Params, artifact: Artifact, method: str, seed: int, table: str = "table3") -> pd.DataFrame:
    """An evaluation as rows of `results.csv`."""
    rows = []
    for task in (*TASKS, "both"):
        for prompt in params.evaluation.prompts:
            for history in params.evaluation.histories:
                for metric, values in per_user_metrics(artifact, task, prompt, history).items():
                    rows.append((table, params.data.name, task, prompt, history, method, seed, metric,
                                 float(values.mean()), len(values)))
    return pd.DataFrame(rows, columns=RESULT_COLUMNS)


def _baseline_tops(params: Params, seed: int, method: str, users: np.ndarray) -> dict[str, np.ndarray]:
    """Baselines read no prompt: one ranking a history rule stands for all tasks and prompts."""
    loaded, tops = study.dataset(params), {}
    model = load_sasrec(sasrec(params, seed)("sasrec")).to(device()) if method == "SASRec" else None
    for history in params.evaluation.histories:
        exclude = loaded.seen_matrix("test") if history == "excluded" else None
        if method == "Popularity":
            top = popularity_top_k(loaded.train_matrix(), 10, exclude=exclude)
        elif method == "iALS":
            top = top_k(study.cf_embeddings(study.embeddings(params, seed)), 10, exclude=exclude)
        elif method == "SASRec":
            top = sasrec_top_k(model, loaded, "test", 10, exclude=history == "excluded",
                               users=np.arange(loaded.num_users))
        else:
            top = top_k(_oracle_scores(params), 10, exclude=loaded.seen_matrix("test"))
        tops |= {f"{task}|{prompt}|{history}": top[users] for task in TASKS for prompt in params.evaluation.prompts}
    return tops


def _oracle_scores(params: Params) -> np.ndarray:
    """(U, I) the toy generator's own log-preference for the next item. It never repeats an item, and the
    oracle knows, so its ranking leaves the history out under both rules."""
    loaded = study.dataset(params)
    with np.load(study.data(params)("openp5/oracle.npz")) as saved:
        column = {str(item): i for i, item in enumerate(saved["item_ids"])}
        return saved["scores"][:, [column[item] for item in loaded.items]]
