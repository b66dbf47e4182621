"""`python -m ilm_lib recommend`: the most probable items for everybody in a file, written to a table.

The file is read twice, as a stream: to check everybody before any work, and to recommend. The table has the columns
user, rank, item, title and log_probability (nats), in the order asked; it is there whole or not at all.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, get_args

from ilm_lib.arguments import whole
from ilm_lib.data.lines import DataError, shown
from ilm_lib.devices import device
from ilm_lib.errors import LONGEST, Refusal
from ilm_lib.model import door
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import Asked, best_items
from ilm_lib.model.refusals import TooLong
from ilm_lib.sections import Readout
from ilm_lib.users_file import Line, read_users, reader_of

T = TypeVar("T")
Rows = list[tuple[str | None, int, str, str, float]]

COLUMNS = ("user", "rank", "item", "title", "log_probability")
AT_ONCE = (2048, 1 << 17)  # users and rows of the table that are in memory, or one user's
EVERY = 10  # seconds between lines of progress


class UserLine(Refusal, ValueError):
    """A line asks for what the model does not have; the message gives file and line."""

    def __init__(self, path: Path, line: int, error: Exception):
        where = f"{path}:{line}: "
        super().__init__(where + shown(str(error), LONGEST - 10 - len(f"{path.name}:{line}: ")))


def add_arguments(commands: Any) -> None:
    """The sub-command and what it takes."""
    parser = commands.add_parser("recommend", prog="python -m ilm_lib recommend", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="what save_pretrained wrote")
    parser.add_argument("--users", type=Path, required=True, metavar="FILE",
                        help="who asks: a .csv with the columns user and history (ids or titles with | between), "
                        '.jsonl or .parquet with lists, or a user_sequence.txt; without a user: '
                        "somebody unknown")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".csv or .parquet")
    parser.add_argument("--k", type=whole(10**6), default=10, help="items for each (default: 10)")
    parser.add_argument("--keep-history", action="store_true", help="items of the history may come again")
    parser.add_argument("--readout", choices=get_args(Readout), help="(default: score where the model can)")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")


def run(args: argparse.Namespace) -> None:
    """Run the command with its arguments. Raises Refusal."""
    reader_of(args.users)
    check_out(args.out, args.users, args.force)
    ilm = ILM.from_pretrained(args.model).to(device())
    readout = door.readout(ilm, args.readout)
    started = time.monotonic()
    total = sum(1 for _ in askers(ilm, args.users, readout))
    print(f"{total:,} users, all of them known to be answerable, {time.monotonic() - started:.0f} s", flush=True)
    with written(args.out) as write:
        rows = 0
        for found in shown_progress(recommended(ilm, args.users, args.k, not args.keep_history, readout), total):
            write(found)
            rows += len(found)
    print(f"{args.out}: {rows:,} rows")


def check_out(path: Path, users: Path, force: bool) -> None:
    """Refuse a table that could not be written, before any work. Raises DataError."""
    if path.suffix.lower() not in WRITERS:
        raise DataError(path, None, f"ends in {path.suffix or 'nothing'!r}", f"Write to a {' or '.join(WRITERS)}")
    if path.is_dir():
        raise DataError(path, None, "is a folder", "Give --out the name of a file")
    if path.exists() and path.samefile(users):
        raise DataError(path, None, "is the file of those who ask", "Give --out another name")
    if path.exists() and not force:
        raise DataError(path, None, "is there already", "Remove it, give --out another name, or write over it with "
                        "--force")  # fmt: skip
    if not path.parent.is_dir():
        raise DataError(path.parent, None, "is no folder that is there", "Make it, or give --out another")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise DataError(path.parent, None, "cannot be written to", "Check its rights, or give --out another folder")


def askers(ilm: ILM, users: Path, readout: Readout) -> Iterator[tuple[Line, Asked]]:
    """Everybody in the file, checked against the model. Raises DataError and UserLine."""
    for line in read_users(users):
        try:
            yield line, Asked.of(ilm, line.user, line.history, readout)
        except Refusal as error:
            raise UserLine(users, line.number, error) from None


def recommended(ilm: ILM, users: Path, k: int, exclude: bool, readout: Readout) -> Iterator[tuple[int, Rows]]:
    """(users, rows of the table) of some users after another, as `ILM.recommend_many` has them."""
    names, size = ilm.names(), max(1, min(AT_ONCE[0], AT_ONCE[1] // k))
    for part in parts(askers(ilm, users, readout), size):
        lines, asked = zip(*part)
        try:
            items, scores = best_items(ilm, asked, k, exclude, readout)
        except TooLong:
            line, error = first_too_long(ilm, part, k, exclude, readout)
            raise UserLine(users, line.number, error) from None
        rows = [
            (line.user, rank, names.item_ids[row], names.titles[row], score)
            for line, found, logs in zip(lines, items.tolist(), scores.tolist())
            for rank, (row, score) in enumerate(zip(found, logs), 1)
            if row >= 0
        ]
        yield len(part), rows


def first_too_long(
    ilm: ILM, part: Sequence[tuple[Line, Asked]], k: int, exclude: bool, readout: Readout
) -> tuple[Line, TooLong]:
    """The one of several whose prompt the LLM cannot read."""
    for line, one in part:
        try:
            best_items(ilm, [one], k, exclude, readout)
        except TooLong as error:
            return line, error
    raise AssertionError("together they were too long, and nobody is alone")


def shown_progress(found: Iterable[tuple[int, Rows]], total: int) -> Iterator[Rows]:
    """Pass rows on, and print how far they are."""
    started = said = time.monotonic()
    done = 0
    for count, rows in found:
        yield rows
        done += count
        now = time.monotonic()
        if now - said > EVERY or done == total:
            rate = done / max(now - started, 1e-9)
            print(f"{done:,} of {total:,} users, {rate:,.0f} a second, {(total - done) / rate:.0f} s left", flush=True)
            said = now


@contextmanager
def written(path: Path) -> Iterator[Callable[[Rows], None]]:
    """A function that appends rows to the table. It stands under its name once all are in it, and never in part.

    Raises DataError where the disk does not take it.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with ExitStack() as stack:
            yield WRITERS[path.suffix.lower()](stack, aside)
        os.replace(aside, path)
    except OSError as error:
        wrong = f"cannot be written ({error.strerror or error})"
        raise DataError(path, None, wrong, "Check the folder, its rights and the disk") from None
    finally:
        aside.unlink(missing_ok=True)


def _csv(stack: ExitStack, path: Path) -> Callable[[Rows], None]:
    file = stack.enter_context(open(path, "w", encoding="utf-8", newline=""))
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    return lambda rows: writer.writerows((*row, f"{score:.6g}") for *row, score in rows)


def _parquet(stack: ExitStack, path: Path) -> Callable[[Rows], None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.int32(), pa.string(), pa.string(), pa.float32())
    schema = pa.schema(list(zip(COLUMNS, kinds)))
    writer = stack.enter_context(pq.ParquetWriter(path, schema))

    def write(rows: Rows) -> None:  # a row group
        columns = zip(*rows) if rows else [()] * len(kinds)
        writer.write_table(pa.Table.from_arrays([pa.array(c, kind) for c, kind in zip(columns, kinds)], schema=schema))

    return write


WRITERS: dict[str, Callable[[ExitStack, Path], Callable[[Rows], None]]] = {".csv": _csv, ".parquet": _parquet}


def parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last one shorter."""
    values = iter(values)
    while part := list(islice(values, size)):
        yield part
