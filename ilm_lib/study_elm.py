"""The ELM-24 stages of the study (section 4.3): as in `study`, but the LLM writes instead of ranking."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from ilm_lib import elm, elm_eval, study
from ilm_lib.artifacts import Artifact, sha256, stage
from ilm_lib.backbone import pretrain, reference
from ilm_lib.data import DataError, data_dir
from ilm_lib.data.elm24 import build_elm24
from ilm_lib.data.elm24_file import load_elm
from ilm_lib.data.films import PLOTS, other_films, read_films
from ilm_lib.data.instructions import Teacher
from ilm_lib.data.teacher_hf import HFTeacher
from ilm_lib.data.teacher_openai import OpenAITeacher
from ilm_lib.metrics import embed_sentences, log_perplexity, semantic_consistency, sentence_encoder
from ilm_lib.model import ILM
from ilm_lib.paper import RESULT_COLUMNS
from ilm_lib.params import METHODS, Params
from ilm_lib.phase1 import run_phase1
from ilm_lib.phase2 import train_phase2
from ilm_lib.profiles import runs_dir
from ilm_lib.prompts import PromptEncoder
from ilm_lib.tokenizer import train_tokenizer
from ilm_lib.training import device, use_bfloat16


def data(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The 24 tasks over the films that have a text, or rows of one's own; films are split, not rows."""
    e = params.elm24
    settings = {"test_fraction": e.test_fraction, "min_facts": e.min_facts, "seed": 0}
    inputs, code = [study.data(params)], ["data.elm24", "data.elm24_words", "data.instructions"]
    if e.file:
        path = data_dir() / e.file
        settings["sha256"] = _digest(path, "Set elm24.file to your rows, relative to ILM_DATA_DIR")
        code = ["data.elm24_file"]
    else:
        inputs.append(study.embeddings(params, seed, build=build))  # they pick the neighbours
        if e.teacher != "template":  # where a model answers does not matter, which one does
            settings |= {"teacher": e.teacher, "teacher_model": e.teacher_model}
            code += ["data.teachers", f"data.teacher_{e.teacher}"]

    def make(folder: Path) -> None:
        if e.file:
            rows = load_elm(path, len(study.dataset(params).texts), e.test_fraction, seed=0)
        else:
            rows = build_rows(params, seed, teacher(params))
        if left_out := rows.attrs.get("left_out"):
            print(f"{left_out:,} of {left_out + len(rows):,} rows left out")
        rows.to_parquet(folder / "rows.parquet")

    return stage("elm_data", params.profile, settings, inputs, code, make if build else None, "05_elm24_eval")


def build_rows(params: Params, seed: int, teacher: Teacher | str) -> pd.DataFrame:
    """The rows of a profile's films by a teacher."""
    items = study.cf_embeddings(study.embeddings(params, seed)).item
    return build_elm24(study.dataset(params).texts, items, seed=0, test_fraction=params.elm24.test_fraction,
                       min_facts=params.elm24.min_facts, teacher=teacher)


def teacher(params: Params) -> Teacher | str:
    """The teacher of a profile: "template", or a language model whose answers outlive the stage, so that a rebuild asks
    nothing twice."""
    e, folder = params.elm24, runs_dir() / params.profile / "teacher"
    if e.teacher == "template":
        return "template"
    answers = folder / (re.sub(r"[^\w.-]+", "-", f"{e.teacher}-{Path(e.teacher_model).name}") + ".jsonl")
    if e.teacher == "hf":
        return HFTeacher(e.teacher_model, answers)
    return OpenAITeacher(e.teacher_url, e.teacher_model, answers, key_env=e.teacher_key_env)


def load_rows(artifact: Artifact) -> pd.DataFrame:
    return pd.read_parquet(artifact("rows.parquet"))


def load_tasks(params: Params, seed: int) -> elm.ElmTasks:
    return elm.ElmTasks(load_rows(data(params, seed)), study.dataset(params).texts)


