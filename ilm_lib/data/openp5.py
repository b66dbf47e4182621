"""Interaction data in OpenP5's form: one line a user, item ids in time order.

A dataset is a folder:

    user_sequence.txt          <user> <item> <item> ...        required
    user_indexing.txt          <user> <n>    the n of user_<n>  optional
    item_random_indexing.txt   <item> <n>    the n of item_<n>  optional
    item_text.jsonl[.gz]       {"id" or "asin": <item>, "title": ..., ...}  optional
    user_time.txt              <user> <time> <time> ...         optional, read by `temporal`

The last item of a user is the test target, the one before it the dev target, the rest is
for training (leave one out, as in OpenP5 and section 4.2 of arXiv 2406.02844). Ties in
time are broken by file order.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ilm_lib.data.dataset import TEXT_FIELDS, Dataset
from ilm_lib.data.lines import DataError, empty, lines_of, read_lines, unreadable
from ilm_lib.data.records import records_by_id
from ilm_lib.data.splits import MIN_ITEMS

FIRST_USER, FIRST_ITEM = 1, 1001  # where OpenP5's numbering starts
MOST_DIGITS = 18  # of an index number, which is then 8 bytes long
COUNTED = ("blank_lines", "repeated_items", "unused_user_indices", "unused_item_indices", "unused_texts",
           "items_without_text")  # notes of every dataset; others tell what became of texts  # fmt: skip
BLOCK = 1 << 24  # bytes of text, and interactions, that are in memory at a time


def load_openp5(
    folder: Path,
    *,
    name: str | None = None,
    index_seed: int = 0,
    cache: Path | None = None,
    whole_catalogue: bool = False,
) -> Dataset:
    """Read a dataset in OpenP5's form; `name` defaults to the folder's name.

    Without user_indexing.txt users are numbered from 1 in file order; without
    item_random_indexing.txt items get a permutation from 1001 drawn with `index_seed`.
    With the folder `cache` the dataset is saved and opened there (`Dataset.open`), and
    memory holds users, items and one block of the interactions, never all of them.

    Raises DataError for anything malformed. Kept, and counted in `notes`: items repeated
    within a user, items without text, blank lines, and what `records` made clean in texts.
    Dropped, and counted: index entries and texts of users and items that are in no sequence;
    with `whole_catalogue` the items of item_random_indexing.txt that nobody had are kept.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, None, "no such folder", "Give the folder of user_sequence.txt")
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    # Rows follow the index numbers, known only when all items are: until then codes wait on disk.
    with TemporaryFile(dir=cache) as file:
        dataset = _load(folder, name or folder.resolve().name, index_seed, file, whole_catalogue)
        if cache is None:
            return replace(dataset, sequences=np.array(dataset.sequences))
        dataset.save(cache)
    return Dataset.open(cache)


def _load(folder: Path, name: str, index_seed: int, file: BinaryIO, whole_catalogue: bool) -> Dataset:
    path = folder / "user_sequence.txt"
    found = _read_sequences(path, file)
    codes = np.memmap(file, np.int32, "r+")
    offsets = np.concatenate([[0], np.cumsum(found.lengths)])
    users, user_lines = list(found.line_of_user), list(found.line_of_user.values())
    notes = {"blank_lines": found.blank, "repeated_items": found.repeated}
    checksums = {path.name: found.checksum}

    def lines(file: str) -> list[tuple[int, str]]:
        found, checksums[file], blank = read_lines(folder / file)
        notes["blank_lines"] += blank
        return found

    def check(kind: str, ids: list[str], number: dict[str, int], line: Callable[[int], int]) -> None:
        missing = [i for i, raw_id in enumerate(ids) if raw_id not in number]
        if missing:
            wrong = f"{kind} {ids[missing[0]]!r} has no index number (nor have {len(missing) - 1} others)"
            raise DataError(path, line(missing[0]), wrong, f"Add it to the {kind} index file or remove that file")
        notes[f"unused_{kind}_indices"] = len(number) - len(ids)

    user_number = {u: FIRST_USER + n for n, u in enumerate(users)}
    if (index := folder / "user_indexing.txt").exists():
        user_number = _read_index(index, lines(index.name))
    check("user", users, user_number, user_lines.__getitem__)

    shuffled = np.random.default_rng(index_seed).permutation(len(found.items)).tolist()
    item_number = {i: FIRST_ITEM + n for i, n in zip(found.items, shuffled, strict=True)}
    if (index := folder / "item_random_indexing.txt").exists():
        item_number = _read_index(index, lines(index.name))
    check(
        "item",
        found.items,
        item_number,
        lambda code: user_lines[np.searchsorted(offsets, np.argmax(codes == code), side="right") - 1],
    )

    if whole_catalogue:
        notes |= {"unused_item_indices": 0, "items_nobody_had": len(item_number) - len(found.items)}
    items = sorted(item_number if whole_catalogue else found.items, key=item_number.__getitem__)
    row = {item: r for r, item in enumerate(items)}
    row_of_code = np.array([row[item] for item in found.items], np.int32)
    for start in range(0, len(codes), BLOCK):
        codes[start : start + BLOCK] = row_of_code[codes[start : start + BLOCK]]

    text_file = next((p for end in ("", ".gz") if (p := folder / f"item_text.jsonl{end}").exists()), None)
    made_clean: Counter[str] = Counter()
    records = records_by_id(text_file, lines(text_file.name), made_clean) if text_file else {}
    texts = [records.get(item, {}) for item in items]
    notes["unused_texts"] = len(records.keys() - row.keys())
    notes["items_without_text"] = sum(not any(map(t.get, TEXT_FIELDS)) for t in texts)
    notes |= {what: count for what, count in made_clean.items() if count}
    return Dataset(
        name=name,
        users=users,
        items=items,
        sequences=codes,
        offsets=offsets,
        user_index=np.array([user_number[u] for u in users], np.int64),
        item_index=np.array([item_number[i] for i in items], np.int64),
        texts=texts,
        notes=notes,
        checksums=checksums,
    )


