"""`ILM.recommend`, by either read-out: the LLM writes the names of items, or all items are scored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ilm_lib.model import door
from ilm_lib.model.chat import Message
from ilm_lib.model.dialogue import AskedPrompt, DialoguePrompt
from ilm_lib.model.history import users_in_front
from ilm_lib.model.prompts import Batch, Item, Prompt, User
from ilm_lib.model.refusals import TooLong, WrongValue
from ilm_lib.model.scoring import top_items
from ilm_lib.sections import Readout

if TYPE_CHECKING:
    from ilm_lib.model.catalogue import Catalogue
    from ilm_lib.model.ilm import ILM

POSITIONS = (1 << 11, 1 << 16)  # that the LLM reads at once for the score read-out, on a CPU and on a GPU


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
    name, k = ilm.names(), door.whole_number(k, "k")
    exclude, readout = door.yes_or_no(exclude, "exclude_history"), door.readout(ilm, readout)
    asked = [Asked.of(ilm, user, history, readout) for user, history in door.paired(users, histories)]
    if not asked:
        return []
    items, scores = best_items(ilm, asked, k, exclude, readout)
    return [recommended(name, rows, found) for rows, found in zip(items.tolist(), scores.tolist())]


def recommended(names: Catalogue, rows: Sequence[int], scores: Sequence[float]) -> list[Recommendation]:
    """Recommendations by their rows and log probabilities (nats); a row below 0 is none."""
    return [
        Recommendation(Item(row), names.id(Item(row)), names.title(Item(row)), score)
        for row, score in zip(rows, scores)
        if row >= 0
    ]


def best_items(ilm: ILM, asked: Sequence[Asked], k: int, exclude: bool, readout: Readout) -> tuple[Tensor, Tensor]:
    """(B, k') item rows, best first, -1 where fewer are left, and their log probabilities (nats)."""
    if readout == "score":
        return by_score(ilm, asked, k, exclude)
    items, scores = zip(*(by_beam(ilm, one, k, exclude) for one in asked))
    return torch.cat(items), torch.cat(scores)


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
    """(B, k) item rows of the highest scores, and their log probabilities (nats) among all items."""
    shown = [one.rows for one in asked]
    return top_items(queries(ilm, shown, [one.user for one in asked]), *ilm.table(), k, shown if exclude else None)


def queries(ilm: ILM, histories: Sequence[Sequence[int]], alone: Sequence[int | User | None] | None = None) -> Tensor:
    """(B, d) queries after histories of item rows, the oldest first, for `ILM.table`.

    Where the prompt has a user's slot, what came before the items shown is in it; without a history it is the user's
    own vector.

    Args:
        alone: who asks, for those without a history.
    """
    head = ilm.head
    assert head is not None, "a model without a head scores nothing"
    if isinstance(head.prompt, DialoguePrompt):
        said = lambda rows: [part for row in rows for part in (Item(row), ", ")][:-1]
        return dialogue_queries(ilm, [[{"role": "user", "content": said(rows)}] for rows in histories])
    before = [rows[: -head.prompt.history_max] for rows in histories]
    front, guests = users_in_front(head.prompt, ilm.fold_in, ilm.cf[: ilm.num_items], ilm.num_users, before)
    asked = [
        head.prompt.render(ilm.names(), user if len(rows) else one, rows)
        for user, one, rows in zip(front, alone or [None] * len(front), histories)
    ]
    found = last_queries(ilm, asked, guests)
    return found if ilm.factors is None else ilm.factors.queries(found, ilm.cf[: ilm.num_items], histories)


def dialogue_queries(ilm: ILM, dialogues: Sequence[Sequence[Message]]) -> Tensor:
    """(B, d) queries where the assistant is to speak in dialogues, for `ILM.table`.

    Args:
        dialogues: of each the turns, the oldest first, with Items in the place of their names.
    """
    shown, titles = dialogue_prompt(ilm), ilm.names().spoken
    asked = shown.render_all(shown.template(ilm.tokenizer), titles, dialogues, ilm.num_users)
    last = torch.tensor([len(one.named) for one in asked]).cumsum(0) - 1
    return place_queries(ilm, asked)[last.to(ilm.device)]


def dialogue_prompt(ilm: ILM) -> DialoguePrompt:
    """How a model that was trained on dialogues reads them; WrongValue for another."""
    if ilm.head is None or not isinstance(ilm.head.prompt, DialoguePrompt):
        raise WrongValue("this model was not trained on dialogues: give one that was")
    return ilm.head.prompt


@torch.no_grad()
def place_queries(ilm: ILM, asked: Sequence[AskedPrompt], *, held: bool = False) -> Tensor:
    """(A, d) queries of all places that dialogues ask at, in the order of their users, `User(num_users)` and on.

    Args:
        held: each is read on from what is held of a conversation that begins like it (`held`).
    """
    assert ilm.head is not None, "a model without a head scores nothing"
    items, guests = ilm.cf[: ilm.num_items], ilm.seekers.of_places(asked)
    found = items.new_zeros(len(guests), ilm.head.width)
    for batch, _ in read_alike(ilm, [one.prompt for one in asked], share_rows=False, together=not held):
        place = batch.entities[batch.slot_entity] - len(ilm.cf)  # below 0 at items
        states = ilm.slot_states(batch, guests, held=held and len(batch.slot_read) > 0)[place >= 0]
        with torch.autocast(ilm.device.type, enabled=False):
            found[place[place >= 0]] = ilm.head.queries(states)
    if ilm.factors is None:
        return found
    return ilm.factors.queries(found, items, [rows for one in asked for rows in one.named])


def last_queries(ilm: ILM, prompts: Sequence[Prompt], guests: Tensor | None = None) -> Tensor:
    """(P, d) queries at the ends of prompts; `guests` as in `ILM.embed`."""
    assert ilm.head is not None, "a model without a head scores nothing"
    found = ilm.cf.new_zeros(len(prompts), ilm.head.width)
    for batch, which in read_alike(ilm, prompts):
        number = torch.arange(len(which), device=ilm.device)
        last = torch.searchsorted(batch.slot_prompt, number, right=True) - 1
        states = ilm.slot_states(batch, guests)[last]
        with torch.autocast(ilm.device.type, enabled=False):  # a ranking is exact, whatever the LLM reads in
            found[which] = ilm.head.queries(states)
    return found


def read_alike(
    ilm: ILM, prompts: Sequence[Prompt], *, share_rows: bool = True, together: bool = True
) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Prompts in batches, and which of them each has.

    The LLM reads prompts of like length together, some thousand positions at a time: memory does not grow with P, and
    what a pass makes stays near the processor. So little is padding that rows are shared only by short prompts, over
    which attention one by one is slow.

    Args:
        share_rows: where they are short.
        together: False: each prompt is a batch of its own.
    """
    length = [len(ilm.prompts.encode(prompt)[0]) for prompt in prompts]
    order = sorted(range(len(prompts)), key=length.__getitem__)
    for part in alike([length[p] for p in order], POSITIONS[ilm.device.type != "cpu"] if together else 0):
        which = order[part]
        yield ilm.encode([prompts[p] for p in which], pack=share_rows and length[which[-1]] < 32), which


def alike(length: Sequence[int], most: int) -> Iterator[slice]:
    """Parts of prompts of rising length (P,) that fill no more than `most` positions, or one prompt each."""
    start = 0
    for end in range(1, len(length) + 1):
        if end == len(length) or length[end] * (end + 1 - start) > most:
            yield slice(start, end)
            start = end