def reading_tasks(params: Params, seed: int) -> elm.ElmTasks:
    """What our LLM learns to read and write on: the 24 tasks over other films, where there are, else over the training
    films. Where it knows a film by heart, its tokens need only name the film, and nothing of it carries over to others.
    """
    if params.elm24.other_films is None:
        return load_tasks(params, seed)
    films = other_films(read_films(data_dir() / params.elm24.other_films), study.dataset(params).texts)
    # Nobody here has watched them, so films of like genres are neighbours; chance decides among equals.
    genres = pd.DataFrame([dict.fromkeys(film["genres"], 1.0) for film in films]).fillna(0.0).to_numpy()
    near = genres + np.random.default_rng(0).normal(0, 0.1, genres.shape)
    return elm.ElmTasks(build_elm24(films, near, seed=0, test_fraction=params.elm24.test_fraction,
                                    min_facts=params.elm24.min_facts), films)


def backbone(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The LLM of the ELM tasks: ours, pretrained on texts of films, or a named one."""
    seed, e = seed if params.backbone.seed is None else params.backbone.seed, params.elm24
    optim = params.backbone.model_copy(update={"steps": e.backbone_steps, "batch_size": e.backbone_batch_size,
                                               "lr": e.backbone_lr or params.backbone.lr})
    settings, code = {"backbone": optim.model_dump(), "seed": seed}, (*study.BACKBONE_CODE, "elm")
    if e.other_films is None or optim.pretrained:
        inputs = [data(params, seed, build=build)]
    else:
        inputs, folder = [study.data(params)], data_dir() / e.other_films
        remedy = "Set elm24.other_films to a folder that holds it, relative to ILM_DATA_DIR, or leave it out"
        settings |= {"films": [_digest(folder / name, remedy) for name in ("movies.csv", PLOTS)],
                     "tasks": e.model_dump(include={"test_fraction", "min_facts"})}
        code += ("data.films", "data.elm24", "data.elm24_words", "data.instructions")

    def make(folder: Path) -> None:
        if params.backbone.pretrained:
            return reference(folder, params.backbone.pretrained)
        tasks = reading_tasks(params, seed)
        tokenizer = train_tokenizer(tasks.corpus(), params.qformer.text_vocab)
        encoder = PromptEncoder(tokenizer, len(tasks.films), 0)
        pretrain(folder, optim, tokenizer, tasks.pretraining_batches(encoder, optim.batch_size, seed), seed=seed)

    return stage("elm_backbone", params.profile, settings, inputs, code, make if build else None, "05_elm24_eval")


def phase1(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """Phase 1 on item-text pairs alone, to keep neighbours out of it (section 4.3)."""
    cf, rows = study.embeddings(params, seed, build=build), data(params, seed, build=build)
    params = _own_lengths(params)

    def make(folder: Path) -> None:
        run_phase1(folder, load_tasks(params, seed).pairs(), study.cf_table(cf), params.qformer, params.phase1,
                   ("itc", "itg", "itm"), seed=seed)

    return stage("elm_phase1", params.profile, study.phase1_settings(params, "ILM-IT", seed), [cf, rows],
                 (*study.PHASE1_CODE, "elm"), make if build else None, "05_elm24_eval")


# What the numbers mean: an MLP with as many tokens as the Q-Former, an LLM that knows nothing of the film, and two that
# may read about it; and the method each is a case of.
ANCHORS = {"MLP-N": "MLP", "Film-blind": "ILM-rand", "Facts-in-text": "OpenP5-R", "Title-in-text": "OpenP5-R"}


def anchors(params: Params) -> list[str]:
    """The anchors of a profile."""
    return [a for a in ANCHORS if a != "MLP-N" or params.elm24.mlp_n]


def evaluation(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """Phase 2 on the 24 tasks, then log likelihood and texts for the test films; with `build` what comes before, too.

    The anchor MLP-N trains the MLP with as many tokens as the Q-Former has, Film-blind trains ILM-rand with the mean
    embedding for every film. The other two train nothing, the frozen LLM reads the film in the prompt: Facts-in-text by
    its year and genres, Title-in-text by its title or, where the LLM is ours and has read of no test film, by all that
    is on record of it.
    """
    cf, rows, llm = (make(params, seed, build=build) for make in (study.embeddings, data, backbone))
    kind = ANCHORS.get(method, method)
    aligned = phase1(params, seed, build=build) if METHODS[kind].phase1 else None
    params = _own_lengths(params)
    if method == "MLP-N":
        params = params.with_(**{"phase2.mlp_tokens": params.qformer.num_query_tokens})
    settings = {"phase2": params.phase2.model_dump(), "elm24": params.elm24.evaluated, "method": method,
                "precision": params.evaluation.precision,
                "qformer": params.qformer.model_dump(), "seed": seed}

    def make(folder: Path) -> None:
        tasks, p2, in_text = load_tasks(params, seed), params.phase2, None
        ilm = study.new_ilm(params, kind, llm, cf, aligned, None, seed)
        if method == "Film-blind":
            ilm.cf = ilm.cf[:ilm.num_items].mean(0, keepdim=True).expand_as(ilm.cf).contiguous()
        if METHODS[kind].encoder != "none":
            train_phase2(folder, ilm, tasks.training_batches(ilm.prompts, p2.batch_size, seed), p2, seed=seed)
        elif method == "Facts-in-text":
            in_text = "facts"
        else:
            in_text = "title" if params.backbone.pretrained else "card"
        test = tasks.part("test")
        if params.elm24.rows_per_task:
            test = test.groupby("task", sort=False).head(params.elm24.rows_per_task).reset_index(drop=True)
        scored = elm_eval.evaluate(ilm.to(device()), tasks, test, max_new_tokens=params.elm24.max_new_tokens,
                                   no_repeat_ngram=params.elm24.no_repeat_ngram, in_text=in_text)
        autocast = use_bfloat16(params.evaluation.precision)
        sc = semantic_consistency(*(sentences(params.elm24.sentence_encoder, tuple(scored[column]), autocast)
                                    for column in ("generated", "target")))
        scored.assign(SC=sc).to_parquet(folder / "scored.parquet")

    return stage("elm_evaluation", params.profile, settings, [cf, rows, llm, *([aligned] if aligned else [])],
                 (*study.PHASE2_CODE, "data.instructions", "elm", "elm_eval"), make if build else None, "05_elm24_eval")


def load_ilm(params: Params, seed: int, method: str, *, trained: bool = True) -> ILM:
    """The model of a method; `trained`: after phase 2, else where it starts from."""
    aligned = phase1(params, seed) if METHODS[method].phase1 and not trained else None
    ilm = study.new_ilm(_own_lengths(params), method, backbone(params, seed), study.embeddings(params, seed), aligned,
                        None, seed)
    return study.with_encoder(ilm, evaluation(params, seed, method)) if trained else ilm.eval()


@lru_cache(8)
def sentences(encoder: str | None, texts: tuple[str, ...], autocast: bool) -> np.ndarray:
    """Embeddings of texts; the targets are the same for every method."""
    return embed_sentences(_sentence_encoder(encoder), texts, autocast=autocast)


_sentence_encoder = lru_cache(1)(sentence_encoder)  # its file is checked and read once, not for every method


def scored(artifact: Artifact) -> pd.DataFrame:
    """Test rows with nll (nats), tokens, generated and SC (cosine)."""
    return pd.read_parquet(artifact("scored.parquet"))


def by_film(params: Params, method: str) -> pd.DataFrame:
    """Log perplexity and SC of every test film, (F, 2): means over its rows and over the report's seeds."""
    tables = [scored(evaluation(params, s, method)) for s in params.report_seeds]
    rows = pd.concat([t.assign(log_pplx=t["nll"] / t["tokens"]) for t in tables])
    return rows.groupby("item")[["log_pplx", "SC"]].mean()


def result_rows(rows: pd.DataFrame, method: str, seed: int, table: str = "table1") -> pd.DataFrame:
    """Scored rows as rows of `results.csv`: each task and "all", log perplexity per target token and SC."""
    out = []
    for task, part in [*rows.groupby("task", sort=False), ("all", rows)]:
        for metric, value in (("log_pplx", log_perplexity(part["nll"].sum(), int(part["tokens"].sum()))),
                              ("SC", float(part["SC"].mean()))):
            out.append((table, "ELM24", task, "", "", method, seed, metric, value, len(part)))
    return pd.DataFrame(out, columns=RESULT_COLUMNS)


def _digest(path: Path, remedy: str) -> str:
    if not path.is_file():
        raise DataError(path, None, "is missing", remedy)
    return sha256(path)


def _own_lengths(params: Params) -> Params:
    """The profile with the lengths of the ELM half."""
    return params.with_(**{"phase1.steps": params.elm24.phase1_steps, "phase2.steps": params.elm24.phase2_steps,
                           "qformer.max_text_tokens": params.elm24.max_text_tokens})