class _Sequences(NamedTuple):
    line_of_user: dict[str, int]  # in file order
    lengths: np.ndarray  # (U,) int64 items of each user
    items: list[str]  # in the order in which they first appear
    repeated: int  # items that their user had before
    blank: int  # lines
    checksum: str


def _read_sequences(path: Path, out: BinaryIO) -> _Sequences:
    """Read user_sequence.txt a block at a time; (E,) int32 positions in `items` go to `out`."""
    try:
        file = open(path, "rb")
    except OSError as error:
        raise unreadable(path, error) from None
    line_of: dict[str, int] = {}
    lengths: list[np.ndarray] = []
    known = pa.array([], pa.string())
    checksum, repeated, lines_before, bytes_before = hashlib.sha256(), 0, 0, 0
    with file:
        while raw := file.read(BLOCK) + file.readline():  # whole lines
            checksum.update(raw)
            lines = pc.utf8_trim_whitespace(pa.array(lines_of(path, raw, lines_before, bytes_before), pa.string()))
            filled = pc.not_equal(lines, "").to_numpy(zero_copy_only=False)
            fields = pc.utf8_split_whitespace(lines.filter(pa.array(filled)))
            users = fields.offsets.to_numpy()[:-1]
            counts = np.diff(fields.offsets.to_numpy()).astype(np.int64) - 1
            numbers = lines_before + 1 + np.flatnonzero(filled)
            for n, user, count in zip(numbers.tolist(), fields.values.take(pa.array(users)).to_pylist(), counts):
                if count < MIN_ITEMS:
                    wrong = f"user {user!r} has {count} items, at least {MIN_ITEMS} are needed"
                    raise DataError(path, n, wrong, "Remove the user or filter the data (5-core)")
                if user in line_of:
                    raise DataError(path, n, f"user {user!r} is repeated", "Put each user on one line")
                line_of[user] = n

            is_item = np.ones(len(fields.values), bool)
            is_item[users] = False
            items = fields.values.filter(pa.array(is_item)).dictionary_encode()
            known = pa.concat_arrays([known, items.dictionary.filter(pc.invert(pc.is_in(items.dictionary, known)))])
            codes = pc.index_in(items.dictionary, known).to_numpy()[items.indices.to_numpy()]
            out.write(codes)
            # One number for each pair of user and item; the users rise, which makes this sort the quickest.
            pairs = np.sort(np.repeat(np.arange(len(counts)) * len(known), counts) + codes, kind="stable")
            repeated += int(np.count_nonzero(pairs[1:] == pairs[:-1]))
            lengths.append(counts)
            lines_before += len(lines)
            bytes_before += len(raw)
    if not line_of:
        raise empty(path)
    out.flush()
    return _Sequences(
        line_of, np.concatenate(lengths), known.to_pylist(), repeated, lines_before - len(line_of), checksum.hexdigest()
    )


def _read_index(path: Path, lines: list[tuple[int, str]]) -> dict[str, int]:
    number: dict[str, int] = {}
    taken: dict[int, str] = {}
    for n, line in lines:
        fields = line.split()
        if len(fields) != 2 or not (fields[1].isascii() and fields[1].isdigit()):
            wrong = f"{line.strip()!r} is no index entry"
            raise DataError(path, n, wrong, "Write a raw id, a blank and a whole number")
        if len(fields[1]) > MOST_DIGITS:
            wrong = f"index number {fields[1]} of {fields[0]!r} is too large"
            raise DataError(path, n, wrong, f"Write at most {MOST_DIGITS} digits")
        raw_id, value = fields[0], int(fields[1])
        if raw_id in number:
            raise DataError(path, n, f"{raw_id!r} has two index numbers", "Keep one of them")
        if value in taken:
            wrong = f"index number {value} of {raw_id!r} is already that of {taken[value]!r}"
            raise DataError(path, n, wrong, "Give each id a number of its own")
        number[raw_id] = value
        taken[value] = raw_id
    return number
