"""`ILM.recommend`, by either read-out: the LLM writes the names of items, or all items are scored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ilm_lib.model import door
from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.model.refusals import TooLong, WrongValue
from ilm_lib.model.scoring import top_items, users_in_front
from ilm_lib.sections import Readout

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM


@dataclass(frozen=True)
class Recommendation:
    """An item of `ILM.recommend`: its row, the id and title of one's own data, and how probable it is."""

    item: Item
    id: str
    title: str
    log_probability: float = field(metadata={"unit": "nats"})


@dataclass(frozen=True)
class Asked:
    """One who wants recommendations, checked: a row or a slot, the vector of a stranger, the history."""

    user: int | User | None
    guest: Tensor | None
    rows: list[int]

    @classmethod
    def of(cls, ilm: ILM, user: User | str | None, history: Iterable[Item | str], readout: Readout) -> Asked:
        """Checked against the model; the errors are those of `ILM.recommend`."""
        rows = door.history_rows(history, ilm.names(), ilm.num_items)
        if readout == "score":
            assert ilm.head is not None  # `door.readout` saw to it
            row = None if user is None else door.user_row(user, ilm)
            if not rows and (row is None or not ilm.head.prompt.shows_users):
                more = "" if row is None else ", and this model's score read-out reads no user alone"
                raise WrongValue(f"history is empty{more}: give a history")
            return cls(row, None, rows)
        return cls(*door.asker(ilm, user, rows), rows)


def recommend(
    ilm: ILM, users: Any, histories: Any, k: int, exclude: bool, readout: Readout | None
) -> list[list[Recommendation]]:
    """The k most probable items for everybody who asks, best first; arguments as `ILM.recommend_many` takes them."""
    ilm.names()
    k, exclude, readout = (
        door.whole_number(k, "k"),
        door.yes_or_no(exclude, "exclude_history"),
        door.readout(ilm, readout),
    )
    asked = [Asked.of(ilm, user, history, readout) for user, history in door.paired(users, histories)]
    if not asked:
        return []
    if readout == "score":
        items, scores = by_score(ilm, asked, k, exclude)
    else:
        found = [by_beam(ilm, one, k, exclude) for one in asked]
        items, scores = (torch.cat(parts) for parts in zip(*found))
    name = ilm.names()
    return [
        [
            Recommendation(Item(row), name.id(Item(row)), name.title(Item(row)), score)
            for row, score in zip(rows, found)
            if row >= 0
        ]
        for rows, found in zip(items.tolist(), scores.tolist())
    ]


def by_beam(ilm: ILM, one: Asked, k: int, exclude: bool) -> tuple[Tensor, Tensor]:
    """(1, k) item rows that the LLM writes, and their log probabilities (nats)."""
    names = ilm.names()
    assert one.user is not None  # `door.asker` saw to it
    source = names.sequential if one.rows else names.straightforward
    prompt = names.indexing.render(source, one.user, one.rows)
    banned = torch.tensor([one.rows], device=ilm.device) if one.rows and exclude else None
    try:
        prefill = ilm.prefill([prompt], None if one.guest is None else one.guest[None])
    except TooLong as error:
        raise TooLong(f"history has {len(one.rows)} items: {error}") from None
    beams = ilm.search(prefill, max(min(k, ilm.num_items), 10), banned)
    assert beams.items is not None  # they walked the trie of items
    return beams.items[:, :k], beams.scores[:, :k]


@torch.no_grad()
def by_score(ilm: ILM, asked: Sequence[Asked], k: int, exclude: bool) -> tuple[Tensor, Tensor]:
    """(B, k) item rows of the highest scores, and their log probabilities (nats) among all items.

    Where the prompt has a user's slot, what came before the items shown is in it; without a history it is the user's
    own vector.
    """
    head, shown = ilm.head, [one.rows for one in asked]
    assert head is not None, "a model without a head scores nothing"
    before = [rows[: -head.prompt.history_max] for rows in shown]
    front, guests = users_in_front(head.prompt, ilm.fold_in, ilm.cf[: ilm.num_items], ilm.num_users, before)
    prompts = [
        head.prompt.render(ilm.names(), user if one.rows else one.user, one.rows) for user, one in zip(front, asked)
    ]
    return top_items(last_queries(ilm, prompts, guests), *ilm.table(), k, shown if exclude else None)


def last_queries(ilm: ILM, prompts: Sequence[Prompt], guests: Tensor | None = None) -> Tensor:
    """(P, d) queries at the ends of prompts; `guests` as in `ILM.embed`."""
    assert ilm.head is not None, "a model without a head scores nothing"
    batch = ilm.encode(prompts, pack=True)
    last = torch.searchsorted(batch.slot_prompt, torch.arange(len(prompts), device=ilm.device), right=True) - 1
    states = ilm.slot_states(batch, guests)[last]
    with torch.autocast(ilm.device.type, enabled=False):  # a ranking is in full precision, whatever the LLM reads in
        return ilm.head.queries(states)
