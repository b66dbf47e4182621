"""What a setting may be: numbers within bounds, names that can stand in prompts and pages, places of files.

And how settings are laid over settings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import date
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ilm_lib.explain import Wrong, admits

MOST = 2**31 - 1  # of every whole number: what the libraries below take for a seed

Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
#: A width or a length: more would fit no memory.
Size = Annotated[int, Field(ge=1, le=65_536)]
#: Layers, heads, tokens of an item.
Few = Annotated[int, Field(ge=1, le=1_024)]
#: Losses that compare the rows of a batch need two of them.
Batch = Annotated[int, Field(ge=2, le=1_000_000)]
Rate = Annotated[float, Field(gt=0, le=10)]
Share = Annotated[float, Field(gt=0, lt=1)]
#: Cosines are divided by it: below, they leave what float32 can tell apart; above, all are alike.
Temperature = Annotated[float, Field(ge=0.001, le=100)]


class Section(BaseModel):
    """Settings of one kind; not to be changed, and no key that is not theirs."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if any(isinstance(one, bool) for one in _each(value)) and admits(kind, int, float):
            raise Wrong("is no number; write one")  # pydantic takes true for 1
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _no_giant(cls, value: Any) -> Any:
        if any(isinstance(one, int) and one > MOST for one in _each(value)):
            raise Wrong(f"is too large; give at most {MOST:,}")
        return value

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        width, heads = getattr(self, "width", 0), getattr(self, "heads", 1)
        if width % heads:
            raise Wrong(f"width {width} is not a multiple of heads {heads}; change one of them")
        return self


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def distinct(key: str, values: Sequence[Any], *, least: int = 0) -> None:
    """Raises ValueError where a list names something twice, or fewer than `least`."""
    if len(values) < least:
        raise ValueError(f"{key} is empty; name one at least, or leave the key out")
    if twice := [v for i, v in enumerate(values) if v in values[:i]]:
        raise ValueError(f"{key} names {twice[0]!r} twice; name it once")


def _seen(text: str, most: int) -> str:
    if not text.strip():
        raise Wrong("is blank; write a name or leave the key out")
    if not text.isprintable():
        raise Wrong("holds a character that is not printed, e.g. a line break or a tab; remove it")
    if text != text.strip():
        raise Wrong("begins or ends with a blank; remove it")
    if len(text) > most:
        raise Wrong(f"has {len(text)} characters; give at most {most}")
    return text


def _name(text: str) -> str:
    return _seen(text, 100)


def _place(text: str) -> str:
    if _seen(text, 1_000).startswith("~"):
        raise Wrong("begins with ~, which stays as it is; write the folder out")
    return text


def _separator(text: str) -> str:
    if not text or len(text) > 20 or re.search(r"[\d_]", text) or not text.replace("\n", "").isprintable():
        raise Wrong("cannot part two items; give 1 to 20 characters without digits, _ and tabs, e.g. ' , '")
    return text


def _moment(value: Any) -> float | str:
    with suppress(TypeError, ValueError):
        if isinstance(value, str):
            return date.fromisoformat(value).isoformat()
        if 0 < value < 1:
            return float(value)
    raise Wrong('is neither a share nor a date; give a number above 0 and below 1, or a day in quotes as "2015-06-01"')


_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def names_a_folder(name: str) -> bool:
    """Whether a profile may be called so: its name is that of folders, on every system, and goes to a shell."""
    plain = re.fullmatch(r"\w[\w.-]*", name) and not name.endswith(".") and len(name.encode()) <= 100
    return bool(plain) and name.split(".")[0].lower() not in _DEVICES


def _profile(name: str) -> str:
    if not names_a_folder(name):
        raise Wrong("cannot name a folder on every system; use letters, digits and . _ -, e.g. my-data")
    return name


#: Stands in prompts, tables, figures and pages.
Name = Annotated[str, AfterValidator(_name)]
#: A file or a folder, or a name of the Hugging Face hub. Absolute ones and .. are taken as they are.
Place = Annotated[str, AfterValidator(_place)]
Separator = Annotated[str, AfterValidator(_separator)]
#: A share of all interactions, or a day.
Moment = Annotated[float | str, PlainValidator(_moment)]
ProfileName = Annotated[str, AfterValidator(_profile)]


def server(key: str, url: str) -> None:
    """Raises ValueError where an address names no server; it is not repeated, because it may hold a password."""
    if not re.fullmatch(r"https?://[^\s@]+", url):
        raise ValueError(f"{key} starts with http:// or https:// and holds no user or password")
    try:
        if not urlsplit(url).hostname or urlsplit(url).port == 0:
            raise ValueError
    except ValueError:
        raise ValueError(f"{key} names no server; write e.g. http://localhost:8000/v1") from None


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over` in it. Sections are merged key by key; readings are one value."""
    both = {k: {**base[k], **v} for k, v in over.items() if isinstance(v, Mapping) and isinstance(base.get(k), Mapping)}
    return {**base, **over, **both}


def merge_dotted(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`merge` of changes by dotted keys, e.g. {"phase1.steps": 10}."""
    for key, value in changes.items():
        section, *inner = key.split(".")
        base = merge(base, {section: _put(base.get(section), inner, value)})
    return dict(base)


def _put(base: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    base = base if isinstance(base, Mapping) else {}
    return {**base, path[0]: _put(base.get(path[0]), path[1:], value)}
