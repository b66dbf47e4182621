"""How much data a study needs, said once: for profiles that are written, and for those that are run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ilm_lib.data.dataset import Dataset
from ilm_lib.data.elm24 import facts_on_record
from ilm_lib.data.splits import SPLITS, Split
from ilm_lib.errors import Refusal
from ilm_lib.methods import METHODS, TEXT_LOSSES, Loss
from ilm_lib.settings import Params

LEAST = 20  # of whatever is counted: a list of ten names half of the items, and a tenth that is held out is two
ENOUGH_TEXTS = 50  # from here on a written profile asks for the losses that read texts
ENOUGH_FILMS = 100  # from here on a written profile asks for the ELM tasks: ten films are left to test


class TooSmall(Refusal, ValueError):
    """The data cannot carry a study, or what a setting asks of them; the message says which count falls short."""


def users_with_a_next_item(data: Dataset) -> np.ndarray:
    """(U',) rows of the users with two training items or more; TooSmall where there are none."""
    if not len(users := np.flatnonzero(data.places.train > 1)):
        raise TooSmall(
            f"{data.name}: no user has two training items, so there is no next item to learn. Add interactions"
        )
    return users


@dataclass(frozen=True)
class Counts:
    """What the data of a study have of everything that it needs some of.

    Attributes:
        texts: items with a text.
        ii: pairs of items that are consecutive in a training history.
        ui: pairs of a user and an item of the training part.
        facts: (I,) how many of genres, tags and overview each item has.
        targets: users that have a target, by split.
    """

    name: str
    users: int
    items: int
    examples: int
    texts: int
    ii: int
    ui: int
    facts: tuple[int, ...]
    targets: Mapping[Split, int] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Dataset) -> Counts:
        return cls(
            name=dataset.name,
            users=dataset.num_users,
            items=dataset.num_items,
            examples=dataset.num_train_examples,
            texts=sum(bool(dataset.item_text(i)) for i in range(dataset.num_items)),
            ii=len(dataset.item_pairs()),
            ui=len(dataset.user_item_pairs()),
            facts=tuple(map(facts_on_record, dataset.texts)),
            targets={split: len(dataset.users_of(split)) for split in SPLITS},
        )

    def carries(self, loss: Loss, holdout: float) -> bool:
        """Whether there are pairs enough for a loss of phase 1, and two of them left where `holdout` is kept out."""
        return self.of_loss(loss) >= least_pairs(holdout)

    def of_loss(self, loss: Loss) -> int:
        return self.texts if loss in TEXT_LOSSES else getattr(self, loss)


def least_pairs(holdout: float) -> int:
    """Pairs of a kind that phase 1 needs to keep two of them out of training."""
    return max(LEAST, math.ceil(1.5 / holdout))


def check_size(name: str, *, users: int, items: int, examples: int) -> None:
    """Raises TooSmall for data that no setting can save."""
    counted = {
        _count(users, "user"): users,
        _count(items, "item"): items,
        f"{_count(examples, 'example')} to train on, which start at a user's fourth item": examples,
    }
    if short := [said for said, count in counted.items() if count < LEAST]:
        raise TooSmall(f"{name}: {', '.join(short)}; a study needs {LEAST}{' of each' if len(short) > 1 else ''}")


def check(params: Params, counts: Counts) -> None:
    """Hold data against the settings of a study, before any training.

    Raises:
        TooSmall: naming the count, the least that is needed, and the setting that does without.
    """
    check_size(counts.name, users=counts.users, items=counts.items, examples=counts.examples)
    for split, users in counts.targets.items():
        if users < LEAST:
            raise TooSmall(f"{counts.name}: {_count(users, 'user')} of {counts.users:,} have a {split} target; a study "
                           f"needs {LEAST}. {_more_targets(params)}")  # fmt: skip
    if params.evaluation.enabled or params.chat.enabled:
        _check_losses(params, counts)
    if "text" in params.score.vectors and "score" in params.evaluation.readouts and counts.texts < LEAST:
        raise TooSmall(f"{counts.name}: score.vectors has 'text', and {_count(counts.texts, 'item')} of {counts.items} "
                       f"have one; {LEAST} are needed. Add texts, or take 'text' out of score.vectors")  # fmt: skip
    if params.elm24.enabled and not params.elm24.file:
        _check_films(params, counts)


def _check_losses(params: Params, counts: Counts) -> None:
    """ILM takes the losses that a profile names; those of a method that is named for them are not for choosing."""
    holdout = params.phase1.holdout
    lacks = {m: [x for x in params.losses_of(m) if not counts.carries(x, holdout)] for m in params.methods}
    lost = [x for x in (*TEXT_LOSSES, "ii", "ui") if any(x in own for own in lacks.values())]
    if not lost:
        return
    what = []
    if texts := [x for x in lost if x in TEXT_LOSSES]:
        what.append(f"{', '.join(texts)} read item texts, and {counts.texts} items have one")
    what += [f"{x} reads pairs of items that follow each other, and there are {counts.ii}" for x in lost if x == "ii"]
    what += [f"ui reads pairs of user and item, and there are {counts.ui}" for x in lost if x == "ui"]
    left = [x for x in ("ui", "ii") if counts.carries(x, holdout)]
    named = [m for m, own in lacks.items() if own and METHODS[m].phase1 != "profile"]
    remedies = [f"set phase1.losses: [{', '.join(left)}]"] if lacks.get("ILM") and left else []
    remedies += [f"take {', '.join(named)} out of methods"] if named else []
    remedies += ["or add texts" if texts else "or add interactions"]
    raise TooSmall(
        f"{counts.name}: phase 1 needs {least_pairs(holdout)} of each kind of pair: {'; '.join(what)}. "
        f"{', '.join(remedies)[0].upper()}{', '.join(remedies)[1:]}."
    )


def _check_films(params: Params, counts: Counts) -> None:
    e = params.elm24
    films = sum(facts >= e.min_facts for facts in counts.facts)
    test = round(e.test_fraction * films)
    remedy = "Add genres, tags and overviews to the texts, or set elm24.enabled: false"
    if films < LEAST:
        raise TooSmall(
            f"{counts.name}: {films} items have {e.min_facts} of genres, tags and overview, as elm24.min_facts asks; "
            f"the ELM tasks need {LEAST}. {remedy}."
        )
    if not any(counts.facts):
        raise TooSmall(f"{counts.name}: no item has genres, tags or an overview for the ELM tasks to tell. {remedy}.")
    if min(test, films - test) < 2:
        raise TooSmall(
            f"{counts.name}: elm24.test_fraction {e.test_fraction:g} of {films} films leaves {test} to test and "
            f"{films - test} to train on; two of each are needed. Choose another fraction."
        )


def _more_targets(params: Params) -> str:
    if params.data.split == "temporal":
        return f"Move data.dev_from {params.data.dev_from} and data.test_from {params.data.test_from}"
    return "Lower data.cold_items" if params.data.cold_items else "Add interactions"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
