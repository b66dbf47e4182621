"""Raw MovieLens, Amazon 2014 and CSV files as tables.

A reader gives one table of interactions, the columns

    user, item   raw ids, categorical of str
    timestamp    int64, in the file's own unit

with rows in file order, and a text record for each item (`title`, `genres`, ...). Every
rating counts, whatever its value, as in OpenP5.
"""

from __future__ import annotations

import ast
import csv
import difflib
import gzip
import html
import io
import json
import re
import zipfile
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator
from operator import itemgetter
from pathlib import Path

import numpy as np
import pandas as pd

from ilm_lib.data.openp5 import DataError, _read_texts, read_lines

Row = tuple[int, str, str, str | int]  # line number, user, item, timestamp
Texts = dict[str, dict]  # raw item id -> record

GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()  # the flags of u.item, in order
COLUMNS = ("user", "item", "timestamp")
ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)  # not the sign in "a < b"
FETCH_AGAIN = "Delete the file and fetch it again"


# ---- MovieLens ----


def read_movielens(path: Path) -> tuple[pd.DataFrame, Texts]:
    """Interactions and texts (title as it is, genres as a list) of a MovieLens release.

    `path` is the zip or the unpacked folder of 1M (ratings.dat, movies.dat), 100K (u.data,
    u.item) or a release with ratings.csv and movies.csv; which of them is seen by the files.

    Raises DataError for a missing or damaged file and for a malformed line.
    """
    files = _Files(Path(path))
    if "ratings.dat" in files:
        return files.ratings("ratings.dat", "::"), _texts_1m(files)
    if "u.data" in files:
        return files.ratings("u.data", "\t"), _texts_100k(files)
    if "ratings.csv" in files:
        rows = files.csv_rows("ratings.csv", ("userId", "movieId", "timestamp"))
        return _table(files.where("ratings.csv"), rows), _texts_latest(files)
    raise DataError(files.path, None, "holds no ratings.dat, u.data or ratings.csv",
                    "Give the zip of a MovieLens release or the folder it unpacks to")  # fmt: skip


def movielens_texts(path: Path) -> Texts:
    """Texts alone of a release with movies.csv; errors as in `read_movielens`."""
    return _texts_latest(_Files(Path(path)))


def _texts_1m(files: _Files) -> Texts:
    texts: Texts = {}
    for n, line in files.lines("movies.dat"):
        # A title may hold the separator, an id and genres cannot.
        movie, _, rest = line.partition("::")
        title, separator, genres = rest.rpartition("::")
        if not separator:
            raise _malformed(files.where("movies.dat"), n, line, "MovieID::Title::Genre|Genre")
        texts[movie] = {"title": title, "genres": genres.split("|")}
    return texts


def _texts_100k(files: _Files) -> Texts:
    texts: Texts = {}
    for n, fields in files.fields("u.item", "|", 5 + len(GENRES_100K)):
        flags = fields[5:]  # after id, title, two dates and an address
        if not set(flags) <= {"0", "1"}:
            wrong = f"{' '.join(flags)!r} are no genre flags"
            raise DataError(files.where("u.item"), n, wrong, "Write 0 or 1 for each genre")
        genres = [g for g, flag in zip(GENRES_100K, flags, strict=True) if flag == "1"]
        texts[fields[0]] = {"title": fields[1], "genres": genres}
    return texts


def _texts_latest(files: _Files) -> Texts:
    texts: Texts = {}
    for _, movie, title, genres in files.csv_rows("movies.csv", ("movieId", "title", "genres")):
        listed = [] if genres.startswith("(no genres") else genres.split("|")
        texts[movie] = {"title": title, "genres": listed}
    return texts


