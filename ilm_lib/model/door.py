"""The library's door: what a caller gives is checked once, here, before any work, and in the caller's words."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from ilm_lib.model.prompts import Item, Prompt, Special, User, whole
from ilm_lib.model.refusals import OutOfRange, TooLong, UnknownName, WrongKind, WrongValue, brief
from ilm_lib.sections import Readout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ilm_lib.model.catalogue import Catalogue
    from ilm_lib.model.ilm import ILM

# Arguments of transformers' `generate` that ours has no use for, and what to do instead.
_NOT_TAKEN = {
    **dict.fromkeys(
        ("inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "pad_token_id"),
        "it is made from the prompt",
    ),
    **dict.fromkeys(("custom_generate", "trust_remote_code"), "code from outside is not run"),
    "max_length": "give max_new_tokens",
    "generation_config": "give its options themselves",
    "stop_strings": "cut the text that comes back",
}
_NOBODY = "this model was saved without its users; give a history and no user"
_ONE_TEXT = "every prompt gets one text; give the prompt several times, with do_sample=True"
_number = lambda v: isinstance(v, Real) and not isinstance(v, bool) and isfinite(v)
_count = lambda v: whole(v) is not None
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_return_sequences": (lambda v: v in (None, 1), f"1: {_ONE_TEXT}"),
    "return_dict_in_generate": (lambda v: not v, "False: texts are returned"),
    "do_sample": (lambda v: isinstance(v, (bool, np.bool_)), "True or False"),
    "num_beams": (lambda v: _count(v) and 1 <= v <= 1_000, "a whole number from 1 to 1,000"),
    "temperature": (lambda v: v is None or (_number(v) and v > 0), "a number above 0; greedy is do_sample=False"),
    "top_p": (lambda v: v is None or (_number(v) and 0 < v <= 1), "a number above 0 and up to 1"),
    "top_k": (lambda v: v is None or (_count(v) and v >= 0), "a whole number from 0"),
    "repetition_penalty": (lambda v: v is None or (_number(v) and v > 0), "a number above 0"),
}
_OF_SAMPLING = ("temperature", "top_p", "top_k")


def whole_number(value: Any, name: str) -> int:
    """An int or a numpy integer from 1, as an int."""
    if (number := whole(value)) is None:
        raise WrongKind(f"{name} is {brief(value)}: give a whole number from 1")
    if number < 1:
        raise WrongValue(f"{name} is {brief(number)}: give a whole number from 1")
    return number


def yes_or_no(value: Any, name: str) -> bool:
    """True or False, and nothing that Python would take for one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise WrongKind(f"{name} is {brief(value)}: give True or False")
    return bool(value)


