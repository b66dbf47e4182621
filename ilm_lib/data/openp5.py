"""Interaction data in OpenP5's form: one line a user, item ids in time order.

A dataset is a folder:

    user_sequence.txt          <user> <item> <item> ...        required
    user_indexing.txt          <user> <n>    the n of user_<n>  optional
    item_random_indexing.txt   <item> <n>    the n of item_<n>  optional
    item_text.jsonl[.gz]       {"id" or "asin": <item>, "title": ..., ...}  optional

The last item of a user is the test target, the one before it the dev target, the rest is
for training (leave one out, as in OpenP5 and section 4.2 of arXiv 2406.02844). Ties in
time are broken by file order.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix

Split = Literal["dev", "test"]

FIRST_USER, FIRST_ITEM = 1, 1001  # where OpenP5's numbering starts
HELD_OUT = {"dev": 2, "test": 1}  # items at the end of a sequence that the split may not see
MIN_ITEMS = 3  # one for training, dev and test each
TEXT_FIELDS = ("title", "genres", "brand", "categories", "overview", "description", "tags")


class DataError(ValueError):
    """Input that cannot be used; the message gives file, line, what is wrong and a remedy."""

    def __init__(self, path: Path, line: int | None, wrong: str, remedy: str):
        where = f"{path}:{line}" if line else f"{path}"
        super().__init__(f"{where}: {wrong}. {remedy}.")


@dataclass(frozen=True, eq=False)
class Dataset:
    """Users, items and their time-ordered interactions. E interactions, U users, I items.

    Everything refers to users and items by row, the position in `users` and `items`.
    """

    name: str
    users: list[str]  # raw ids in file order
    items: list[str]  # raw ids by rising index number
    sequences: np.ndarray  # (E,) int32 item rows in time order, users concatenated
    offsets: np.ndarray  # (U + 1,) int64 where each user starts in `sequences`
    user_index: np.ndarray  # (U,) int64 the n of user_<n>
    item_index: np.ndarray  # (I,) int64 the n of item_<n>
    texts: list[dict]  # (I,) text records, {} where there is none
    notes: dict[str, int]  # what was counted or dropped on loading
    checksums: dict[str, str]  # file name -> sha256 of its bytes

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @property
    def num_interactions(self) -> int:
        return len(self.sequences)

    def sequence(self, u: int) -> np.ndarray:
        """(n,) item rows of user row u in time order, dev and test target included."""
        return self.sequences[self.offsets[u] : self.offsets[u + 1]]

    def train_sequence(self, u: int) -> np.ndarray:
        """(n - 2,) item rows of user row u without the dev and test target."""
        return self.sequence(u)[:-2]

    def history(self, u: int, split: Split) -> np.ndarray:
        """Item rows before the target of the split: (n - 2,) for dev, (n - 1,) for test."""
        return self.sequence(u)[: -HELD_OUT[split]]

    def dev_targets(self) -> np.ndarray:
        """(U,) item row of each user's last item but one."""
        return self.sequences[self.offsets[1:] - 2]

    def test_targets(self) -> np.ndarray:
        """(U,) item row of each user's last item."""
        return self.sequences[self.offsets[1:] - 1]

    def train_matrix(self) -> csr_matrix:
        """(U, I) float32, 1 where the user has the item in the training part."""
        return self._matrix(held_out=2, dtype=np.float32)

    def seen_matrix(self, split: Split) -> csr_matrix:
        """(U, I) bool, true for the items of `history(u, split)`."""
        return self._matrix(HELD_OUT[split], dtype=bool)

    def train_examples(self) -> tuple[np.ndarray, np.ndarray]:
        """User row and target position of every training example, both (E - 3U,) int64.

        Positions 1 .. n - 3 of each sequence: the first item has no history, the last two
        are held out. Times 2 tasks and 10 templates this is the number of training
        examples of Table 2 (Beauty 2,628,260, ML1M 19,629,820, Clothing 3,210,320).
        """
        user, position = self._positions()
        keep = (position >= 1) & (position <= np.diff(self.offsets)[user] - 3)
        return user[keep], position[keep]

    def item_pairs(self) -> np.ndarray:
        """(P, 2) int32 distinct ordered pairs (earlier, later) of training neighbours.

        Ordered, because only that reading gives the count behind Table 2 (Beauty 114,582;
        without order it would be 111,649).
        """
        user, position = self.train_examples()
        second = self.offsets[user] + position
        return np.unique(np.stack([self.sequences[second - 1], self.sequences[second]], 1), axis=0)

    def user_item_pairs(self) -> np.ndarray:
        """(P, 2) int32 distinct (user row, item row) of the training part (Beauty 153,776)."""
        matrix = self.train_matrix().tocoo()
        return np.stack([matrix.row, matrix.col], axis=1).astype(np.int32)

    def item_text(self, i: int, max_words: int | None = None) -> str:
        """One text for item row i: title, genres / brand / categories, overview / tags.

        Fields that are absent are left out; the text is "" when none is there. `max_words`
        cuts after that many words (split at blanks).
        """
        fields = (self.texts[i].get(field) for field in TEXT_FIELDS)
        parts = (", ".join(map(str, f)) if isinstance(f, list) else str(f) for f in fields if f)
        text = " ".join(p if p.endswith((".", "!", "?")) else f"{p}." for p in parts)
        return " ".join(text.split()[:max_words])

    def _positions(self) -> tuple[np.ndarray, np.ndarray]:
        user = np.repeat(np.arange(self.num_users), np.diff(self.offsets))
        return user, np.arange(self.num_interactions) - self.offsets[user]

    def _matrix(self, held_out: int, dtype: type) -> csr_matrix:
        user, position = self._positions()
        keep = position < np.diff(self.offsets)[user] - held_out
        # Unique cells first: csr_matrix would add up an item that a user has twice.
        cells = np.unique(user[keep] * self.num_items + self.sequences[keep])
        rows, columns = np.divmod(cells, self.num_items)
        return csr_matrix((np.ones(len(cells), dtype), (rows, columns)), (self.num_users, self.num_items))