class _Files:
    """The files of a zip or of a folder, by name alone."""

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.is_dir():
                self.members = {p.name: p.name for p in path.iterdir() if p.is_file()}
            else:
                with zipfile.ZipFile(path) as archive:
                    self.members = {m.rpartition("/")[2]: m for m in archive.namelist()}
        except (OSError, zipfile.BadZipFile) as error:
            wrong = f"is no readable zip or folder ({error})"
            raise DataError(path, None, wrong, FETCH_AGAIN) from None

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def where(self, name: str) -> Path:
        return self.path / self.members.get(name, name)

    def text(self, name: str, encoding: str) -> str:
        where = self.where(name)
        if name not in self:
            raise DataError(where, None, "is missing", "Unpack the whole release")
        try:
            if self.path.is_dir():
                raw = where.read_bytes()
            else:
                with zipfile.ZipFile(self.path) as archive:
                    raw = archive.read(self.members[name])
            return raw.decode(encoding)
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise DataError(where, line, "is not UTF-8", FETCH_AGAIN) from None
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(where, None, f"cannot be read ({error})", FETCH_AGAIN) from None

    def lines(self, name: str) -> Iterator[tuple[int, str]]:
        """(line number, line) of each filled line of a latin-1 file."""
        for n, line in enumerate(self.text(name, "latin-1").split("\n"), 1):
            if line := line.removesuffix("\r"):
                yield n, line

    def fields(self, name: str, separator: str, count: int) -> Iterator[tuple[int, list[str]]]:
        for n, line in self.lines(name):
            fields = line.split(separator)
            if len(fields) != count:
                raise _malformed(self.where(name), n, line, f"{count} fields between {separator!r}")
            yield n, fields

    def ratings(self, name: str, separator: str) -> pd.DataFrame:
        """The table of a file of user, item, rating, timestamp."""
        rows = ((n, f[0], f[1], f[3]) for n, f in self.fields(name, separator, 4))
        return _table(self.where(name), rows)

    def csv_rows(self, name: str, columns: tuple[str, ...]) -> Iterator[tuple]:
        return _csv_rows(self.where(name), self.text(name, "utf-8-sig"), columns)


# ---- Amazon 2014 ----


def read_amazon_reviews(path: Path) -> pd.DataFrame:
    """Interactions of reviews_<category>_5.json.gz: a JSON object a line, time in seconds.

    The times are whole days, so ties are the rule: they keep the order of the file.

    Raises DataError for a damaged file and for a malformed line.
    """

    def rows() -> Iterator[Row]:
        for n, line in _gzip_lines(path):
            try:
                review = json.loads(line)
                yield n, review["reviewerID"], review["asin"], review["unixReviewTime"]
            except (ValueError, KeyError, TypeError):
                form = "a JSON object with reviewerID, asin and unixReviewTime"
                raise _malformed(path, n, line, form) from None

    return _table(path, rows())


def read_amazon_texts(path: Path, items: Collection[str]) -> Texts:
    """Title, brand, categories and description of `items` from meta_<category>.json.gz.

    A line is a Python literal. Only the lines of `items` are parsed. Categories are the names
    along all paths, first path first, without repeats; texts are without HTML.

    Raises DataError for a damaged file and for a malformed line.
    """
    texts: Texts = {}
    for n, line in _gzip_lines(path):
        if not (asin := ASIN.search(line)):
            raise _malformed(path, n, line, "a Python dict with the key 'asin'")
        if asin[1] not in items:
            continue
        try:
            record = ast.literal_eval(line.strip())
            paths = record.get("categories") or []
            categories = dict.fromkeys(clean(name) for path in paths for name in path)
            found = {
                "title": clean(record.get("title") or ""),
                "brand": clean(record.get("brand") or ""),
                "categories": [name for name in categories if name],
                "description": clean(record.get("description") or ""),
            }
        except (ValueError, SyntaxError, TypeError, AttributeError, MemoryError, RecursionError):
            raise _malformed(path, n, line, "a Python dict of plain values") from None
        texts[asin[1]] = {field: value for field, value in found.items() if value}
    return texts


def clean(text: str) -> str:
    """Text without HTML tags and entities, blanks squeezed to one.

    >>> clean("Soap &amp;amp; <b>Glory</b> ")
    'Soap & Glory'
    """
    while (plain := html.unescape(text)) != text:  # Amazon escaped some texts twice
        text = plain
    return " ".join(TAG.sub(" ", text).split())


def _gzip_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line) of each filled line. Some servers unpack a .gz as they send it."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            for n, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError:
                    raise DataError(path, n, "is not UTF-8", FETCH_AGAIN) from None
                if not line.isspace():
                    yield n, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(path, None, f"cannot be read ({error})", FETCH_AGAIN) from None


# ---- your own ----