def as_prompts(given: str | Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """The prompts of `ILM.generate`, and whether one alone was given."""
    if isinstance(given, str):
        given = [given]
    if isinstance(given, bytes) or not isinstance(given, Sequence):
        raise WrongKind(f"a prompt is a list of str, Item and User, or a list of such lists, not {brief(given)}")
    if not given:
        raise WrongValue("the prompt is empty: give a list of str, Item and User")
    many = all(isinstance(p, (list, tuple)) for p in given)
    prompts = cast(list[Prompt], list(given) if many else [given])
    for number, prompt in enumerate(prompts):
        name = f"prompt {number}" if many else "the prompt"
        for segment in prompt:
            if isinstance(segment, (list, tuple)):
                raise WrongKind(
                    f"{name} holds {brief(segment)} beside or within another list: give one prompt as a list of str, "
                    "Item and User, or several as a list of such lists"
                )
            if not isinstance(segment, (str, Item, User, Special)):
                row = f", a row is Item({brief(segment)}) or User({brief(segment)})" if _count(segment) else ""
                raise WrongKind(f"{name} holds {brief(segment)}: a prompt is made of str, Item and User{row}")
        if lone := next((s for s in prompt if isinstance(s, str) and re.search("[\ud800-\udfff]", s)), None):
            raise WrongValue(f"{name} holds {brief(ascii(lone))}, half of a character: give text that UTF-8 can write")
        if not any(prompt):
            raise WrongValue(f"{name} is empty: give a text, an Item or a User")
    return prompts, not many


def fit(prompts: Iterable[Prompt], num_items: int, num_users: int, *, encoder: bool) -> None:
    """Refuse slots that a model cannot fill."""
    for slot in (s for prompt in prompts for s in prompt if isinstance(s, (Item, User))):
        if not encoder:
            raise WrongValue(f"{slot}: this model has no item encoder, the LLM alone cannot read it: write its title")
        known(slot, num_items, num_users)


def known(slot: Item | User, num_items: int, num_users: int) -> int:
    """The row of a slot that a model has."""
    kind, count = ("items", num_items) if isinstance(slot, Item) else ("users", num_users)
    if slot.row < count:
        return slot.row
    if not count:
        raise WrongValue(f"{brief(slot)}: {_NOBODY}")
    raise OutOfRange(f"{brief(slot)} is none of the model's {count:,} {kind}, whose rows run from 0 to {count - 1}")


def generation(llm: PreTrainedModel, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments for the LLM's `generate`: greedy decoding unless asked otherwise."""
    allowed = {*vars(GenerationConfig()), *inspect.signature(llm.generate).parameters} - {"self", "kwargs"}
    for name, value in kwargs.items():
        if name in _NOT_TAKEN:
            raise WrongKind(f"generate takes no {name}: {_NOT_TAKEN[name]}")
        if name not in allowed or name.startswith("_"):
            close = difflib.get_close_matches(name, allowed - {*_NOT_TAKEN}, 1)
            raise WrongKind(f"generate takes no {name[:40]!r}" + (f": did you mean {close[0]!r}?" if close else ""))
        if name in _RULES and not _RULES[name][0](value):
            raise WrongValue(f"{name} is {brief(value)}: it must be {_RULES[name][1]}")
    sampling = [name for name in _OF_SAMPLING if kwargs.get(name) is not None]
    if sampling and not kwargs.get("do_sample", False):
        raise WrongValue(f"{sampling[0]} does nothing without do_sample=True: give both or neither")
    return {"do_sample": False, **kwargs}


def history_rows(history: Any, catalogue: Catalogue, num_items: int, name: str = "history") -> list[int]:
    """Rows of a history, or of another argument, of Items, titles and ids."""
    if isinstance(history, (str, bytes, Item, User, Mapping, Set)) or not isinstance(history, Iterable):
        order = ", the oldest first" if name == "history" else ""
        remedy = f", write [{brief(history)}]" if isinstance(history, (str, Item)) else order
        raise WrongKind(f"{name} is {brief(history)}: give a list of Items, titles or ids{remedy}")
    rows = []
    for place, item in enumerate(history):
        if isinstance(item, str):
            rows.append(_named(item, catalogue, name).row)
        elif isinstance(item, Item):
            rows.append(known(item, num_items, 0))
        else:
            made = _instead("Item", item) if _count(item) else "an Item or a title"
            raise WrongKind(f"{name}[{place}] is {brief(item)}: give {made}")
    return rows


def _named(given: str, catalogue: Catalogue, argument: str) -> Item:
    """The item of a title or an id; of an argument other than a history the error says which it is."""
    try:
        return catalogue.item(given)
    except UnknownName as error:
        raise (error if argument == "history" else UnknownName(f"{argument}: {error}")) from None


def readout(ilm: ILM, given: Any) -> Readout:
    """How a model recommends: as asked, else by its head where it has one."""
    if given is None:
        return "score" if ilm.head is not None else "beam"
    if given not in get_args(Readout):
        raise WrongValue(f"readout is {brief(given)}: give 'beam' or 'score'")
    if given == "score" and ilm.head is None:
        raise WrongValue("readout is 'score', and this model has no head that scores items: train one, or give 'beam'")
    return given


def paired(users: Any, histories: Any) -> list[tuple[Any, Any]]:
    """One user for each history."""
    for name, given in (("users", users), ("histories", histories)):
        if given is not None and (isinstance(given, (str, bytes, Item, User)) or not isinstance(given, Sequence)):
            raise WrongKind(f"{name} is {brief(given)}: give a list, with one entry for each who asks")
    if histories is None or (users is not None and len(users) != len(histories)):
        counts = f"{len(users)} users and {'no' if histories is None else len(histories)} histories"
        raise WrongValue(f"{counts}: give one history for each user, [] where there is none")
    return list(zip(users if users is not None else [None] * len(histories), histories))


def _instead(kind: str, row: Any) -> str:
    """What to give in the place of a bare row."""
    return f"{kind}({brief(whole(row))}) for a row, {brief(str(row))} for an id"


def asker(ilm: ILM, user: Any, history: list[int]) -> tuple[int | User, Tensor | None]:
    """Who asks, for `Indexing.render`, and the vector of a user whom the model does not know."""
    if user is not None:
        return user_row(user, ilm), None
    if not history:
        raise WrongValue("neither user nor history: give a User, a user's id or a history")
    stranger = User(ilm.num_users)
    if ilm.encoder is None:
        return stranger, None
    if ilm.fold_in is None:
        raise WrongValue(
            "user is None, and this model cannot make a user's vector from a history (it has no fold_in): give a User "
            "or a user's id"
        )
    vector = ilm.fold_in(ilm.cf[: ilm.num_items].float().cpu().numpy(), history)
    return stranger, torch.from_numpy(vector).to(ilm.cf)


def user_row(user: Any, ilm: ILM) -> int:
    """The row of a User or of a user's id."""
    if isinstance(user, User):
        return known(user, ilm.num_items, ilm.num_users)
    if isinstance(user, str) and not ilm.num_users:
        raise WrongValue(f"user {brief(user)}: {_NOBODY}")
    if isinstance(user, str):
        return ilm.user(user).row
    made = _instead("User", user) if _count(user) else "a User or an id as text"
    raise WrongKind(f"user is {brief(user)}: give {made}")


def room(context: int, length: int, wanted: int) -> None:
    """Refuse answers that an LLM that reads `context` tokens cannot write after prompts of `length`."""
    if length + wanted > context:
        raise TooLong(
            f"max_new_tokens is {wanted} and the LLM reads {context} tokens, {length} of them the prompt's: give at "
            f"most {context - length}, or a shorter prompt"
        )


def agree(cf_shape: Sequence[int], num_items: int, catalogue: Catalogue | None) -> None:
    """Refuse embeddings and a catalogue that are not of the same items and users."""
    if len(cf_shape) != 2 or not _count(num_items) or not 0 < num_items <= cf_shape[0]:
        raise WrongValue(f"{brief(num_items)} items do not fit embeddings of shape {tuple(cf_shape)}: give (I + U, d)")
    if catalogue is None:
        return
    items, users = num_items, cf_shape[0] - num_items
    for name, count, wanted in (
        ("item ids", len(catalogue.item_ids), items),
        ("titles", len(catalogue.titles), items),
        ("item indexes", len(catalogue.indexing.item_index), items),
        ("user ids", len(catalogue.user_ids), users),
        ("user indexes", len(catalogue.indexing.user_index), users),
        ("texts", len(catalogue.texts) or items, items),
        ("weights", len(catalogue.weights) or items, items),
    ):
        if count != wanted:
            raise WrongValue(f"the catalogue has {count:,} {name} and the embeddings {wanted:,}: use one data set's")
