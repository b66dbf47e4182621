"""Interactions as a table: of a CSV of one's own, or of any rows.

    user, item   raw ids, categorical of str
    timestamp    int64, in the file's own unit

Rows are in file order.
"""

from __future__ import annotations

import csv
import difflib
import io
import re
from array import array
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from ilm_lib.data.lines import DataError, is_id, read_bytes, text_of

Row = tuple[int, str, str, str | int]  # line number, user, item, timestamp

COLUMNS = ("user", "item", "timestamp")
TIME = "Write whole numbers, as 964982703, without decimals or dates"


def read_csv(path: Path) -> pd.DataFrame:
    """Interactions of a CSV (UTF-8) whose header names user, item and timestamp.

    Other columns are ignored; a timestamp is a whole number in any unit. Commas part the fields, or the semicolons or
    tabs of a header that has no comma. Ids stay as they are written: 007, 7 and 7.0 are three.

    Raises DataError for a missing or empty file, a missing or doubled column and a malformed line.
    """
    text = text_of(path, read_bytes(path))
    if not text.strip():
        raise DataError(path, None, "is empty", f"Write the header {','.join(COLUMNS)} and a line an interaction")
    delimiter = delimiter_of(re.split(r"[\r\n]", text, maxsplit=1)[0])
    return table_of(path, csv_rows(path, text, COLUMNS, delimiter))


def delimiter_of(header: str) -> str:
    """What parts the fields of a CSV: commas, or the semicolons or tabs of a header that has no comma."""
    return next((d for d in ",;\t" if d in header), ",")


def csv_rows(path: Path, text: str, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[tuple]:
    """(line number, the fields of `columns`) of each row that is not blank."""
    # strict: a quote that is never closed would swallow the rows that follow it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header, columns)
        pick = itemgetter(*map(header.index, columns))
        for fields in filter(None, reader):
            if len(fields) != len(header):
                wrong = f"{len(fields)} fields, the header has {len(header)}"
                raise DataError(path, reader.line_num, wrong, "Quote fields that hold a comma")
            yield reader.line_num, *pick(fields)
    except csv.Error as error:
        wrong = f"is no CSV ({error})"
        raise DataError(path, reader.line_num, wrong, "Close each quote that is opened") from None


def _check_header(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    if missing := [name for name in columns if name not in header]:
        wrong = f"header {','.join(header[:50])!r} lacks {', '.join(missing)}{meant_for(missing, header)}"
        raise DataError(path, 1, wrong, f"Name the columns {','.join(columns)} in the first line")
    refuse_twice(path, header, columns)


def meant_for(missing: Iterable[str], header: list[str]) -> str:
    """A hint at the column that may be meant for one that is missing, " (is 'users' meant for 'user'?)"; else ""."""
    meant = [(c[0], name) for name in missing if (c := difflib.get_close_matches(name, header[:50], 1, 0.5))]
    return f" (is {meant[0][0]!r} meant for {meant[0][1]!r}?)" if meant else ""


def refuse_twice(path: Path, header: list[str], columns: tuple[str, ...]) -> None:
    """Raises DataError where the header has one of the columns twice."""
    if twice := [name for name in columns if header.count(name) > 1]:
        raise DataError(path, 1, f"the header names {twice[0]} twice", "Rename the column that is not meant")


def table_of(path: Path, rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table; ids as codes, since millions of them are a few thousand names.

    Raises DataError for what is no id or no whole number of 8 bytes, and where there are no rows.
    """
    users, items = _Codes(), _Codes()
    user_codes, item_codes, times = array("i"), array("i"), array("q")
    for line, user, item, time in rows:
        try:
            user_codes.append(users[user])
            item_codes.append(items[item])
            times.append(int(time))
            # int() would also read 1_000, the digits of every script, true, and the whole part of 1.5.
            if ("_" in time or not time.isascii()) if type(time) is str else (time is True or times[-1] != time):
                raise ValueError(time)
        except (KeyError, TypeError, ValueError, OverflowError):
            for kind, raw_id in (("user", user), ("item", item)):
                if not is_id(raw_id):
                    wrong = f"{raw_id!r} is no {kind} id"
                    raise DataError(path, line, wrong, "Write ids as text without blanks") from None
            raise DataError(path, line, f"{time!r} is no timestamp", TIME) from None
    if not times:
        raise DataError(path, None, "holds no interactions", "Write at least one line of them")
    return pd.DataFrame({
        "user": _categorical(user_codes, users),
        "item": _categorical(item_codes, items),
        "timestamp": np.array(times, np.int64),
    })  # fmt: skip


class _Codes(dict[str, int]):
    """Code of each id, in order of first appearance. KeyError for what is no id."""

    def __missing__(self, raw_id: str) -> int:
        if not is_id(raw_id):
            raise KeyError(raw_id)
        self[raw_id] = code = len(self)
        return code


def _categorical(codes: array, names: Iterable[str]) -> pd.Categorical:
    names = pd.Index(list(names), dtype="str")
    return pd.Categorical.from_codes(np.array(codes, np.int32), names)
