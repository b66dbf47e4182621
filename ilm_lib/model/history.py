"""A history as the score read-out reads it: items in time order, perhaps with words, and who had them in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.sections import Words

if TYPE_CHECKING:
    from ilm_lib.model.catalogue import Catalogue
    from ilm_lib.model.fold_in import FoldIn


@dataclass(frozen=True)
class HistoryPrompt:
    """How somebody's history stands in the prompt of the score read-out.

    Attributes:
        words: "none": item tokens alone; "title": each item's title before its tokens; "template": OpenP5's sequential
            template, in which an item's index comes before its tokens. An item is asked for before its words are read.
        user: with the user's slot in front (a template says itself where the user stands).
        history_max: only the last items enter.
    """

    words: Words = "none"
    user: bool = False
    history_max: int = 50

    @property
    def shows_users(self) -> bool:
        """Whether its prompts have a user's slot."""
        return self.user or self.words == "template"

    def render(self, catalogue: Catalogue, user: int | User | None, rows: Sequence[int]) -> Prompt:
        """The prompt of a history, the oldest item first; its items are its last slots."""
        rows = rows[-self.history_max :]
        if self.words == "template":
            source = catalogue.sequential if len(rows) else catalogue.straightforward
            return catalogue.indexing.render(source, user if user is not None else User(len(catalogue.user_ids)), rows)
        prompt: list[str | Item | User] = []
        if self.user and user is not None:
            prompt.append(user if isinstance(user, User) else User(user))
        for number, row in enumerate(rows):
            if self.words == "title":
                prompt.append(f"{' , ' if number else ' '}{catalogue.titles[row]}")
            prompt.append(Item(int(row)))
        return prompt


def users_in_front(
    prompt: HistoryPrompt, fold_in: FoldIn | None, vectors: Tensor, num_users: int, before: Sequence[Sequence[int]]
) -> tuple[list[User | None], Tensor | None]:
    """Whose slot goes in front of each history, and the vectors of these users, (n, d), as guests of the model.

    A vector is made of what came before the items shown, so no target of training is in it. Somebody of whom nothing
    is known has no slot, except where the words name a user.

    Args:
        vectors: (I, d) of all items.
        before: item rows that came before those shown, of each of n users.
    """
    if not prompt.shows_users:
        return [None] * len(before), None
    if fold_in is None:
        guests = vectors.new_zeros(len(before), vectors.shape[1])
    else:
        guests = torch.from_numpy(fold_in.many(vectors.float().cpu().numpy(), before)).to(vectors)
    named = prompt.words == "template"
    return [User(num_users + n) if named or len(rows) else None for n, rows in enumerate(before)], guests
