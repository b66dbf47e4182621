"""A profile for one's own data: every size follows from counts of the data, and the file says why.

The rules are fitted to the profiles of the study, which were tuned by hand on two CPU cores (toy: 1,000 users and 300
items, ML100K, ML1M, Beauty, Clothing). They give a start that works, not the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ilm_lib import profiles
from ilm_lib.data.dataset import Dataset
from ilm_lib.data.elm24 import facts_on_record
from ilm_lib.data.enough import ENOUGH_FILMS, ENOUGH_TEXTS, LEAST, check_size
from ilm_lib.data.enough import TooSmall as TooSmall  # what it raises
from ilm_lib.files import write_text
from ilm_lib.profiles import profile_path
from ilm_lib.settings import Params, validate


@dataclass(frozen=True)
class Sizes:
    """The counts that decide the settings.

    Attributes:
        texts: items with a text.
        words: 95th percentile of the words of a text.
        vocabulary: distinct words of all texts.
        films: items with at least two of genres, tags and overview, the facts of the ELM tasks.
        longest: interactions of the user who has most.
        ii: pairs of items that follow each other in a training history.
    """

    users: int
    items: int
    interactions: int
    examples: int
    texts: int
    words: int
    vocabulary: int
    films: int
    longest: int
    ii: int = LEAST

    @classmethod
    def of(cls, dataset: Dataset) -> Sizes:
        """Count; raises TooSmall for data that no setting can save."""
        texts = [text.split() for i in range(dataset.num_items) if (text := dataset.item_text(i))]
        sizes = cls(
            users=dataset.num_users,
            items=dataset.num_items,
            interactions=dataset.num_interactions,
            examples=dataset.num_train_examples,
            texts=len(texts),
            words=int(np.percentile([len(t) for t in texts], 95)) if texts else 0,
            vocabulary=len({word for text in texts for word in text}),
            films=sum(facts_on_record(text) >= 2 for text in dataset.texts),
            longest=int(np.diff(dataset.offsets).max()),
            ii=len(dataset.item_pairs()),
        )
        check_size(dataset.name, users=sizes.users, items=sizes.items, examples=sizes.examples)
        return sizes

    @property
    def reads_texts(self) -> bool:
        return self.texts >= ENOUGH_TEXTS

    @property
    def few(self) -> bool:
        """Whether items have few interactions."""
        return self.interactions < 30 * self.items

    @property
    def tells_films(self) -> bool:
        return self.films >= ENOUGH_FILMS


def write_profile(dataset: Dataset, profile: str, folder: str) -> Path | None:
    """Write the profile of a dataset where `load_params` finds it; None where there is one, which is left as it is.

    Args:
        profile: its name.
        folder: the dataset's folder, relative to the data folder.

    Raises:
        TooSmall: the data cannot carry a study.
    """
    text = render(Sizes.of(dataset), dataset.name, profile, folder)
    if profile_path(profile).is_file():
        return None
    write_text(path := own_path(profile), text)
    return path


def own_path(profile: str) -> Path:
    """Where a profile of one's own is written."""
    return profiles.ROOT / "params" / f"{profile}.yaml"


def render(sizes: Sizes, name: str, profile: str, folder: str) -> str:
    """The YAML of a profile, with a comment for every section: what decided its sizes."""
    values = settings(sizes, name, profile, folder)
    params = validate(values)
    head = [
        f"{name}: {sizes.users:,} users, {sizes.items:,} items, {sizes.interactions:,} interactions; "
        f"{sizes.texts:,} items have a text.",
        f"About {minutes(sizes, params)} on two cores for one seed.",
        "The sizes follow from these counts, by the rules of ilm_lib/data/own_profile.py; all of them may be changed.",
        *left_out(sizes),
    ]
    why = comments(sizes, params)
    lines = [f"# {line}" for line in head]
    for key, value in values.items():
        lines += [f"# {line}" for line in why.get(key, "").splitlines()]
        section = yaml.safe_dump(
            {key: value}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1 << 20
        )
        lines.append(section.strip()[1:-1])  # {key: {...}} without the outer braces
    return "\n".join(lines) + "\n"