def read_csv(path: Path) -> pd.DataFrame:
    """Interactions of a CSV (UTF-8) whose header names user, item and timestamp.

    Other columns are ignored; a timestamp is a whole number in any unit. Commas part the fields, or the semicolons or
    tabs of a header that has no comma.

    Raises DataError for a missing or empty file, a missing column and a malformed line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        raise DataError(path, None, wrong, "Check the path") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(path, line, "is not UTF-8", "Save the file as UTF-8") from None
    if not text.strip():
        raise DataError(path, None, "is empty", f"Write the header {','.join(COLUMNS)} and a line an interaction")
    header = text.partition("\n")[0]
    delimiter = next((d for d in ",;\t" if d in header), ",")
    return _table(path, _csv_rows(path, text, COLUMNS, delimiter))


def read_texts(path: Path) -> Texts:
    """Text records of JSON lines, as in OpenP5's form: `id` or `asin`, then any fields.

    Raises DataError for a file that cannot be read and for a malformed line.
    """
    records = _read_texts(path, read_lines(path)[0])
    return {i: {f: v for f, v in r.items() if f not in ("id", "asin")} for i, r in records.items()}


def _csv_rows(path: Path, text: str, columns: tuple[str, ...], delimiter: str = ",") -> Iterator[tuple]:
    """(line number, the fields of `columns`) of each row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in columns if name not in header]:
        meant = [(c[0], name) for name in missing if (c := difflib.get_close_matches(name, header, 1, 0.5))]
        hint = f" (is {meant[0][0]!r} meant for {meant[0][1]!r}?)" if meant else ""
        wrong = f"header {','.join(header)!r} lacks {', '.join(missing)}{hint}"
        raise DataError(path, 1, wrong, f"Name the columns {','.join(columns)} in the first line")
    pick = itemgetter(*map(header.index, columns))
    try:
        for fields in filter(None, reader):
            if len(fields) != len(header):
                wrong = f"{len(fields)} fields, the header has {len(header)}"
                raise DataError(path, reader.line_num, wrong, "Quote fields that hold a comma")
            yield reader.line_num, *pick(fields)
    except csv.Error as error:
        wrong = f"is no CSV ({error})"
        raise DataError(path, reader.line_num, wrong, "Close each quote that is opened") from None


# ---- tables ----


class _Codes(dict[str, int]):
    """Code of each id, in order of first appearance. KeyError for what is no id."""

    def __missing__(self, raw_id: str) -> int:
        if not is_id(raw_id):
            raise KeyError(raw_id)
        self[raw_id] = code = len(self)
        return code


def is_id(raw_id: object) -> bool:
    """Blanks stand between ids in the OpenP5 form, so none can be within them."""
    return isinstance(raw_id, str) and raw_id.split() == [raw_id]


def _table(path: Path, rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table; ids as codes, since millions of them are a few thousand names."""
    users, items = _Codes(), _Codes()
    user_codes, item_codes, times = array("i"), array("i"), array("q")
    for line, user, item, time in rows:
        try:
            user_codes.append(users[user])
            item_codes.append(items[item])
            times.append(int(time))
        except (KeyError, TypeError, ValueError, OverflowError):
            for kind, raw_id in (("user", user), ("item", item)):
                if not is_id(raw_id):
                    wrong = f"{raw_id!r} is no {kind} id"
                    raise DataError(path, line, wrong, "Write ids as text without blanks") from None
            wrong, remedy = f"{time!r} is no timestamp", "Write whole numbers, as 964982703, without decimals or dates"
            raise DataError(path, line, wrong, remedy) from None
    if not times:
        raise DataError(path, None, "holds no interactions", "Write at least one line of them")
    return pd.DataFrame({
        "user": _categorical(user_codes, users),
        "item": _categorical(item_codes, items),
        "timestamp": np.array(times, np.int64),
    })  # fmt: skip


def _categorical(codes: array, names: Iterable[str]) -> pd.Categorical:
    names = pd.Index(list(names), dtype="str")
    return pd.Categorical.from_codes(np.array(codes, np.int32), names)


def _malformed(path: Path, line: int, text: str, form: str) -> DataError:
    return DataError(path, line, f"{text.strip()[:60]!r} is malformed", f"Each line must be {form}")