def load_openp5(folder: Path, *, name: str | None = None, index_seed: int = 0) -> Dataset:
    """Read a dataset in OpenP5's form; `name` defaults to the folder's name.

    Without user_indexing.txt users are numbered from 1 in file order; without
    item_random_indexing.txt items get a permutation from 1001 drawn with `index_seed`.

    Raises DataError for anything malformed. Kept, and counted in `notes`: items repeated
    within a user, items without text, blank lines. Dropped, and counted: index entries and
    texts of users and items that are in no sequence.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(folder, None, "no such folder", "Give the folder of user_sequence.txt")
    notes: dict[str, int] = {}
    checksums: dict[str, str] = {}

    def lines(file: str) -> list[tuple[int, str]]:
        found, checksums[file], blank = read_lines(folder / file)
        notes["blank_lines"] = notes.get("blank_lines", 0) + blank
        return found

    path = folder / "user_sequence.txt"
    sequence_lines = lines(path.name)
    sequences = _read_sequences(path, sequence_lines)
    users = list(sequences)
    item_ids = list(dict.fromkeys(i for sequence in sequences.values() for i in sequence))
    notes["repeated_items"] = sum(len(s) - len(set(s)) for s in sequences.values())

    def check(kind: str, ids: list[str], number: dict[str, int]) -> None:
        missing = set(ids) - number.keys()
        if missing:
            n, line = next((n, li) for n, li in sequence_lines if missing & set(li.split()))
            first = next(i for i in line.split() if i in missing)
            wrong = f"{kind} {first!r} has no index number (nor have {len(missing) - 1} others)"
            raise DataError(path, n, wrong, f"Add it to the {kind} index file or remove that file")
        notes[f"unused_{kind}_indices"] = len(number) - len(ids)

    user_number = {u: FIRST_USER + n for n, u in enumerate(users)}
    if (index := folder / "user_indexing.txt").exists():
        user_number = _read_index(index, lines(index.name))
    check("user", users, user_number)

    shuffled = np.random.default_rng(index_seed).permutation(len(item_ids)).tolist()
    item_number = {i: FIRST_ITEM + n for i, n in zip(item_ids, shuffled, strict=True)}
    if (index := folder / "item_random_indexing.txt").exists():
        item_number = _read_index(index, lines(index.name))
    check("item", item_ids, item_number)

    items = sorted(item_ids, key=item_number.__getitem__)
    row = {item: r for r, item in enumerate(items)}
    text_file = next((p for end in ("", ".gz") if (p := folder / f"item_text.jsonl{end}").exists()), None)
    records = _read_texts(text_file, lines(text_file.name)) if text_file else {}
    texts = [records.get(item, {}) for item in items]
    notes["unused_texts"] = len(records.keys() - row.keys())
    notes["items_without_text"] = sum(not any(map(t.get, TEXT_FIELDS)) for t in texts)

    lengths = [len(sequence) for sequence in sequences.values()]
    flat = (row[i] for sequence in sequences.values() for i in sequence)
    return Dataset(
        name=name or folder.resolve().name,
        users=users,
        items=items,
        sequences=np.fromiter(flat, np.int32, sum(lengths)),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        user_index=np.array([user_number[u] for u in users], np.int64),
        item_index=np.array([item_number[i] for i in items], np.int64),
        texts=texts,
        notes=notes,
        checksums=checksums,
    )


def read_lines(path: Path) -> tuple[list[tuple[int, str]], str, int]:
    """(line number, text) of every line that is not blank, the sha256, the blank lines.

    UTF-8 only, plain or .gz. Raises DataError when missing, empty, damaged or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(path, None, f"cannot be read ({error.strerror})", "Check the folder") from None
    checksum = hashlib.sha256(raw).hexdigest()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(path, None, f"damaged gzip ({error})", "Fetch it again") from None
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        wrong = f"byte {raw[error.start]:#04x} at offset {error.start} is not UTF-8"
        raise DataError(path, line, wrong, "Save the file as UTF-8") from None
    # Not splitlines(): it also breaks at U+2028 and its like, which JSON strings may hold.
    all_lines = text.removesuffix("\n").split("\n")
    lines = [(n, line) for n, line in enumerate(all_lines, 1) if line and not line.isspace()]
    if not lines:
        raise DataError(path, None, "is empty", "Write at least one line or remove the file")
    return lines, checksum, len(all_lines) - len(lines)