def settings(sizes: Sizes, name: str, profile: str, folder: str) -> dict[str, Any]:
    """The settings of data of these sizes, as the plain values of a profile."""
    s, small = sizes, sizes.items < 1_000
    loop = {"optimizer": "adamw", "precision": "auto"}
    phase1_steps, phase2_steps = _steps(s.items / 3, 100, 900), _steps(10 * np.cbrt(s.interactions), 100, 1_500)
    sasrec, whole = _sasrec(s), s.users + s.items <= 10_000
    batch, dev_users = 64 if s.users >= 500 else 32, min(s.users, 500 if s.interactions < 500_000 else 1_000)
    reads = 25 if s.users < 2_000 else 12  # prompts about a user; fewer users need more to learn the language
    values: dict[str, Any] = {
        "profile": profile,
        "seed": 0,
        "methods": ["OpenP5-R", "MLP", "ILM-rand", "ILM"],
        "data": {"source": "openp5", "name": name, "folder": folder, "history_max": min(20, s.longest - 1)},
        "embeddings": {"engine": "irspack", **_factors(s)},
        "sasrec": sasrec | {"dev_users": dev_users},
        "qformer": {
            "num_query_tokens": 4, "layers": 2, "width": 64 if small else 96, "heads": 4,
            "contrast_dim": 32 if small else 64, "text_vocab": 1_500 if s.vocabulary < 5_000 else 4_000,
            "max_text_tokens": int(np.clip(2 * s.words + 2, 16, 64)),
        },
        "phase1": {
            "steps": phase1_steps, "batch_size": 48 if s.items < 3_000 else 96, "lr": 1e-3, **loop,
            "losses": ["itc", "itg", "itm", "ui"] if s.reads_texts else ["ui", "ii"][: 1 + (s.ii >= LEAST)],
        },
        "backbone": {
            "layers": 2 if small else 3, "width": 128, "heads": 4, "vocab": 1_000,
            "index_tokens": "whole" if whole else "pairs", "steps": _steps(reads * s.users / batch, 200, 8_000),
            "batch_size": batch, "lr": 2e-3, **loop,
        },
        "phase2": {
            "steps": phase2_steps, "batch_size": 32, "lr": 1e-2, "optimizer": "adafactor", "precision": "auto",
            "eval_every": phase2_steps // 4, "dev_users": dev_users,
        },
        "evaluation": {"beams": 10, "batch_size": 64, "precision": "auto"} | (
            {"max_users": 5_000} if s.users > 10_000 else {}
        ),
        "score": _score(s, sasrec) | {"dev_users": dev_users},
        "elm24": _elm24(s),
        "ablations": {
            "query_tokens": [1, 4], "seeds": 1, "phase1_steps": max(50, phase1_steps // 3),
            "phase2_steps": max(50, phase2_steps // 4), "max_users": min(s.users, 400 if s.users < 2_000 else 1_000),
            "readings": {}, "scored": {},
        },
    }  # fmt: skip
    return values


def _factors(s: Sizes) -> dict[str, Any]:
    """What was not observed counts less, and vectors are longer, where items have few interactions.

    HR@10 of iALS on dev: Beauty .037 with a weight of .1 and 64 numbers, .071 with .01, .080 with .01 and 128; Clothing
    .006, .041, .046. MovieLens-100K and 1M are best at .1; for latest-small it is all one.
    """
    return {"dim": 32 if s.items < 1_000 else 128 if s.few else 64, "unobserved_weight": 0.01 if s.few else 0.1}


def _sasrec(s: Sizes) -> dict[str, Any]:
    """About 2,000 to 3,000 places a step, and 34 passes over the interactions: as many as did best on Beauty."""
    length, max_length = s.interactions / s.users, min(50, s.longest)
    batch_size = min(s.users, 256 if length < 20 else 64)
    a_pass = s.interactions / (batch_size * min(length, max_length))
    steps = _steps(34 * a_pass, 200, 6_000)
    return {
        "steps": steps, "batch_size": batch_size, "lr": 3e-3, "max_length": max_length, "eval_every": steps // 4,
        "dropout": 0.5 if s.few else 0.3 if s.interactions < 200 * s.items else 0.2,
    }  # fmt: skip


def _score(s: Sizes, sasrec: dict[str, Any]) -> dict[str, Any]:
    """As SASRec, which reads the same histories, with fewer of its passes: four tokens an item cost more.

    Where items have few interactions, their texts stand beside their factors, and every item starts as one of its own.
    """
    steps = _steps(sasrec["steps"] / (2 if s.few else 3), 100, 2_000)
    values = {
        "steps": steps, "batch_size": sasrec["batch_size"], "history_max": sasrec["max_length"],
        "eval_every": steps // 4, "dropout": sasrec["dropout"], "vector_dropout": 0.2, "weight_decay": 0.2,
        "free_std": 1.0 if s.few else 0.0,
    }  # fmt: skip
    return values | ({"vectors": ["cf", "text"]} if s.few and 2 * s.texts > s.items else {})


def _elm24(s: Sizes) -> dict[str, Any]:
    if not s.tells_films:
        return {"enabled": False}
    many = s.films >= 1_000
    return {
        "test_fraction": 0.1, "min_facts": 2, "rows_per_task": 50 if many else 6,
        "phase1_steps": _steps(s.films / 5, 60, 600), "backbone_steps": _steps(1.2 * s.films, 400, 3_600),
        "backbone_batch_size": 32 if many else 8, "backbone_lr": 2e-3 if many else 3e-3,
        "phase2_steps": _steps(s.films / 4, 90, 800), "max_new_tokens": 64 if many else 40,
        "max_text_tokens": int(np.clip(2 * s.words + 2, 48, 96)),
    }  # fmt: skip


def left_out(sizes: Sizes) -> list[str]:
    """In words, what the profile leaves out, and why."""
    out = []
    if not sizes.reads_texts:
        out.append(
            f"Left out: the losses of phase 1 that read texts (itc, itg, itm). {sizes.texts:,} items have a text, "
            f"{ENOUGH_TEXTS} are needed."
        )
    if not sizes.tells_films:
        out.append(
            "Left out: the 24 ELM tasks, which tell about films. "
            f"{sizes.films:,} items have two of genres, tags and overview, {ENOUGH_FILMS} are needed."
        )
    return out


def comments(sizes: Sizes, params: Params) -> dict[str, str]:
    """Why each section is as large as it is."""
    p = params
    prompts = round(p.backbone.steps * p.backbone.batch_size / sizes.users)
    named = "a token for every item and user" if p.backbone.index_tokens == "whole" else "an index in pairs of digits"
    return {
        "data": f"Read from $ILM_DATA_DIR/{p.data.folder} (data/{p.data.folder} where the variable is not set).\n"
        "The prompts are ours; `templates:` takes a file in the form of OpenP5's prompt.txt.",
        "embeddings": "One vector an item and a user, from the interactions: 32 numbers below 1,000 items, else 64, and 128\n"
        "where items have few; there what nobody had counts less.",
        "sasrec": "The baseline: 34 passes over the data, 6,000 steps at most; less dropout if items have many.",
        "qformer": f"Turns a vector into 4 tokens for the LLM. Of the texts, 95% have {sizes.words} words or fewer;\n"
        f"all have {sizes.vocabulary:,} distinct words.",
        "phase1": "Teaches the Q-Former items and texts: a step for every three items, 100 to 900.",
        "backbone": f"The small LLM, trained here, then frozen: about {prompts:,} prompts about each user, {named}.\n"
        "`pretrained:` takes a language model of Hugging Face instead.",
        "phase2": "Item tokens for the frozen LLM: 10 times the cube root of the interactions in steps.",
        "evaluation": "All users are ranked for." if p.evaluation.max_users is None else
        "A fixed sample of the users is ranked for: all of them would take hours.",
        "score": "The read-out that scores all items: the same histories as SASRec, a third or a half of its passes.\n"
        "Items with few interactions have their texts beside the factors, if most have one.",
        "elm24": "" if not p.elm24.enabled else
        "The 24 tasks of text, worded for films; `enabled: false` leaves them out.",
        "ablations": "Short runs of notebook 07.",
    }  # fmt: skip


def minutes(sizes: Sizes, params: Params) -> str:
    """Roughly how long `make study` takes with one seed on two cores, as "10 minutes"."""
    seconds = _core_seconds(sizes, params) / 1.6  # some notebooks wait for others
    if seconds < 90 * 60:
        return f"{max(5, round(seconds / 300) * 5)} minutes"
    return f"{round(seconds / 1800) / 2:g} hours"


def _core_seconds(sizes: Sizes, p: Params) -> float:
    """Seconds of one core. What a prompt costs is what it took in the runs of toy, ML100K and ML1M."""
    prompt = p.backbone.layers / 3 * p.data.history_max / 20  # against 3 layers and 20 items
    align = 5e-3 * (p.qformer.width / 96) ** 3
    train = lambda steps: steps * p.phase2.batch_size * 0.010 * prompt
    rank = lambda users: 2 * users * 0.006 * prompt
    users, a = p.evaluation.max_users or sizes.users, p.ablations
    seconds = 130.0  # notebooks start, data, vectors, figures
    seconds += p.phase1.steps * p.phase1.batch_size * align
    seconds += p.backbone.steps * p.backbone.batch_size * 0.006 * prompt
    seconds += 4 * train(p.phase2.steps) + 2 * (len(p.methods) + 1) * rank(users)  # with the shuffled control
    short = 3 * (train(a.phase2_steps) + rank(a.max_users or users))
    seconds += a.seeds * len(a.query_tokens) * (a.phase1_steps * p.phase1.batch_size * align + short)
    tokens = p.score.steps * p.score.batch_size * min(p.score.history_max, sizes.interactions / sizes.users)
    seconds += 14 * tokens / 15_000 * p.backbone.layers / 3  # three times four tokens and once one; the LLM off
    if p.elm24.enabled:
        e, layers = p.elm24, p.backbone.layers / 3
        seconds += (
            e.phase1_steps * p.phase1.batch_size * align + 5 * e.phase2_steps * p.phase2.batch_size * 0.01 * layers
        )
        seconds += e.backbone_steps * e.backbone_batch_size * 0.008 * layers + 24 * 7 * (e.rows_per_task or 100) * 0.02
    return seconds


def _steps(count: float, least: int, most: int) -> int:
    """A whole number of steps within bounds, to two digits."""
    count = min(max(count, least), most)
    digits = 10 ** max(0, len(str(int(count))) - 2)
    return int(round(count / digits) * digits)
