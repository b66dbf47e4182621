"""Text records of items, made clean where they are read, so that nothing after that has to ask what a field holds.

    title, brand, overview, description   a text
    genres, tags, categories              a list of texts

What is none of the two is made one, and counted:

    null, blank                 left out
    a number                    its text
    a text in place of a list   split at "|", or at "," where it has none
    a list of lists             one list without repeats, as of Amazon's paths of categories
    a list in place of a text   its texts with ", " between them
    a control character         a blank

Anything else (an object, true, a list written as a text, half of a surrogate pair) is refused with its line. Other
fields stay as they are.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ilm_lib.data.lines import DataError, is_id, read_json_lines, read_lines

LISTS = ("genres", "tags", "categories")
KINDS = dict.fromkeys(("title", "brand", "overview", "description"), "a text") | dict.fromkeys(LISTS, "a list of texts")
MOST = 1_000_000  # characters of a field; a model reads the first hundred words
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # but those that are blanks
SURROGATE = re.compile(r"[\ud800-\udfff]")


def read_texts(path: Path) -> tuple[dict[str, dict], dict[str, int]]:
    """Text records of JSON lines by item id, as in OpenP5's form but without the id, and what was made clean.

    Raises DataError for a file that cannot be read and for a malformed line.
    """
    notes: Counter[str] = Counter()
    records = records_by_id(path, read_lines(path)[0], notes)
    texts = {i: {f: v for f, v in r.items() if f not in ("id", "asin")} for i, r in records.items()}
    return texts, {what: count for what, count in notes.items() if count}


def records_by_id(path: Path, lines: list[tuple[int, str]], notes: Counter[str]) -> dict[str, dict]:
    """Clean records by their `id` or `asin`, a text or a whole number: 17 and "17" are one item.

    Raises DataError for a line without id, with an id that no sequence can hold, or with that of another line.
    """
    records: dict[str, dict] = {}
    for n, record in read_json_lines(path, lines):
        raw_id = record.get("id", record.get("asin"))
        if raw_id is None or raw_id == "":
            raise DataError(path, n, "text record without id", 'Add the item as "id" or "asin"')
        if type(raw_id) not in (str, int) or not is_id(str(raw_id)):
            remedy = "Write a text without blanks or a whole number, as in the interactions"
            raise DataError(path, n, f"{raw_id!r} is no item id", remedy)
        if str(raw_id) in records:
            raise DataError(path, n, f"item {raw_id!r} has two text records", "Keep one of them")
        records[str(raw_id)] = clean_record(path, n, record, notes)
    return records


def clean_record(path: Path, line: int | None, record: dict[str, Any], notes: Counter[str]) -> dict[str, Any]:
    """The record with its fields as the head of this file says; a clean one comes back as it is.

    Args:
        path, line: where it stands, for the error.
        notes: counts what was made another thing.

    Raises DataError for a value that is neither text nor a list of texts and cannot be made so.
    """
    odd = {field for field, value in record.items() if field in KINDS and not _is_clean(field, value)}
    if not odd:
        return record
    found = {}
    for field, value in record.items():
        if field in odd:
            try:
                value = _list(field, value, notes) if field in LISTS else _text(field, value, notes)
            except ValueError as error:
                raise DataError(path, line, f"{field} {error}", f"Write {KINDS[field]} or leave it out") from None
            if value is None:
                continue
        found[field] = value
    return found


def _is_clean(field: str, value: Any) -> bool:
    """Whether a value is what it should be, told quickly: nearly all are. What is no printable text is looked at."""
    if type(value) is list and field in LISTS and {*map(type, value)} <= {str} and all(map(str.strip, value)):
        value = "".join(value) or "-"
    elif field in LISTS:
        return False
    return type(value) is str and value.isprintable() and not value.isspace() and 0 < len(value) <= MOST


def _text(field: str, value: Any, notes: Counter[str]) -> str | None:
    if isinstance(value, (list, tuple)):
        notes[f"{field}_joined_from_a_list"] += bool(value)
        value = ", ".join(_entries(value, notes))
    text = _one(value, notes)
    return text if text and not text.isspace() else None


def _list(field: str, value: Any, notes: Counter[str]) -> list[str] | None:
    if isinstance(value, (list, tuple)):
        return _entries(value, notes)
    text = _one(value, notes)
    if not text or text.isspace():
        return None
    if re.fullmatch(r"\s*(\[.*\]|\{.*\})\s*", text, re.DOTALL):
        raise ValueError(f"is {text!r}, a list written as a text")
    if isinstance(value, str):
        notes[f"{field}_split_at_|_or_,"] += 1
    return [part.strip() for part in text.split("|" if "|" in text else ",") if part.strip()]


def _entries(values: list | tuple, notes: Counter[str]) -> list[str]:
    """The texts of a list; lists within it are taken apart."""
    if any(isinstance(value, (list, tuple)) for value in values):
        notes["lists_of_lists_made_one"] += 1
        flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
        if any(isinstance(value, (list, tuple)) for value in flat):
            raise ValueError("holds lists within lists within a list")
        return list(dict.fromkeys(_entries(flat, notes)))
    texts = [_one(value, notes) for value in values]
    return [text for text in texts if text and not text.isspace()]


def _one(value: Any, notes: Counter[str]) -> str | None:
    if value is None:
        return None
    if (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and math.isfinite(value)):
        notes["numbers_made_texts"] += 1
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"is or holds {value!r}")
    if len(value) > MOST:
        raise ValueError(f"has {len(value):,} characters, the most are {MOST:,}")
    if not value.isprintable():  # the quick way to know that it holds neither
        if half := SURROGATE.search(value):
            raise ValueError(f"holds {half[0]!a}, half of a surrogate pair, which is no character")
        value, count = CONTROL.subn(" ", value)
        notes["control_characters_made_blanks"] += count
    return value
