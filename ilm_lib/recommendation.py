"""The OpenP5 tasks (section 4.1): training prompts drawn by index, and ranking by beam search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Callable, Sequence

import numpy as np
import torch

from ilm_lib.data import Dataset
from ilm_lib.data.templates import Template, select
from ilm_lib.indexing import Indexing
from ilm_lib.metrics import ranking_metrics
from ilm_lib.model import ILM, Catalogue
from ilm_lib.progress import progress
from ilm_lib.prompts import Batch, Prompt, PromptEncoder
from ilm_lib.training import drawn_batches

TASKS = ("sequential", "straightforward")
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
        """
        users, positions = self.data.train_example(rng.integers(self.data.num_train_examples, size=size))
        seen = {task: select(self.templates, task, "seen") for task in TASKS}
        kinds, shares = rng.integers(2, size=size).tolist(), rng.random(size).tolist()
        drawn = []
        for user, position, kind, share in zip(users.tolist(), positions.tolist(), kinds, shares):
            task = TASKS[kind]
            template = seen[task][int(share * len(seen[task]))]
            sequence = self.data.sequence(user)
            *history, target = sequence[max(0, position - self.history_max):position + 1].tolist()
            prompt = self.indexing.render(template.source, user, history if task == "sequential" else ())
            drawn.append((prompt, self.indexing.answer(template.target, target)))
        return drawn

    def corpus(self, count: int = 4000) -> list[str]:
        """Texts of `count` training prompts with their answers, slots left out, for the tokenizers."""
        return ["".join(s for s in prompt if isinstance(s, str)) + answer
                for prompt, answer in self.draw(np.random.default_rng(0), count)]

    def training_batches(self, encoder: PromptEncoder, size: int, loss_on: str, seed: int) -> Callable[[int], Batch]:
        """Batches for `training.fit`."""
        return drawn_batches(self.draw, partial(encoder.batch, loss_on=loss_on, pack=True), size, seed)

    def evaluation_prompts(self, task: str, prompt: str, split: str, users: np.ndarray) -> list[Prompt]:
        """One prompt a user: the first seen template, or the held-out one (design, reading 5)."""
        template = select(self.templates, task, prompt)[0]
        return [self.indexing.render(template.source, int(u), self.data.history(u, split)[-self.history_max:]
                                     if task == "sequential" else ()) for u in users]

    def catalogue(self) -> Catalogue:
        """What `ILM.recommend` needs, with the templates of the evaluation."""
        first = {task: select(self.templates, task, "seen")[0] for task in TASKS}
        titles = [t.get("title", self.data.items[i]) for i, t in enumerate(self.data.texts)]
        return Catalogue(self.indexing, titles, first["sequential"].source, first["straightforward"].source,
                         first["sequential"].target)


def rank(ilm: ILM, tasks: RecommendationTasks, *, task: str, prompt: str, split: str, users: np.ndarray,
         histories: Sequence[str], beams: int = 10, constrained: bool = True, batch_size: int = 64,
         autocast: bool = False) -> dict[str, np.ndarray]:
    """The items a model generates for every user.

    Args:
        users: (U',) user rows. split: "dev" or "test", whose history the prompts hold.
        histories: "kept" ranks all items; "excluded" bans the user's history, all of it.
        constrained: beams walk the trie of valid ids; otherwise they run free and answers that do
            not match the paper's regular expression, or are banned, are dropped.

    Returns:
        for every history rule (U', beams) item rows, best first, -1 where no valid item was left.
    """
    data = tasks.data
    by_index = {int(n): row for row, n in enumerate(data.item_index)}
    out: dict[str, list[np.ndarray]] = {h: [] for h in histories}
    # Prompts of like length share a batch, so little is read that is padding.
    lengths = np.array([min(len(data.history(u, split)), tasks.history_max) for u in users])
    order = np.argsort(lengths, kind="stable") if task == "sequential" else np.arange(len(users))
    starts = range(0, len(users), batch_size)
    for start in progress(starts, f"ranking, {task} {prompt} {split}", total=len(starts)):
        rows = users[order[start:start + batch_size]]
        seen = [data.history(u, split) for u in rows]
        banned = torch.full((len(rows), max(map(len, seen))), -1)
        for b, items in enumerate(seen):
            banned[b, :len(items)] = torch.from_numpy(np.ascontiguousarray(items))
        banned = banned.to(ilm.device)
        with torch.autocast(ilm.device.type, torch.bfloat16, enabled=autocast):
            prefill = ilm.prefill(tasks.evaluation_prompts(task, prompt, split, rows))
            for history in histories:
                bans = banned if history == "excluded" and constrained else None
                found = ilm.search(prefill, beams, bans, constrained)
                items = found.items.cpu().numpy() if constrained else _parse(ilm, found.tokens, by_index)
                if history == "excluded" and not constrained:
                    items = np.stack([_drop(row, set(ban)) for row, ban in zip(items, seen)])
                out[history].append(items)
    inverse = np.argsort(order)
    return {h: np.concatenate(parts)[inverse] for h, parts in out.items()}


def dev_metrics(ilm: ILM, tasks: RecommendationTasks, users: np.ndarray, **kwargs) -> dict[str, float]:
    """HR and NDCG on the dev item, seen prompts, history kept, both tasks together (section 4.4)."""
    tops = [rank(ilm, tasks, task=t, prompt="seen", split="dev", users=users, histories=("kept",), **kwargs)["kept"]
            for t in TASKS]
    target = tasks.data.dev_targets()[users]
    return {f"dev {name}": float(values.mean())
            for name, values in ranking_metrics(np.concatenate(tops), np.concatenate([target, target])).items()}


def _parse(ilm: ILM, tokens: torch.Tensor, by_index: dict[int, int]) -> np.ndarray:
    """(B, K, L) tokens to (B, K) item rows: valid answers first, in order; -1 for the rest."""
    pad = ilm.prompts.pad_id
    texts = ilm.tokenizer.batch_decode(torch.where(tokens < 0, pad, tokens).flatten(0, 1), skip_special_tokens=True)
    rows = []
    for text in texts:
        match = _ITEM.match(text.strip())
        rows.append(by_index.get(int(match.group(1)), -1) if match else -1)
    return np.stack([_drop(row, {-1}) for row in np.array(rows).reshape(tokens.shape[:2])])


def _drop(row: np.ndarray, banned: set[int]) -> np.ndarray:
    """Remove banned items and repeats; fill up with -1."""
    kept = [int(i) for i in dict.fromkeys(row.tolist()) if i not in banned]
    return np.array(kept + [-1] * (len(row) - len(kept)))
