"""The stages of the study: what the notebooks run, and what the grid runs through them.

Every function returns a finished artifact. `build=False` asks for it and raises `MissingStage`, naming
the notebook to run, where it has not been made; the notebook in charge passes `build=True`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML
from safetensors.numpy import load_file as load_numpy
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ilm_lib.artifacts import Artifact, sha256, stage, write_json
from ilm_lib.backbone import load_backbone, pretrain, reference
from ilm_lib.card import run_card
from ilm_lib.data import Dataset, data_dir, load_openp5
from ilm_lib.data.templates import OUR_TEMPLATES, load_templates
from ilm_lib.data.toy import make_toy_world
from ilm_lib.embeddings import CFEmbeddings, fit_cf, load_cf
from ilm_lib.indexing import Indexing
from ilm_lib.model import ILM, build_encoder
from ilm_lib.params import METHODS, Params
from ilm_lib.phase1 import Pairs, run_phase1
from ilm_lib.phase2 import new_encoder, train_phase2
from ilm_lib.profiles import reports_dir, runs_dir
from ilm_lib.prompts import PromptEncoder
from ilm_lib.recommendation import RecommendationTasks, dev_metrics
from ilm_lib.tables import show
from ilm_lib.tokenizer import train_tokenizer
from ilm_lib.training import device, use_bfloat16

disable_progress_bar()  # a notebook's output holds results, not the bars of loading weights

# What a stage depends on besides its settings and inputs; a change anywhere else leaves it as it is.
BACKBONE_CODE = ("kernels", "masks", "prompts", "indexing", "tokenizer", "backbone", "training")
PHASE2_CODE = (*BACKBONE_CODE, "qformer", "adapters", "model", "decode", "phase2")
PHASE1_CODE = ("phase1", "objectives", "kernels", "qformer", "tokenizer", "training")
TASK_CODE = ("recommendation", "data.dataset", "data.templates")


# ---------------------------------------------------------------- data and embeddings

def data(params: Params, *, build: bool = False) -> Artifact:
    """Raw files checked, counted and laid out as arrays; the toy world is also generated here."""
    settings = params.data.model_dump()
    settings["checksums"] = {} if params.data.source == "toy" else _file_digests(_real_folder(params))

    def make(folder: Path) -> None:
        if params.data.source == "toy":
            make_toy_world(folder / "openp5", num_items=params.data.num_items, num_users=params.data.num_users,
                           seed=params.data.world_seed)
        loaded = load_openp5(folder / "openp5" if params.data.source == "toy" else _real_folder(params),
                             name=params.data.name, cache=folder / "dataset")
        write_json(folder / "summary.json", {
            "name": loaded.name, "users": loaded.num_users, "items": loaded.num_items,
            "interactions": loaded.num_interactions, "notes": loaded.notes, "checksums": loaded.checksums})

    return stage("data", params.profile, settings, [],
                 ("data.dataset", "data.openp5", "data.toy", "data.toy_words"), make if build else None, "01_data")


def dataset(params: Params) -> Dataset:
    """The dataset of a profile; `data` must have been made."""
    return _open_dataset(data(params)("dataset"))


_open_dataset = lru_cache(2)(Dataset.open)


def recommendation_tasks(params: Params) -> RecommendationTasks:
    """The OpenP5 prompts of a profile's dataset."""
    loaded = dataset(params)
    templates = load_templates(data_dir() / params.data.templates) if params.data.templates else OUR_TEMPLATES
    indexing = Indexing(loaded.name, loaded.user_index, loaded.item_index, params.data.history_separator)
    return RecommendationTasks(loaded, templates, indexing, params.data.history_max)


