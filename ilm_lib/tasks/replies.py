"""What is written in a conversation: the model's replies, and how probable it finds a person's.

A reply names items of the catalogue, each with words of the LLM's behind it. What is counted of replies is counted of
these words, without titles, which are put there and not written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ilm_lib.model.chat import Message
from ilm_lib.model.dialogue import Content, DialoguePrompt
from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.model.recommend import dialogue_prompt
from ilm_lib.model.reply import FRAME, LEADS

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM


class Name(str):
    """A film that a person names and the catalogue lacks: read as its name, and not counted as the person's words."""


@dataclass(frozen=True)
class Written:
    """A reply of the model.

    Attributes:
        named: rows of the items in the turns before.
        recommended: rows of the items it recommends.
        said: of each item that stands in the reply its row and the words that follow it, up to the next, without those
            that stand in every reply (`reply.LEADS`, `reply.FRAME`).
    """

    named: list[int]
    recommended: list[int]
    said: list[tuple[int, str]]


def write(ilm: ILM, dialogues: Sequence[Sequence[Message]], k: int = 2) -> list[Written]:
    """The model's replies to dialogues, the last turn of each the user's; `k` items each, as `ILM.chat` takes it."""
    replies = []
    for turns in dialogues:
        reply = ilm.chat(turns, k)
        said: list[tuple[int, str]] = []
        for part in reply:
            if isinstance(part, Item):
                said.append((part.row, ""))
            elif said and part not in (*LEADS, FRAME):
                said[-1] = said[-1][0], said[-1][1] + part
        named = [part.row for turn in reply.understood for part in turn["content"] if isinstance(part, Item)]
        replies.append(Written(named, [one.item.row for one in reply.recommended], said))
    return replies


def reply_measures(replies: Sequence[Written], num_items: int) -> dict[str, float]:
    """What can be counted of replies without asking anybody.

    Returns:
        "links_valid": the share of items in replies that the catalogue has and the model recommends; 1 is right.
        "repeated": the share of items recommended that had been named; 0 is right. "distinct-1", "distinct-2": see
        `distinct`. NaN where there is nothing to count.
    """
    shown = [(row, reply) for reply in replies for row, _ in reply.said]
    offered = [(row, reply) for reply in replies for row in reply.recommended]
    share = lambda hits: float(np.mean(hits)) if hits else float("nan")
    words = [text for reply in replies for _, text in reply.said]
    return {
        "links_valid": share([0 <= row < num_items and row in reply.recommended for row, reply in shown]),
        "repeated": share([row in reply.named for row, reply in offered]),
        **{f"distinct-{n}": distinct(words, n) for n in (1, 2)},
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all n-grams of texts (Li et al., arXiv 1510.03055); NaN where there is none.

    >>> distinct(["a good film", "a good book"], 2)  # "a good" comes twice
    0.75
    """
    grams = [gram for text in texts for gram in zip(*(text.lower().split()[start:] for start in range(n)))]
    return len(set(grams)) / len(grams) if grams else float("nan")


@torch.no_grad()
def person_nll(
    ilm: ILM, turns: Sequence[tuple[Sequence[Message], Content]], *, tokens: bool = True, batch: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """How improbable the model finds what a person said in its place: (n,) nats of each turn, and (n,) tokens.

    Counted are words. What a person says stands between the films it names, also those that the catalogue lacks
    (`Name`); of each stretch words count from its first blank on, so that the same tokens count however films are
    shown. So the first word of a turn does not count, and of a turn of films and single words nothing does.

    Args:
        turns: of each the turns before, the last the user's, and what the person said.
        tokens: False shows the LLM titles alone, in the dialogue and in the reply.
        batch: turns read at once.
    """
    shown = dialogue_prompt(ilm)
    shown = shown if tokens else replace(shown, titles=True, tokens=False)
    made = [_scored(ilm, shown, before, content) for before, content in turns]
    nats, counts = [], []
    for start in range(0, len(made), batch):
        part = made[start : start + batch]
        read = ilm.encode([prompt for prompt, _ in part])  # a row each, padded on the right
        labels = torch.full_like(read.input_ids, -100)
        for row, (_, places) in enumerate(part):
            labels[row, places] = read.input_ids[row, places]
        scored = (labels[:, 1:] != -100).nonzero()
        nll, count = ilm.token_nll(replace(read, labels=labels, scored=scored[:, 0] * labels.shape[1] + scored[:, 1]))
        nats.append(nll.double().cpu().numpy())
        counts.append(count.cpu().numpy())
    return np.concatenate(nats), np.concatenate(counts)


def _scored(ilm: ILM, shown: DialoguePrompt, before: Sequence[Message], content: Content) -> tuple[Prompt, list[int]]:
    """A prompt with what a person said at its end, and the places of the tokens that count."""
    titles = ilm.names().spoken
    asked = shown.render(shown.template(ilm.tokenizer), titles, before, ilm.num_users)
    prompt: list = [part for part in asked.prompt if not isinstance(part, User)]
    places: list[int] = []
    length = lambda: len(ilm.prompts.encode(prompt)[0])
    for part in content:
        if isinstance(part, Item):  # a blank before a title is the title's: no token spans it
            prompt += [f" {titles[part.row]}"] * shown.titles + [part] * shown.tokens
            continue
        if isinstance(part, Name):
            prompt.append(f" {part}")
            continue
        head, blank, rest = part.rstrip().partition(" ")
        prompt.append(head)
        start = length()
        prompt.append(blank + rest)
        places += range(start, length())
    return prompt, places
