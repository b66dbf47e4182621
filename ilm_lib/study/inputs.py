"""What every stage starts from: the data of a profile, its prompts, its collaborative filtering embeddings.

A stage has two functions. `make_...` writes its files into a folder and depends on its arguments alone. The other
returns the finished artifact for a profile: `build=False` asks for it and raises `MissingStage`, naming the notebook to
run, where it has not been made; the notebook in charge passes `build=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from IPython.display import HTML
from safetensors.numpy import load_file, save_file
from torch import Tensor

from ilm_lib.baselines.cf import CFEmbeddings, fit_cf, load_cf
from ilm_lib.data import Dataset, data_dir, load_openp5
from ilm_lib.data.cold import ColdItems, withhold
from ilm_lib.data.enough import Counts, check
from ilm_lib.data.splits import SPLITS, Split
from ilm_lib.data.templates import OUR_TEMPLATES, load_templates
from ilm_lib.data.temporal import split_by_date
from ilm_lib.data.time_order import NO_TIMES, TIMES
from ilm_lib.data.toy import make_toy_world
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.files import write_json
from ilm_lib.model.indexing import Indexing
from ilm_lib.report.card import run_card
from ilm_lib.report.tables import show
from ilm_lib.sections import Target
from ilm_lib.settings import Embeddings, Params
from ilm_lib.study.artifacts import Artifact, SourceFile, stage
from ilm_lib.tasks.openp5 import RecommendationTasks
from ilm_lib.train.pairs import Pairs
from ilm_lib.values import Moment


def data(params: Params, *, build: bool = False) -> Artifact:
    """Raw files checked, counted and laid out as arrays; the toy world is also generated here.

    They are held against the settings before anything is trained on them.

    Raises:
        TooSmall: there is too little of what the settings ask for.
    """
    found = _data(params, build)
    counts = _counts(found.path("dataset"))
    for changes in ({}, *params.ablations.readings.values()) if build else ({},):
        check(params.with_(**changes), counts)
    return found


@lru_cache(2)
def _counts(folder: Path) -> Counts:
    return Counts.of(_open_dataset(folder))


def _data(params: Params, build: bool) -> Artifact:
    d = params.data
    given: dict[str, Any] = {"cold_items": d.cold_items} if d.cold_items else {}
    if d.source == "toy":
        given |= {"name": d.name, "num_items": d.num_items, "num_users": d.num_users, "world_seed": d.world_seed}
        return stage("data", make_toy_data, params.profile, made_by="01_data", build=build, given=given)
    folder = data_dir() / str(d.folder)
    files = {path.name: SourceFile(path) for path in sorted(folder.glob("*")) if path.is_file()}
    given |= {"name": d.name, "files": files or {"user_sequence.txt": SourceFile(folder / "user_sequence.txt")}}
    if d.whole_catalogue:
        given |= {"whole_catalogue": True}
    if d.split == "temporal":
        given["files"] |= {TIMES: SourceFile(folder / TIMES, NO_TIMES)}
        given |= {"dev_from": d.dev_from, "test_from": d.test_from, "target": d.target}
    return stage("data", make_data, params.profile, made_by="01_data", build=build, given=given)


def make_toy_data(
    folder: Path, *, name: str, num_items: int, num_users: int, world_seed: int, cold_items: float | None = None
) -> None:
    """The toy world in OpenP5's form, then as `make_data` leaves it."""
    make_toy_world(folder / "openp5", num_items=num_items, num_users=num_users, seed=world_seed)
    files = {path.name: SourceFile(path) for path in (folder / "openp5").glob("*")}
    make_data(folder, name=name, files=files, cold_items=cold_items)


def make_data(
    folder: Path,
    *,
    name: str,
    files: Mapping[str, SourceFile],
    dev_from: Moment | None = None,
    test_from: Moment | None = None,
    target: Target = "first",
    cold_items: float | None = None,
    whole_catalogue: bool = False,
) -> None:
    """Leave `dataset/` (arrays) and summary.json of a dataset in OpenP5's form.

    With dates it is split by them; with a share of cold items it is without these, and cold.npz asks for them.
    """
    source = next(iter(files.values())).path.parent
    loaded = load_openp5(source, name=name, cache=folder / "dataset", whole_catalogue=whole_catalogue)
    counts = {"users": loaded.num_users, "items": loaded.num_items, "interactions": loaded.num_interactions}
    if dev_from is not None and test_from is not None:
        loaded = split_by_date(loaded, source, dev_from, test_from, target)
        loaded.save(folder / "dataset")
        counts |= {f"{split}_users": len(loaded.users_of(split)) for split in SPLITS}
    if cold_items:
        loaded, cold = withhold(loaded, cold_items)
        cold.refuse_in(sequences=loaded.sequences, item_pairs=loaded.item_pairs())
        loaded.save(folder / "dataset")
        cold.save(folder / "cold.npz")
    write_json(folder / "summary.json", {"name": name, **counts, "notes": loaded.notes, "checksums": loaded.checksums})