def embeddings(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """Collaborative filtering embeddings of the training part."""
    inputs = [data(params)]
    settings = {**params.embeddings.model_dump(), "seed": seed}
    if params.embeddings.file:
        settings["sha256"] = sha256(Path(params.embeddings.file))

    def make(folder: Path) -> None:
        loaded, e = dataset(params), params.embeddings
        if e.file:
            cf = load_cf(Path(e.file), num_users=loaded.num_users, num_items=loaded.num_items)
        else:
            cf = fit_cf(loaded.train_matrix(), engine=e.engine, dim=e.dim, regularization=e.regularization,
                        unobserved_weight=e.unobserved_weight, iterations=e.iterations, seed=seed)
        save_numpy({"user": cf.user, "item": cf.item}, folder / "embeddings.safetensors")

    return stage("embeddings", params.profile, settings, inputs, ("embeddings", "data.dataset"),
                 make if build else None, "02_embeddings")


def cf_embeddings(artifact: Artifact) -> CFEmbeddings:
    return CFEmbeddings(**load_numpy(artifact("embeddings.safetensors")))


def cf_table(artifact: Artifact) -> Tensor:
    """(I + U, d) embeddings of items, then users, each table scaled to an RMS of 1.

    Users and items meet one encoder, and their factor norms differ by an order of magnitude.
    """
    cf = cf_embeddings(artifact)
    return torch.from_numpy(np.concatenate([t / np.sqrt(np.mean(t**2)) for t in (cf.item, cf.user)]))


# ---------------------------------------------------------------- phase 1, backbone, phase 2

def phase1(params: Params, seed: int, method: str, *, build: bool = False) -> Artifact:
    """The Q-Former of a method after phase 1."""
    loaded, cf = dataset(params), embeddings(params, seed, build=build)

    def make(folder: Path) -> None:
        run_phase1(folder, openp5_pairs(loaded), cf_table(cf), params.qformer, params.phase1, params.losses_of(method),
                   seed=seed)

    return stage("phase1", params.profile, phase1_settings(params, method, seed), [data(params), cf],
                 PHASE1_CODE, make if build else None, "03_phase1")


def openp5_pairs(loaded: Dataset) -> Pairs:
    """Item-text, item-item and user-item pairs of the training part (Table 2, section 5.1)."""
    texts = [(i, text) for i in range(loaded.num_items) if (text := loaded.item_text(i))]
    ui = loaded.user_item_pairs() + np.array([loaded.num_items, 0], np.int32)
    return Pairs([t for _, t in texts], np.array([i for i, _ in texts]), loaded.item_pairs(), ui)


def backbone(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """The LLM of the OpenP5 tasks: ours, pretrained on text-only prompts, or a named one."""
    seed = seed if params.backbone.seed is None else params.backbone.seed
    settings = {"backbone": params.backbone.model_dump(exclude={"seed"}), "data": params.data.model_dump(),
                "seed": seed}

    def make(folder: Path) -> None:
        tasks = recommendation_tasks(params)
        if params.backbone.pretrained:
            return reference(folder, params.backbone.pretrained)
        whole = tasks.indexing.names() if params.backbone.index_tokens == "whole" else ()
        tokenizer = train_tokenizer(tasks.corpus(), params.backbone.vocab, whole=whole)
        encoder = PromptEncoder(tokenizer, tasks.data.num_items, 0)
        pretrain(folder, params.backbone, tokenizer,
                 tasks.training_batches(encoder, params.backbone.batch_size, "text", seed), seed=seed)

    return stage("backbone", params.profile, settings, [data(params)], (*BACKBONE_CODE, *TASK_CODE),
                 make if build else None, "04_phase2")


def load_llm(artifact: Artifact) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a backbone artifact."""
    name = json.loads(artifact("backbone.json").read_text(encoding="utf-8"))["name"]
    return load_backbone(name or artifact("backbone"))


def phase2(params: Params, seed: int, method: str, *, shuffled: bool = False, build: bool = False) -> Artifact:
    """A method's item encoder trained on the OpenP5 tasks over the frozen backbone.

    Args: shuffled: give every item and user another one's embedding (a control that must lose the gain).
    """
    cf, llm = embeddings(params, seed, build=build), backbone(params, seed, build=build)
    inputs = [data(params), cf, llm]
    aligned = phase1(params, seed, method, build=build) if METHODS[method].phase1 else None
    inputs += [aligned] if aligned else []
    encoder = METHODS[method].encoder  # and not the method: ILM and ILM-IT-UI may be one thing
    sizes = {"tokens": params.phase2.mlp_tokens} if encoder == "mlp" else params.qformer.model_dump()
    settings = {"phase2": params.phase2.model_dump(exclude={"mlp_tokens"}), "encoder": encoder, "sizes": sizes,
                "data": params.data.model_dump(), "seed": seed, "shuffled": shuffled}

    def make(folder: Path) -> None:
        tasks, p2 = recommendation_tasks(params), params.phase2
        ilm = new_ilm(params, method, llm, cf, aligned, tasks, seed, shuffled)
        users = sample_users(tasks.data.num_users, p2.dev_users)
        train_phase2(folder, ilm, tasks.training_batches(ilm.prompts, p2.batch_size, p2.loss_on, seed), p2, seed=seed,
                     evaluate=lambda model, step: dev_metrics(model, tasks, users,
                                                              batch_size=params.evaluation.batch_size))

    return stage("phase2", params.profile, settings, inputs, (*PHASE2_CODE, *TASK_CODE), make if build else None,
                 "04_phase2")


def new_ilm(params: Params, method: str, llm: Artifact, cf: Artifact, aligned: Artifact | None,
            tasks: RecommendationTasks | None, seed: int, shuffled: bool = False) -> ILM:
    """A model before phase 2: the method's encoder, fresh or from phase 1, calibrated to the LLM."""
    model, tokenizer = load_llm(llm)
    table, num_items = cf_table(cf), len(cf_embeddings(cf).item)
    if shuffled:
        rng = np.random.default_rng(seed)
        order = [rng.permutation(num_items), num_items + rng.permutation(len(table) - num_items)]
        table = table[torch.from_numpy(np.concatenate(order))]
    start = None
    if aligned:
        diagnostics = json.loads(aligned("diagnostics.json").read_text())
        start = load_file(aligned("qformer.safetensors")), diagnostics["vocab_size"]
    encoder = new_encoder(params, method, table, model, seed=seed, aligned=start)
    return ILM(model, tokenizer, encoder, table, num_items, tasks.catalogue() if tasks else None,
               params.phase2.item_positions)


def load_ilm(params: Params, seed: int, method: str, *, trained: bool = True, shuffled: bool = False) -> ILM:
    """The model of a method, for evaluation; `trained`: after phase 2, else where it starts from."""
    start = METHODS[method].phase1 and not trained
    ilm = new_ilm(params, method, backbone(params, seed), embeddings(params, seed),
                  phase1(params, seed, method) if start else None, recommendation_tasks(params), seed, shuffled)
    if METHODS[method].encoder == "none" or not trained:
        return ilm.eval()
    return with_encoder(ilm, phase2(params, seed, method, shuffled=shuffled))


def with_encoder(ilm: ILM, trained: Artifact) -> ILM:
    """The model with the item encoder that `train_phase2` left, for evaluation."""
    ilm.encoder = build_encoder(json.loads(trained("encoder.json").read_text(encoding="utf-8"))["config"])
    ilm.encoder.load_state_dict(load_file(trained("encoder.safetensors")))
    return ilm.eval()


# ---------------------------------------------------------------- what notebooks share

def _real_folder(params: Params) -> Path:
    return data_dir() / params.data.folder


def _file_digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p) for p in sorted(folder.glob("*")) if p.is_file()}


