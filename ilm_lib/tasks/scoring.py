"""Ranking by the score read-out: histories as training batches, a target at every place; and everybody's ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ilm_lib.data import Dataset
from ilm_lib.data.enough import users_with_a_next_item
from ilm_lib.data.splits import Split
from ilm_lib.data.templates import Task
from ilm_lib.metrics import dev_means
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.history import HistoryPrompt, users_in_front
from ilm_lib.model.prompts import Batch, Item, Prompt, PromptEncoder, User
from ilm_lib.model.recommend import queries
from ilm_lib.model.scoring import top_items
from ilm_lib.processes import in_parts, own
from ilm_lib.progress import progress
from ilm_lib.sections import HistoryRule

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM

NO_LOSS = -100


@dataclass(frozen=True)
class Histories:
    """A batch of histories for training.

    Attributes:
        batch: their prompts.
        targets: (S,) the item that comes after each slot, NO_LOSS where none is asked for.
        guests: (G, d) vectors of the users in front, or None.
        banned: item rows that each slot may not have, in the order of the slots; None: it may have any.
        answers: prompts and answers about items that are learned in the same step; None: there are none.
    """

    batch: Batch
    targets: Tensor
    guests: Tensor | None
    banned: Sequence[Sequence[int]] | None = None
    answers: Batch | None = None

    def to(self, device: torch.device | str) -> Histories:
        guests, answers = (None if part is None else part.to(device) for part in (self.guests, self.answers))
        batch, targets = self.batch.to(device), self.targets.to(device)
        return replace(self, batch=batch, targets=targets, guests=guests, answers=answers)

    @property
    def weight(self) -> int:
        """The share of this batch in a step of several."""
        return int((self.targets >= 0).sum())


@dataclass(frozen=True)
class ScoringTasks:
    """The histories of a dataset, as the score read-out is asked of them.

    Attributes:
        vectors: (I + U, d) of items and users.
        prompt: how a history is put.
        sources: the sequential templates that training draws from, where `prompt.words` is "template".
        fold_in: makes a user's vector of what came before the history shown, so that no target is in it. None: users
            have no slot.
    """

    data: Dataset
    catalogue: Catalogue
    vectors: Tensor
    prompt: HistoryPrompt
    sources: Sequence[str] = ()
    fold_in: FoldIn | None = None

    def training_batches(
        self, encoder: PromptEncoder, size: int, seed: int, places: Literal["every", "last"] = "every"
    ) -> Callable[[int], Histories]:
        """Batches for `loop.fit`: distinct users, of each a random window of the training sequence.

        A window is `history_max` items long, and one more, the target of its last place. With users in front half of
        the windows begin anywhere, so that the user's vector, made of what came before, is asked on its own, too.

        Raises:
            TooSmall: no user has two training items.
        """
        trainable = users_with_a_next_item(self.data)

        def batch(number: int) -> Histories:
            rng = np.random.default_rng([seed, number])
            windows, before = [], []
            for user in rng.choice(trainable, min(size, len(trainable)), replace=False):
                sequence = self.data.train_sequence(user)
                latest = len(sequence) - (2 if self.prompt.shows_users and rng.random() < 0.5 else self._window)
                start = rng.integers(max(0, latest) + 1)
                windows.append(sequence[start : start + self._window].tolist())
                before.append(sequence[:start])
            return self.histories(encoder, own(windows), own(before), rng, places)

        return batch

    @property
    def _window(self) -> int:
        return self.prompt.history_max + 1

    def histories(
        self,
        encoder: PromptEncoder,
        windows: Sequence[Sequence[int]],
        before: Sequence[Sequence[int]],
        rng: np.random.Generator,
        places: Literal["every", "last"] = "every",
    ) -> Histories:
        """Windows of item rows, the last of each a target alone, and what came before them, as a batch."""
        items = self.vectors[: self.data.num_items]
        users, guests = users_in_front(self.prompt, self.fold_in, items, self.data.num_users, before)
        prompts = []
        for user, window in zip(users, windows):
            catalogue = self.catalogue
            if self.prompt.words == "template":
                catalogue = replace(catalogue, sequential=self.sources[rng.integers(len(self.sources))])
            prompts.append(self.prompt.render(catalogue, user, window[:-1]))
        batch = encoder.batch(prompts, pack=True)
        return Histories(batch, torch.tensor(next_items(prompts, windows, places)), guests)


def next_items(prompts: Sequence[Prompt], windows: Sequence[Sequence[int]], places: str) -> list[int]:
    """The target of every slot: the item that follows the items shown so far."""
    targets: list[int] = []
    for prompt, window in zip(prompts, windows):
        shown, own = 0, []
        for segment in prompt:
            if isinstance(segment, (Item, User)):
                shown += isinstance(segment, Item)
                own.append(window[shown])
        targets += own if places == "every" else [NO_LOSS] * (len(own) - 1) + own[-1:]
    return targets


@in_parts
@torch.no_grad()
def rank(
    ilm: ILM,
    tasks: ScoringTasks,
    *,
    task: Task,
    split: Split,
    users: np.ndarray,
    history_rules: Sequence[HistoryRule],
    batch_size: int = 256,
    autocast: bool = False,
) -> dict[HistoryRule, np.ndarray]:
    """The ten items that a model with a head scores highest for every user; (U', 10) a rule, -1 where none is left.

    Args:
        task: "sequential" shows the history; "straightforward" the user alone, whose vector is that of the training
            part.
        others: as in `tasks.openp5.rank`.
    """
    data = tasks.data
    ranked: dict[HistoryRule, list[np.ndarray]] = {rule: [] for rule in history_rules}
    lengths = np.array([min(len(data.history(u, split)), tasks.prompt.history_max) for u in users])
    order = np.argsort(lengths, kind="stable")  # like lengths share rows
    starts = range(0, len(users), batch_size)
    for start in progress(starts, f"scoring, {task} {split}", total=len(starts)):
        rows = users[order[start : start + batch_size]]
        seen = [data.history(u, split) for u in rows]
        histories = [items.tolist() if task == "sequential" else [] for items in seen]
        with torch.autocast(ilm.device.type, torch.bfloat16, enabled=autocast):
            asked = queries(ilm, histories, rows.tolist())
        for rule, tops in ranked.items():
            tops.append(top_items(asked, *ilm.table(), 10, seen if rule == "excluded" else None)[0].cpu().numpy())
    inverse = np.argsort(order)
    return {rule: np.concatenate(tops)[inverse] for rule, tops in ranked.items()}


def dev_metrics(ilm: ILM, tasks: ScoringTasks, users: np.ndarray, *, autocast: bool = False) -> dict[str, float]:
    """HR and NDCG on the dev item, history shown, and excluded from the ranking, as SASRec is chosen."""
    top = rank(ilm, tasks, task="sequential", split="dev", users=users, history_rules=("excluded",), autocast=autocast)
    return dev_means(top["excluded"], tasks.data.dev_targets()[users])
