"""What is wrong with a setting, in plain words: pydantic's errors name the rule, these name the key and the remedy."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ilm_lib.errors import LONGEST

#: Where all keys are, with their defaults and what they mean.
KEYS = "ilm_lib/settings.py"
#: Whose values are not repeated: an address may hold a password, and a key may stand where its variable's name belongs.
_SECRET = ("elm24.teacher_url", "elm24.teacher_key_env")


class Wrong(ValueError):
    """What is wrong with a value, to go behind its key and the value; other ValueErrors name their keys themselves."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 40
_short.maxlist = _short.maxtuple = _short.maxdict = 3
_short.maxlevel = 2


def shown(value: Any) -> str:
    """A value as Python writes it, cut to some 40 characters."""
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to write out the largest ones
        return "a number of more than 30 digits"
    return _short.repr(value)[:80]


def fitting(names: Iterable[str], room: int, all_in: str) -> str:
    """Names beside commas, as many as fit, and where all of them are."""
    names = list(names)
    if len(text := ", ".join(names)) <= room:
        return text
    while names and len(", ".join(names)) > room - len(all_in) - 15:
        names.pop()
    return f"{', '.join(names)} ... (all: {all_in})"


def unknown_key(where: str, key: str, allowed: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """The message for a key that is not among the allowed ones of a section.

    Args:
        where: the section with its dot, or "".
        elsewhere: dotted keys of other sections; one that ends in `key` is what was meant.
    """
    close = difflib.get_close_matches(key, allowed, 1) or [k for k in elsewhere if k.rpartition(".")[2] == key][:1]
    section, _, inner = key.partition(".")
    if inner and section in allowed:
        hint = f" Write it as {section}: {{{inner[:40]}: ...}}."
    else:
        hint = f" Did you mean {close[0]!r}?" if close else ""
    start = f"unknown parameter {shown(where + key)}.{hint} Allowed: "
    return start + fitting(allowed, LONGEST - 60 - len(start), KEYS)


def explain(errors: Sequence[Any], model: type[BaseModel], place: Callable[[tuple[Any, ...]], str]) -> str:
    """One message for all errors: the first in words, the others by their keys.

    Args:
        model: what was validated.
        place: "mine.yaml:4: " for a key that a file gives in its line 4, else "".
    """
    first = errors[0]
    said = place(first["loc"]) + _one(first, model)
    others = list(dict.fromkeys(_dotted(e["loc"]) for e in errors[1:]))
    if not others:
        return said
    return f"{said}. Wrong, too: {fitting(others, max(20, LONGEST - 30 - len(said)), 'mend these first')}"


def _dotted(loc: Iterable[Any]) -> str:
    return ".".join(shown(part)[1:-1] if isinstance(part, str) else str(part) for part in loc)


def _one(error: Any, model: type[BaseModel]) -> str:
    kind, loc, value, ctx = error["type"], error["loc"], error["input"], error.get("ctx", {})
    key = _dotted(loc)
    if kind == "extra_forbidden":
        section, where = _section(model, loc[:-1]), "".join(f"{part}." for part in loc[:-1])
        return unknown_key(where, str(loc[-1]), sorted(section.model_fields), list(_all_keys(model)))
    if kind == "value_error" and not isinstance(ctx["error"], Wrong):
        return str(ctx["error"])
    if kind == "missing":
        return f"{key} is missing; give it a value"
    if kind == "invalid_key":
        return f"the key {key} is no text; keys are names"
    annotation, metadata = _field(model, loc)
    given = "the value" if key in _SECRET else shown(value)
    if kind == "value_error":
        return f"{key}: {ctx['error']}" if isinstance(value, Mapping) else f"{key}: {given} {ctx['error']}"
    if value is None:
        remedy = f"give {_wanted(annotation, metadata)}, or leave the key out"
        return f"{key} has no value; {remedy}"
    return f"{key}: {given} {_wrong(kind, value, annotation, metadata)}"


def _wrong(kind: str, value: Any, annotation: Any, metadata: Sequence[Any]) -> str:
    """The rest of the sentence after key and value."""
    wanted = _wanted(annotation, metadata)
    if kind.startswith("int"):
        return f"is no whole number; give {wanted}"
    if kind.startswith("float") or kind == "finite_number":
        return f"is no {'finite ' if kind == 'finite_number' else ''}number; give {wanted}"
    if kind.startswith(("greater", "less")):
        return f"is out of range; give {wanted}"
    if kind.startswith("bool"):
        return "is neither true nor false; give one of them"
    if kind == "literal_error":
        return f"is none of {wanted}; give one of them"
    if kind.startswith("string"):
        return "is no text; write it in quotes"
    if kind.startswith("tuple"):
        return "is no list; write it in brackets, e.g. [1, 2] or [MLP, ILM]"
    if kind in {"model_type", "model_attributes_type", "dict_type"}:
        return f"is no section; give it keys with values, as {KEYS} lists them"
    return f"cannot be used here; {KEYS} says what may stand there"


def _wanted(annotation: Any, metadata: Sequence[Any]) -> str:
    """What a field takes, e.g. "1 or more", "a number above 0 and below 1, or null", "linear, cosine"."""
    leaves = list(_leaves(annotation))
    literals = [choice for leaf in leaves if get_origin(leaf) is Literal for choice in get_args(leaf)]
    null = ", or null" if type(None) in leaves else ""
    if literals:
        return ", ".join(literals) + null
    if int not in leaves and float not in leaves:
        return ("text" if str in leaves else "true or false" if bool in leaves else "keys with values") + null
    low, high, whole = "", "", int in leaves
    for limit in _limits([*metadata, *_nested(annotation)]):
        if hasattr(limit, "ge"):
            low = f"{limit.ge} or more"
        elif hasattr(limit, "gt"):
            low = f"{limit.gt + 1} or more" if whole else f"more than {limit.gt}"
        elif hasattr(limit, "le"):
            high = f"at most {limit.le:,}"
        elif hasattr(limit, "lt"):
            high = f"less than {limit.lt}"
    if low.endswith("or more") and high.startswith("at most"):
        return f"{low.split()[0]} to {high.split()[-1]}{null}"
    return (" and ".join(filter(None, (low, high))) or "a number") + null


def admits(annotation: Any, *kinds: type) -> bool:
    """Whether a field's type, or what it holds, is one of these."""
    return any(leaf in kinds for leaf in _leaves(annotation))


def _leaves(annotation: Any) -> Iterator[Any]:
    """The plain types that a type is made of."""
    if get_origin(annotation) is Annotated:
        yield from _leaves(get_args(annotation)[0])
    elif get_origin(annotation) is None or get_origin(annotation) is Literal:
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _leaves(part)


def _nested(annotation: Any) -> Iterator[Any]:
    """What `Annotated` says anywhere inside a type."""
    if get_origin(annotation) is Annotated:
        yield from get_args(annotation)[1:]
    for part in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _nested(part)


def _limits(metadata: Iterable[Any]) -> Iterator[Any]:
    for one in metadata:
        yield from one.metadata if isinstance(one, FieldInfo) else (one,)


def _section(model: type[BaseModel], path: Iterable[Any]) -> type[BaseModel]:
    for part in path:
        model = model.model_fields[str(part)].annotation  # type: ignore[assignment]
    return model


def _field(model: type[BaseModel], loc: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """Type and metadata of the field that an error is about; an element of a list is about the list's field."""
    annotation: Any = model
    metadata: Sequence[Any] = ()
    for part in loc:
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        field = annotation.model_fields[str(part)]
        annotation, metadata = field.annotation, field.metadata
    return annotation, metadata


def _all_keys(model: type[BaseModel]) -> Iterator[str]:
    fields: Mapping[str, FieldInfo] = model.model_fields
    for name, field in fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}.{inner}" for inner in field.annotation.model_fields)
        else:
            yield name
