"""Rows in the form of the ELM-24 tasks from a file of one's own."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from ilm_lib.data.lines import DataError, read_bytes, read_json_lines, read_lines

NEEDED = ("task", "item", "prompt", "target")
OPTIONAL = ("other", "split", "teacher")
Record = tuple[int, dict[str, Any]]  # line number, fields


def load_elm(path: Path, num_items: int, test_fraction: float = 0.1, seed: int = 0) -> pd.DataFrame:
    """Rows as `elm24.build_elm24` gives them.

    Columns: task, item (row of the dataset's items, from 0), prompt (with its literal `{film}`, and `{other}` for two
    films), target; optional: other (row of the second film, -1 or null for none), split (train or test, for all rows
    or none), teacher (default: "file:" and the file's name).

    Args:
        path: parquet (.parquet), else JSON lines, plain or .gz.
        num_items: of the dataset.
        test_fraction: of the films, where the file has no splits.
        seed: of that draw.

    Without splits the films, not rows, are split by the seed; rows of a film of each split are then left out, and
    counted in `attrs["left_out"]`.

    Raises DataError, with the line (in parquet the row, from 1), for unknown or missing columns, values out of range,
    prompts whose placeholders do not fit, a film in both splits, and a split without rows.
    """
    path = Path(path)
    rows = [_checked(path, n, record, num_items) for n, record in _records(path)]
    table = pd.DataFrame(rows, columns=["line", "task", "item", "other", "prompt", "target", "teacher", "split"])
    left_out = 0
    if table["split"].isna().all():
        table["split"] = _draw_splits(path, table, test_fraction, seed)
        left_out = int(table["split"].isna().sum())
        table = table.dropna(subset="split")
    elif (absent := table["split"].isna()).any():
        raise DataError(
            path,
            int(table["line"][absent].iloc[0]),
            "has no split, other rows have one",
            "Give a split to every row or to none",
        )
    _check_splits(path, table)
    table = table.drop(columns="line").reset_index(drop=True)
    if left_out:
        table.attrs["left_out"] = left_out
    return table


def _records(path: Path) -> Iterable[Record]:
    if path.suffix == ".parquet":
        raw = read_bytes(path)
        try:
            table = pd.read_parquet(io.BytesIO(raw))
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
            wrong = f"cannot be read as parquet ({str(error).partition(chr(10))[0]})"
            raise DataError(path, None, wrong, "Check the path and the file") from None
        _check_columns(path, None, table.columns)
        if table.empty:
            raise DataError(path, None, "holds no rows", "Write at least one")
        return list(enumerate(table.astype(object).where(table.notna(), None).to_dict("records"), 1))
    records = read_json_lines(path, read_lines(path)[0])
    for n, record in records:
        _check_columns(path, n, record)
    return records


def _check_columns(path: Path, line: int | None, columns: Iterable[str]) -> None:
    columns = list(columns)
    allowed = f"Columns are {', '.join(NEEDED)} and, optional, {', '.join(OPTIONAL)}"
    if unknown := [str(c) for c in columns if c not in NEEDED + OPTIONAL]:
        raise DataError(path, line, f"unknown column {', '.join(unknown)}", allowed)
    if missing := [c for c in NEEDED if c not in columns]:
        raise DataError(path, line, f"missing column {', '.join(missing)}", allowed)
    if len(set(columns)) < len(columns):
        raise DataError(path, line, "a column is there twice", allowed)


def _checked(path: Path, line: int, record: dict[str, Any], num_items: int) -> tuple:
    def refuse(wrong: str, remedy: str) -> None:
        raise DataError(path, line, wrong, remedy)

    task, prompt, target = (record[name] for name in ("task", "prompt", "target"))
    for name, value in (("task", task), ("prompt", prompt), ("target", target)):
        if not isinstance(value, str) or not value.strip():
            refuse(f"{name} is {value!r}", "Give a text")
    films = []
    for name in ("item", "other"):
        value = record.get(name)
        if name == "other" and value is None:
            value = -1
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        whole = whole or (isinstance(value, float) and value.is_integer())  # a column with nulls is one of floats
        least = -1 if name == "other" else 0
        if not whole or not least <= value < num_items:
            refuse(
                f"{name} is {value!r}, the dataset has {num_items} items",
                f"Give the row of an item, 0 to {num_items - 1}" + (", or -1 for none" if least else ""),
            )
        films.append(int(value))
    if "{film}" not in prompt:
        refuse("the prompt has no {film}", "Write {film} where the film stands")
    if ("{other}" in prompt) != (films[1] >= 0):
        refuse(
            "the prompt has {other}, the row no other film"
            if films[1] < 0
            else "the row has another film, the prompt no {other}",
            "Give both or neither",
        )
    split, teacher = record.get("split"), record.get("teacher")
    if split is not None and not (isinstance(split, str) and split in ("train", "test")):
        refuse(f"split is {split!r}", "Write train or test")
    if teacher is not None and not isinstance(teacher, str):
        refuse(f"teacher is {teacher!r}", "Give a name or leave it out")
    return line, task, films[0], films[1], prompt, target, teacher or f"file:{path.name}", split


def _draw_splits(path: Path, table: pd.DataFrame, test_fraction: float, seed: int) -> list[str | None]:
    """The split of every row's films, None where they are in different ones."""
    films = np.array(sorted({*table["item"], *table["other"]} - {-1}))
    count = round(test_fraction * len(films))
    if not 0 < count < len(films):
        raise DataError(
            path,
            None,
            f"{len(films)} films cannot be split with test_fraction {test_fraction}",
            "Add films or give each row a split",
        )
    test = set(np.random.default_rng(seed).permutation(films)[:count].tolist())
    sides = [{film in test for film in pair if film >= 0} for pair in zip(table["item"], table["other"])]
    return [None if len(side) > 1 else "test" if True in side else "train" for side in sides]


def _check_splits(path: Path, table: pd.DataFrame) -> None:
    first: dict[int, tuple[str, int]] = {}  # film -> its split, and the line that says so
    for row in table.itertuples():
        for film in (row.item, row.other):
            split, line = first.setdefault(film, (row.split, row.line))
            if film >= 0 and split != row.split:
                raise DataError(
                    path,
                    row.line,
                    f"film {film} is in {row.split} here and in {split} in line {line}",
                    "Keep a film, in the roles of item and other, in one split",
                )
    for split in ("train", "test"):
        if split not in set(table["split"]):
            raise DataError(path, None, f"no row is in {split}", "Give some films' rows to each split")
