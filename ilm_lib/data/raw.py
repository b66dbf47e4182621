"""Raw MovieLens and Amazon 2014 files as tables of interactions (`tables`), and a text record for each item.

Every rating counts, whatever its value, as in OpenP5.
"""

from __future__ import annotations

import ast
import gzip
import html
import json
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pandas as pd

from ilm_lib.data.lines import DataError, text_of
from ilm_lib.data.records import clean_record
from ilm_lib.data.tables import Row, csv_rows, table_of

Texts = dict[str, dict]  # raw item id -> record

GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy "
    "Film-Noir Horror Musical Mystery Romance Sci-Fi Thriller War Western"
).split()  # the flags of u.item, in order
ASIN = re.compile(r"""['"]asin['"]\s*:\s*['"]([^'"]+)['"]""")
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<!--.*?-->", re.DOTALL)  # not the sign in "a < b"
FETCH_AGAIN = "Delete the file and fetch it again"
MOST_UNPACKED = 4 << 30  # bytes of one file of a zip; the largest release has one of 0.9 GB


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
        return table_of(files.where("ratings.csv"), rows), _texts_latest(files)
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
        _add(texts, files.where("movies.dat"), n, movie, title, genres.split("|"))
    return texts


def _texts_100k(files: _Files) -> Texts:
    texts: Texts = {}
    for n, fields in files.fields("u.item", "|", 5 + len(GENRES_100K)):
        flags = fields[5:]  # after id, title, two dates and an address
        if not set(flags) <= {"0", "1"}:
            wrong = f"{' '.join(flags)!r} are no genre flags"
            raise DataError(files.where("u.item"), n, wrong, "Write 0 or 1 for each genre")
        genres = [g for g, flag in zip(GENRES_100K, flags, strict=True) if flag == "1"]
        _add(texts, files.where("u.item"), n, fields[0], fields[1], genres)
    return texts


def _texts_latest(files: _Files) -> Texts:
    texts: Texts = {}
    for n, movie, title, genres in files.csv_rows("movies.csv", ("movieId", "title", "genres")):
        listed = [] if genres.startswith("(no genres") else genres.split("|")
        _add(texts, files.where("movies.csv"), n, movie, title, listed)
    return texts


def _add(texts: Texts, path: Path, line: int, movie: str, title: str, genres: list[str]) -> None:
    if movie in texts:
        raise DataError(path, line, f"film {movie!r} is listed twice", "Keep one of its lines")
    texts[movie] = clean_record(path, line, {"title": title, "genres": genres}, Counter())


class _Files:
    """The files of a zip or of a folder, by name alone."""

    def __init__(self, path: Path):
        self.path = path
        try:
            if path.is_dir():
                self.members = {p.name: [p.name] for p in path.iterdir() if p.is_file()}
            else:
                self.members = _members(path)
        except (OSError, zipfile.BadZipFile) as error:
            wrong = f"is no readable zip or folder ({error})"
            raise DataError(path, None, wrong, FETCH_AGAIN) from None

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def where(self, name: str) -> Path:
        return self.path / self.members.get(name, [name])[0]

    def text(self, name: str, encoding: str) -> str:
        where = self.where(name)
        if name not in self:
            raise DataError(where, None, "is missing", "Unpack the whole release")
        if others := self.members[name][1:]:
            raise DataError(where, None, f"is in the zip a second time, as {others[0]!r}", "Leave one in it")
        try:
            if self.path.is_dir():
                raw = where.read_bytes()
            else:
                with zipfile.ZipFile(self.path) as archive:
                    member = archive.getinfo(self.members[name][0])
                    if member.file_size > MOST_UNPACKED:
                        wrong = f"unpacks to {member.file_size:,} bytes, the most are {MOST_UNPACKED:,}"
                        raise DataError(where, None, wrong, FETCH_AGAIN)
                    raw = archive.read(member)
        # A RuntimeError asks for a password, which no release has; NotImplementedError is of a strange compression.
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError) as error:
            raise DataError(where, None, f"cannot be read ({error})", FETCH_AGAIN) from None
        return raw.decode("latin-1") if encoding == "latin-1" else text_of(where, raw)

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
        return table_of(self.where(name), rows)

    def csv_rows(self, name: str, columns: tuple[str, ...]) -> Iterator[tuple]:
        return csv_rows(self.where(name), self.text(name, "utf-8"), columns)


def _members(path: Path) -> dict[str, list[str]]:
    """Files of a zip by their bare name, links left out. They are read, and never unpacked to where a path may lead."""
    members: dict[str, list[str]] = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16):
                members.setdefault(info.filename.rpartition("/")[2], []).append(info.filename)
    return members


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
            except (ValueError, KeyError, TypeError, RecursionError):
                form = "a JSON object with reviewerID, asin and unixReviewTime"
                raise _malformed(path, n, line, form) from None

    return table_of(path, rows())


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


def _malformed(path: Path, line: int, text: str, form: str) -> DataError:
    return DataError(path, line, f"{text.strip()[:60]!r} is malformed", f"Each line must be {form}")
