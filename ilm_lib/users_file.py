"""Who asks for recommendations: users and histories of a file, read as a stream and never held whole.

    .csv       a header that names user and history (others are ignored); ids or titles of a history with | between
    .jsonl     {"user": "alice", "history": ["Toy Story", "i17"]}, one object a line
    .parquet   the same two columns, of text and of lists of text
    .txt       OpenP5's user_sequence.txt: a user and items with blanks between

One of the two may be missing or empty. A whole number is an id: 17 and "17" are one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ilm_lib.data.lines import DataError, lines_of, read_json_lines, unreadable
from ilm_lib.data.tables import delimiter_of, meant_for, refuse_twice
from ilm_lib.model.refusals import brief

COLUMNS = ("user", "history")
BLOCK = 1 << 20  # bytes of whole lines read at once
NAME_THEM = "Name the columns user and history, or one of them"


class Line(NamedTuple):
    """Line `number` of the file, counted from 1; a row of a parquet file."""

    number: int
    user: str | None
    history: list[str]


def read_users(path: Path) -> Iterator[Line]:
    """Everybody in a file, in its order.

    Raises DataError for a file that cannot be read, is empty or has neither column, and for a malformed line.
    """
    reader = reader_of(path)
    line = None
    for line in reader(path):
        yield line
    if line is None:
        raise DataError(path, None, "holds nobody who asks", "Write at least one line with a user or a history")


def reader_of(path: Path) -> Callable[[Path], Iterator[Line]]:
    """How a file of this name is read. Raises DataError where nothing is known of its ending, or no file is there."""
    if (reader := READERS.get(path.suffix.lower())) is None:
        raise DataError(path, None, f"ends in {path.suffix or 'nothing'!r}", f"Give a file of {', '.join(READERS)}")
    if not path.is_file():
        raise DataError(path, None, "is a folder" if path.is_dir() else "is no file that is there", "Check the path")
    return reader


def _csv(path: Path) -> Iterator[Line]:
    lines = (line + "\n" for _, line in _lines(path))
    first = next(lines, "")
    # strict: a quote that is never closed would swallow the rows that follow it.
    settings: Any = dict(delimiter=delimiter_of(first), skipinitialspace=True, strict=True)
    number = 1
    try:
        header = [name.strip() for name in next(csv.reader([first], **settings), [])]
        _check_columns(path, header)
        reader = csv.reader(lines, **settings)
        for fields in reader:
            number = 1 + reader.line_num
            if not any(map(str.strip, fields)) and len(fields) < 2:
                continue
            if len(fields) != len(header):
                wrong = f"{len(fields)} fields, the header has {len(header)}"
                raise DataError(path, number, wrong, "Quote fields that hold a comma, and part items with |")
            row: dict[str, Any] = {name: field.strip() for name, field in zip(header, fields) if name in COLUMNS}
            row["history"] = [part for item in row.get("history", "").split("|") if (part := item.strip())]
            yield _line(path, number, row)
    except csv.Error as error:
        wrong = f"is no CSV ({error})"
        raise DataError(path, number + 1, wrong, "Close each quote that is opened") from None


def _json(path: Path) -> Iterator[Line]:
    for number, line in _lines(path):
        if line and not line.isspace():
            _, row = read_json_lines(path, [(number, line)])[0]
            if not any(name in row for name in COLUMNS):
                raise DataError(path, number, "has neither user nor history", NAME_THEM)
            yield _line(path, number, row)


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            _check_columns(path, names)
            batches = file.iter_batches(4096, columns=[name for name in COLUMNS if name in names])
            for number, row in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
                yield _line(path, number, row)
    except OSError as error:
        raise unreadable(path, error) from None
    except pa.ArrowException as error:
        raise DataError(path, None, f"is no parquet file that can be read ({error})", "Write it again") from None


def _sequences(path: Path) -> Iterator[Line]:
    for number, line in _lines(path):
        if names := line.split():
            yield Line(number, names[0], names[1:])


READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".csv": _csv, ".jsonl": _json, ".parquet": _parquet, ".txt": _sequences,
}  # fmt: skip


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of all lines, read in blocks."""
    lines, read = 0, 0
    try:
        with open(path, "rb") as file:
            while block := b"".join(file.readlines(BLOCK)):
                found = lines_of(path, block, lines, read)
                yield from enumerate(found, lines + 1)
                lines, read = lines + len(found), read + len(block)
    except OSError as error:
        raise unreadable(path, error) from None


def _check_columns(path: Path, header: list[str]) -> None:
    if not any(header):
        raise DataError(path, None, "is empty", "Write a header that names user and history, and a line for each")
    if not any(name in header for name in COLUMNS):
        wrong = f"{','.join(header)!r} names neither user nor history{meant_for(COLUMNS, header)}"
        raise DataError(path, 1, wrong, NAME_THEM)
    refuse_twice(path, header, COLUMNS)


def _line(path: Path, number: int, row: dict[str, Any]) -> Line:
    user, history = row.get("user"), row.get("history")
    if user is not None and type(user) not in (str, int):
        raise DataError(path, number, f"user is {brief(user)}", "Write an id as text, or null for somebody unknown")
    if history is not None and not isinstance(history, list):
        raise DataError(path, number, f"history is {brief(history)}", "Write a list of ids or titles, the oldest first")
    return Line(number, None if user in (None, "") else str(user), list(_texts(path, number, history or [])))


def _texts(path: Path, number: int, history: Iterable[Any]) -> Iterator[str]:
    for item in history:
        if type(item) not in (str, int):
            raise DataError(path, number, f"history holds {brief(item)}", "Write ids or titles as text")
        yield str(item)