def sample_users(count: int, limit: int | None) -> np.ndarray:
    """All users, or a seeded sample that is the same for every method and seed."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


def phase1_settings(params: Params, method: str, seed: int) -> dict[str, Any]:
    settings = params.phase1.model_dump() | {"losses": params.losses_of(method)}
    return {"phase1": settings, "qformer": params.qformer.model_dump(), "seed": seed}


def results_path(params: Params) -> Path:
    """Results of this checkout's runs; the report takes a copy of them."""
    return runs_dir() / params.profile / "results.csv"


def claims_path(params: Params) -> Path:
    return runs_dir() / params.profile / "claims.csv"


def figure_path(params: Params, name: str) -> Path:
    return reports_dir() / params.profile / "figures" / f"{name}.png"


def model_path(params: Params, method: str, seed: int) -> Path:
    """Where notebook 04 saves a model: `reports/toy/models/ilm-seed0`."""
    return reports_dir() / params.profile / "models" / f"{method.lower()}-seed{seed}"


def card(params: Params, started: float) -> HTML:
    """The run card of a notebook, as a table."""
    loaded = dataset(params)
    precision = {name: "bfloat16 autocast" if use_bfloat16(getattr(params, name).precision) else "float32"
                 for name in ("sasrec", "phase1", "backbone", "phase2", "evaluation")}
    rows = run_card(params.model_dump(exclude_defaults=True), seed=params.seed, device=device(),
                    precision=", ".join(f"{k}: {v}" for k, v in precision.items()), checksums=loaded.checksums,
                    started=started)
    return show(rows, "Run card")