def dataset(params: Params) -> Dataset:
    """The dataset of a profile; `data` must have been made."""
    return open_dataset(data(params))


def open_dataset(data: Artifact) -> Dataset:
    """The dataset of a `data` artifact, opened once a process."""
    return _open_dataset(data.path("dataset"))


_open_dataset = lru_cache(2)(Dataset.open)


def cold_items(data: Artifact) -> ColdItems | None:
    """What a `data` artifact withholds, and who is asked for it; None where the profile sets no `data.cold_items`."""
    path = data.path("cold.npz")
    return ColdItems.open(path) if path.exists() else None


def wording(params: Params) -> dict[str, Any]:
    """What the prompts of a profile depend on besides its data; arguments of `tasks_of`."""
    templates = SourceFile(data_dir() / params.data.templates) if params.data.templates else None
    return {"templates": templates, **params.data.model_dump(include={"history_max", "history_separator"})}


def tasks_of(
    data: Artifact, templates: SourceFile | None, history_max: int, history_separator: str
) -> RecommendationTasks:
    """The OpenP5 prompts of a dataset."""
    loaded = open_dataset(data)
    indexing = Indexing(loaded.name, loaded.user_index, loaded.item_index, history_separator)
    known = load_templates(templates.path) if templates else OUR_TEMPLATES
    return RecommendationTasks(loaded, known, indexing, history_max)


def recommendation_tasks(params: Params) -> RecommendationTasks:
    """The OpenP5 prompts of a profile."""
    return tasks_of(data(params), **wording(params))


def embeddings(params: Params, seed: int, *, build: bool = False) -> Artifact:
    """Collaborative filtering embeddings of the training part."""
    inputs: dict[str, Any] = {"data": data(params)}
    if params.embeddings.file:
        remedy = "Set embeddings.file to a .npz or .safetensors file, or leave it out"
        given = {**inputs, "file": SourceFile(Path(params.embeddings.file), remedy)}
        return stage(
            "embeddings", make_given_embeddings, params.profile, made_by="02_embeddings", build=build, given=given
        )
    given = {**inputs, "settings": params.embeddings, "seed": seed}
    return stage("embeddings", make_embeddings, params.profile, made_by="02_embeddings", build=build, given=given)


def make_embeddings(folder: Path, *, data: Artifact, settings: Embeddings, seed: int) -> None:
    """Factorise the training part; leave embeddings.safetensors."""
    cf = fit_cf(open_dataset(data).train_matrix(), **settings.model_dump(exclude={"file"}), seed=seed)
    save_file({"user": cf.user, "item": cf.item}, folder / "embeddings.safetensors")


def make_given_embeddings(folder: Path, *, data: Artifact, file: SourceFile) -> None:
    """Check embeddings from a file of one's own; leave embeddings.safetensors."""
    loaded = open_dataset(data)
    cf = load_cf(file.path, num_users=loaded.num_users, num_items=loaded.num_items)
    save_file({"user": cf.user, "item": cf.item}, folder / "embeddings.safetensors")


def cf_embeddings(embeddings: Artifact) -> CFEmbeddings:
    return CFEmbeddings(**load_file(embeddings.path("embeddings.safetensors")))


def scaled_cf(embeddings: Artifact) -> Tensor:
    """(I + U, d) `CFEmbeddings.scaled_table` of an artifact."""
    return torch.from_numpy(cf_embeddings(embeddings).scaled_table())


def openp5_pairs(loaded: Dataset, cold: ColdItems | None = None) -> Pairs:
    """Item-text, item-item and user-item pairs of the training part (Table 2, section 5.1).

    Args:
        cold: items that are not there yet: their texts are in no pair.
    """
    new = set() if cold is None else set(cold.items.tolist())
    texts = [(i, text) for i in range(loaded.num_items) if i not in new and (text := loaded.item_text(i))]
    user_item = loaded.user_item_pairs() + np.array([loaded.num_items, 0], np.int32)
    return Pairs([t for _, t in texts], np.array([i for i, _ in texts], np.int64), loaded.item_pairs(), user_item)


def sample_users(loaded: Dataset, split: Split, limit: int | None) -> np.ndarray:
    """All users that have a target, or a seeded sample of them that is the same for every method and seed."""
    users = loaded.users_of(split)
    if limit is None or limit >= len(users):
        return users
    return np.sort(np.random.default_rng(0).choice(users, limit, replace=False))


def card(params: Params, started: float) -> HTML:
    """The run card of a notebook, as a table."""
    precision = {
        name: "bfloat16 autocast" if use_bfloat16(getattr(params, name).precision) else "float32"
        for name in ("sasrec", "phase1", "backbone", "phase2", "evaluation")
    }
    rows = run_card(
        params.model_dump(exclude_defaults=True),
        seed=params.seed,
        device=device(),
        precision=", ".join(f"{k}: {v}" for k, v in precision.items()),
        checksums=dataset(params).checksums,
        started=started,
    )
    return show(rows, "Run card")
