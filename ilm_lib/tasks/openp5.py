"""The OpenP5 tasks (section 4.1): training prompts drawn by index, and ranking by beam search."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ilm_lib.data import Dataset
from ilm_lib.data.enough import TooSmall
from ilm_lib.data.splits import Split
from ilm_lib.data.templates import Task, Template, select
from ilm_lib.metrics import dev_means
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Batch, Prompt, PromptEncoder
from ilm_lib.processes import in_parts
from ilm_lib.progress import progress
from ilm_lib.settings import HistoryRule, Wording
from ilm_lib.train.loop import drawn_batches

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM
    from ilm_lib.model.readers import Prefill

TASKS: tuple[Task, ...] = ("sequential", "straightforward")
_ITEM = re.compile(r".*item_(\d+)$", re.DOTALL)  # section 4.2; outputs that do not match are invalid


@dataclass(frozen=True)
class RecommendationTasks:
    """The prompts of a dataset.

    Attributes:
        history_max: only the last items of a history enter the prompt (OpenP5: 20).
    """

    data: Dataset
    templates: Sequence[Template]
    indexing: Indexing
    history_max: int

    def draw(self, rng: np.random.Generator, size: int) -> list[tuple[Prompt, str]]:
        """`size` training prompts with their answers, uniform over examples, both tasks and seen templates.

        The examples are never laid out: ML1M alone has 19,629,820 of them (Table 2).

        Raises:
            TooSmall: there is none.
        """
        if not self.data.num_train_examples:
            raise TooSmall(f"{self.data.name}: no example to train on, which start at a user's fourth item. Add some")
        users, positions = self.data.train_example(rng.integers(self.data.num_train_examples, size=size))
        seen = {task: select(self.templates, task, "seen") for task in TASKS}
        kinds, shares = rng.integers(2, size=size).tolist(), rng.random(size).tolist()
        drawn = []
        for user, position, kind, share in zip(users.tolist(), positions.tolist(), kinds, shares):
            task = TASKS[kind]
            template = seen[task][int(share * len(seen[task]))]
            sequence = self.data.sequence(user)
            *history, target = sequence[max(0, position - self.history_max) : position + 1].tolist()
            prompt = self.indexing.render(template.source, user, history if task == "sequential" else ())
            drawn.append((prompt, self.indexing.answer(template.target, target)))
        return drawn

    def corpus(self, count: int = 4000) -> list[str]:
        """Texts of `count` training prompts with their answers, slots left out, for the tokenizers."""
        return [
            "".join(s for s in prompt if isinstance(s, str)) + answer
            for prompt, answer in self.draw(np.random.default_rng(0), count)
        ]

    def training_batches(self, encoder: PromptEncoder, size: int, loss_on: str, seed: int) -> Callable[[int], Batch]:
        """Batches for `loop.fit`."""
        return drawn_batches(self.draw, partial(encoder.batch, loss_on=loss_on, pack=True), size, seed)

    def evaluation_prompts(self, task: Task, wording: Wording, split: Split, users: np.ndarray) -> list[Prompt]:
        """One prompt a user, by the first template of the task that is worded so."""
        source = select(self.templates, task, wording)[0].source
        prompts = []
        for user in users:
            history = self.data.history(user, split)[-self.history_max :] if task == "sequential" else ()
            prompts.append(self.indexing.render(source, int(user), history))
        return prompts

    def catalogue(self) -> Catalogue:
        """What `ILM.recommend` needs, with the templates of the evaluation."""
        first = {task: select(self.templates, task, "seen")[0] for task in TASKS}
        return Catalogue(
            self.indexing,
            item_ids=self.data.items,
            user_ids=self.data.users,
            titles=[str(text.get("title") or item) for item, text in zip(self.data.items, self.data.texts)],
            sequential=first["sequential"].source,
            straightforward=first["straightforward"].source,
            target=first["sequential"].target,
            texts=[self.data.item_text(row) for row in range(self.data.num_items)] if any(self.data.texts) else (),
            weights=self.data.item_counts().tolist(),
        )


@in_parts
def rank(
    ilm: ILM,
    tasks: RecommendationTasks,
    *,
    task: Task,
    wording: Wording,
    split: Split,
    users: np.ndarray,
    history_rules: Sequence[HistoryRule],
    beams: int = 10,
    constrained: bool = True,
    batch_size: int = 64,
    autocast: bool = False,
) -> dict[HistoryRule, np.ndarray]:
    """The items a model generates for every user.

    Args:
        ilm: the model.
        tasks: the prompts, and the data they are about.
        task: "sequential" or "straightforward".
        wording: of the prompts, "seen" or "unseen".
        split: "dev" or "test", whose history the prompts hold.
        users: (U',) user rows.
        history_rules: "kept" ranks all items; "excluded" bans the user's history, all of it.
        beams: width of the search.
        constrained: beams walk the trie of valid ids; otherwise they run free and answers that do
            not match the paper's regular expression, or are banned, are dropped.
        batch_size: users read at once.
        autocast: read in bfloat16.

    Returns:
        for every history rule (U', beams) item rows, best first, -1 where no valid item was left.
    """
    data = tasks.data
    item_of_index = {int(index): row for row, index in enumerate(data.item_index)}
    ranked: dict[HistoryRule, list[np.ndarray]] = {rule: [] for rule in history_rules}
    # Prompts of like length share a batch, so little is read that is padding.
    lengths = np.array([min(len(data.history(u, split)), tasks.history_max) for u in users])
    order = np.argsort(lengths, kind="stable") if task == "sequential" else np.arange(len(users))
    starts = range(0, len(users), batch_size)
    for start in progress(starts, f"ranking, {task} {wording} {split}", total=len(starts)):
        rows = users[order[start : start + batch_size]]
        seen = [data.history(u, split) for u in rows]
        with torch.autocast(ilm.device.type, torch.bfloat16, enabled=autocast):
            prefill = ilm.prefill(tasks.evaluation_prompts(task, wording, split, rows))
            for rule, items in ranked.items():
                banned = seen if rule == "excluded" else None
                if constrained:
                    items.append(_search(ilm, prefill, beams, banned))
                else:
                    items.append(_search_freely(ilm, prefill, beams, banned, item_of_index))
    inverse = np.argsort(order)
    return {rule: np.concatenate(parts)[inverse] for rule, parts in ranked.items()}


def _search(ilm: ILM, prefill: Prefill, beams: int, banned: Sequence[np.ndarray] | None) -> np.ndarray:
    """(B, beams) item rows of a search among the answers that items have; `banned`: item rows, for every prompt."""
    bans = None
    if banned is not None:
        bans = torch.full((len(banned), max(map(len, banned))), -1)
        for row, items in zip(bans, banned):
            row[: len(items)] = torch.from_numpy(np.ascontiguousarray(items))
        bans = bans.to(ilm.device)
    return ilm.search(prefill, beams, bans).items.cpu().numpy()


def _search_freely(
    ilm: ILM, prefill: Prefill, beams: int, banned: Sequence[np.ndarray] | None, item_of_index: dict[int, int]
) -> np.ndarray:
    """`_search` among all texts; what is no item, or is banned, is dropped."""
    items = _parse(ilm, ilm.search(prefill, beams, constrained=False).tokens, item_of_index)
    if banned is None:
        return items
    return np.stack([_drop(row, set(ban.tolist())) for row, ban in zip(items, banned)])


def dev_metrics(ilm: ILM, tasks: RecommendationTasks, users: np.ndarray, *, batch_size: int = 64) -> dict[str, float]:
    """HR and NDCG on the dev item, seen prompts, history kept, both tasks together (section 4.4)."""
    tops = []
    for task in TASKS:
        ranked = rank(
            ilm,
            tasks,
            task=task,
            wording="seen",
            split="dev",
            users=users,
            history_rules=("kept",),
            batch_size=batch_size,
        )
        tops.append(ranked["kept"])
    target = tasks.data.dev_targets()[users]
    return dev_means(np.concatenate(tops), np.concatenate([target, target]))


@torch.no_grad()
def beam_recall(
    ilm: ILM, tasks: RecommendationTasks, *, task: Task, users: np.ndarray, beams: int = 10, batch_size: int = 16
) -> np.ndarray:
    """(U',) how much of the true top ten a beam finds: the ten most probable of all items, each item scored.

    Seen prompts, test split, history kept, in the model's own precision.
    """
    from ilm_lib.model.exhaustive import score_all  # it loads transformers, which reading prompts need not wait for

    shares, starts = [], range(0, len(users), batch_size)
    for start in progress(starts, f"scoring every item, {task}", total=len(starts)):
        prefill = ilm.prefill(tasks.evaluation_prompts(task, "seen", "test", users[start : start + batch_size]))
        true = score_all(ilm.llm, prefill, ilm.trie).topk(min(10, tasks.data.num_items)).indices
        found = ilm.search(prefill, beams).items[:, :10]
        shares.append((true[:, :, None] == found[:, None]).any(2).float().mean(1))
    return torch.cat(shares).cpu().numpy()


def _parse(ilm: ILM, tokens: torch.Tensor, item_of_index: dict[int, int]) -> np.ndarray:
    """(B, K, L) tokens to (B, K) item rows: valid answers first, in order; -1 for the rest."""
    pad = ilm.prompts.pad_id
    texts = ilm.tokenizer.batch_decode(torch.where(tokens < 0, pad, tokens).flatten(0, 1), skip_special_tokens=True)
    rows = []
    for text in texts:
        match = _ITEM.match(text.strip())
        rows.append(item_of_index.get(int(match.group(1)), -1) if match else -1)
    return np.stack([_drop(row, {-1}) for row in np.array(rows).reshape(tokens.shape[:2])])


def _drop(row: np.ndarray, banned: set[int]) -> np.ndarray:
    """Remove banned items and repeats; fill up with -1."""
    kept = [int(i) for i in dict.fromkeys(row.tolist()) if i not in banned]
    return np.array(kept + [-1] * (len(row) - len(kept)))