def _read_sequences(path: Path, lines: list[tuple[int, str]]) -> dict[str, list[str]]:
    sequences: dict[str, list[str]] = {}
    for n, line in lines:
        user, *items = line.split()
        if len(items) < MIN_ITEMS:
            wrong = f"user {user!r} has {len(items)} items, at least {MIN_ITEMS} are needed"
            raise DataError(path, n, wrong, "Remove the user or filter the data (5-core)")
        if user in sequences:
            raise DataError(path, n, f"user {user!r} is repeated", "Put each user on one line")
        sequences[user] = items
    return sequences


def _read_index(path: Path, lines: list[tuple[int, str]]) -> dict[str, int]:
    number: dict[str, int] = {}
    taken: dict[int, str] = {}
    for n, line in lines:
        fields = line.split()
        if len(fields) != 2 or not (fields[1].isascii() and fields[1].isdigit()):
            wrong = f"{line.strip()!r} is no index entry"
            raise DataError(path, n, wrong, "Write a raw id, a blank and a whole number")
        raw_id, value = fields[0], int(fields[1])
        if raw_id in number:
            raise DataError(path, n, f"{raw_id!r} has two index numbers", "Keep one of them")
        if value in taken:
            wrong = f"index number {value} of {raw_id!r} is already that of {taken[value]!r}"
            raise DataError(path, n, wrong, "Give each id a number of its own")
        number[raw_id] = value
        taken[value] = raw_id
    return number


def _read_texts(path: Path, lines: list[tuple[int, str]]) -> dict[str, dict]:
    records: dict[str, dict] = {}
    for n, line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            wrong = f"is no JSON ({error.msg} at column {error.colno})"
            raise DataError(path, n, wrong, "Write one JSON object a line") from None
        raw_id = record.get("id", record.get("asin")) if isinstance(record, dict) else None
        if isinstance(raw_id, bool) or not isinstance(raw_id, (str, int)) or raw_id == "":
            raise DataError(path, n, "text record without id", 'Add the item as "id" or "asin"')
        if str(raw_id) in records:
            raise DataError(path, n, f"item {raw_id!r} has two text records", "Keep one of them")
        records[str(raw_id)] = record
    return records
