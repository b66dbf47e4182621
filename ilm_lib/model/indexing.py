"""Names of items and users in text, and templates filled with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from string import Formatter

import numpy as np

from ilm_lib.model.prompts import CUT, Item, Prompt, User

STRANGER = "0"  # users are numbered from 1


@dataclass(frozen=True)
class Indexing:
    """How items and users are named in text: `item_1234`, `user_17` (random indexing of OpenP5)."""

    dataset: str
    user_index: np.ndarray
    item_index: np.ndarray
    history_separator: str = " , "

    def render(self, source: str, user: int | User, history: Iterable[int] = ()) -> Prompt:
        """Fill a template; every index is followed by the slot of its embedding (section 4.1).

        Texts are cut where `PromptEncoder` may cut them, so that the pieces are few and come again.

        Args:
            source: e.g. "What follows {dataset} items {history} for {dataset} user_{user_id} ?"
            user: a row, or the slot of somebody who is none of the data's users and is called `STRANGER`.
        """
        prompt: list[str | Item | User] = []
        for texts, lead, field in _parts(source, self.dataset):
            prompt += texts
            if field == "user_id":
                prompt += [lead + STRANGER, user] if isinstance(user, User) else self._named_user(lead, user)
            elif field == "history":
                for row in history:
                    prompt += self._named_item(lead, int(row))
                    lead = self.history_separator
        return prompt

    def names(self) -> list[str]:
        """All items and users as texts name them."""
        return [*(f"item_{i}" for i in self.item_index), *(f"user_{u}" for u in self.user_index)]

    def answer(self, target: str, row: int) -> str:
        """The answer's text, e.g. " Toy item_1234", from a template's target."""
        return self._answer(target, int(row))

    # Bounded: a catalogue's users may be many more than are met again soon.

    @cached_property
    def _named_user(self) -> Callable[[str, int], tuple[str, User]]:
        return lru_cache(1 << 16)(lambda lead, row: (f"{lead}{self.user_index[row]}", User(row)))

    @cached_property
    def _named_item(self) -> Callable[[str, int], tuple[str, Item]]:
        return lru_cache(1 << 16)(lambda lead, row: (f"{lead}item_{self.item_index[row]}", Item(row)))

    @cached_property
    def _answer(self) -> Callable[[str, int], str]:
        def answer(target: str, row: int) -> str:
            text = target.replace("{dataset}", self.dataset)
            if "item_{target}" not in text:
                text = text.replace("{target}", "item_{target}")
            return " " + text.replace("{target}", str(self.item_index[row])).strip()

        return lru_cache(1 << 16)(answer)


@lru_cache(None)
def _parts(source: str, dataset: str) -> list[tuple[list[str], str, str | None]]:
    """A template as texts, what leads up to a field ("user_") and the field, again and again.

    Words that touch a field are pieces of their own, because the same words come with every value of it.
    """
    parts, text = [], ""
    for literal, field, _, _ in Formatter().parse(source):
        text += literal + (dataset if field == "dataset" else "")
        if field in ("user_id", "history"):
            *texts, lead = CUT.split(text)
            parts.append((_ends(texts), lead, field))
            text = ""
    return [*parts, (_ends(CUT.split(text)), "", None)]


def _ends(words: list[str]) -> list[str]:
    """The first word, then the others in one."""
    return [text for text in (words[0], "".join(words[1:])) if text] if words else []
