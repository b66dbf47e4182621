"""Data that come in, handled roughly: what each door refuses and says, and what odd but valid input becomes.

A case is a line: its name, the content of the file, and the words that the message must hold (`:2` is the line).
"""

import gzip
import json
import os
import stat
import zipfile
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain, refused

from ilm_lib import load_params, profiles
from ilm_lib.data import DataError, download, load_openp5, missing_data, records
from ilm_lib.data import __main__ as command
from ilm_lib.data import lines as lines_of_files
from ilm_lib.data import raw as raw_files
from ilm_lib.data.elm24 import facts_on_record, read_facts
from ilm_lib.data.elm24_file import load_elm
from ilm_lib.data.films import PLOTS, read_films
from ilm_lib.data.own_profile import Sizes
from ilm_lib.data.raw import read_amazon_reviews, read_amazon_texts, read_movielens
from ilm_lib.data.records import clean_record, read_texts
from ilm_lib.data.tables import read_csv
from ilm_lib.data.templates import load_templates
from ilm_lib.data.temporal import split_by_date

HEADER = "user,item,timestamp\n"
ROW = HEADER + "a,x,1\n"


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(*cases):
    """Cases of a parametrized test, by their first entry, which must be different."""
    assert len({case[0] for case in cases}) == len(cases)
    return [pytest.param(*case[1:], id=case[0].replace(" ", "-")) for case in cases]


# ------------------------------------------------------------ item texts

A = '{"id": "a"}\n'
TEXTS = [
    ("title is an object", A + '{"id": "b", "title": {"en": "X"}}', ":2", "title", "{'en': 'X'}", "Write a text"),
    ("title is true", A + '{"id": "b", "title": true}', ":2", "title", "True", "Write a text"),
    ("overview holds an object", A + '{"id": "b", "overview": ["x", {"a": 1}]}', ":2", "overview", "{'a': 1}"),
    ("genres are an object", A + '{"id": "b", "genres": {"War": 1}}', ":2", "genres", "Write a list of texts"),
    ("genres are true", A + '{"id": "b", "genres": true}', ":2", "genres", "True"),
    ("genres hold objects", A + '{"id": "b", "genres": [{"id": 16, "name": "War"}]}', ":2", "genres", "'name': 'War'"),
    ("genres hold false", A + '{"id": "b", "genres": ["War", false]}', ":2", "genres", "False"),
    ("a list written as a text", A + """{"id": "b", "genres": "['War', 'Drama']"}""", ":2", "written as a text"),
    ("objects written as a text", A + """{"id": "b", "tags": " [{'id': 1}] "}""", ":2", "tags", "written as a text"),
    ("an object written as a text", A + """{"id": "b", "tags": "{'id': 1}"}""", ":2", "tags", "written as a text"),
    ("lists three deep", A + '{"id": "b", "categories": [[["x"]]]}', ":2", "categories", "lists within lists"),
    ("half of a pair in a title", A + r'{"id": "b", "title": "\ud83e"}', ":2", r"\ud83e", "half of a surrogate pair"),
    ("half of a pair in a list", A + r'{"id": "b", "tags": ["x", "\uDD8A"]}', ":2", r"\udd8a"),
    ("half of a pair in another field", A + r'{"id": "b", "note": "\ud83e"}', ":2", r"\ud83e"),
    ("half of a pair in a key", A + r'{"id": "b", "\ud83e": 1}', ":2", r"\ud83e"),
    ("half of a pair in an id", r'{"id": "\ud83e"}', ":1", r"\ud83e"),
    ("ten million characters", A + '{"id": "b", "overview": "' + "x " * 5_000_000 + '"}', ":2", "10,000,000"),
    ("an id twice", A + '{"id": "b"}\n{"asin": "a"}', ":3", "'a' has two text records"),
    ("an id twice, as number and text", '{"id": 17}\n{"id": "17"}', ":2", "'17' has two text records"),
    ("no id", A + '{"title": "x"}', ":2", "without id"),
    ("a null id", A + '{"id": null}', ":2", "without id"),
    ("a blank id", A + '{"id": " "}', ":2", "' ' is no item id"),
    ("an id with a blank", A + '{"id": "a b"}', ":2", "'a b' is no item id"),
    ("an id with a line break", A + '{"id": "b\\n"}', ":2", "is no item id"),
    ("an id with a NUL", A + '{"id": "b\\u0000"}', ":2", "is no item id"),
    ("an id that is a decimal", A + '{"id": 17.0}', ":2", "17.0 is no item id", "whole number"),
    ("an id that is true", A + '{"id": true}', ":2", "True is no item id"),
    ("an id that is a list", A + '{"id": ["b"]}', ":2", "is no item id"),
    ("an id of a megabyte", A + '{"id": "' + "b " * 500_000 + '"}', ":2", "is no item id"),
    ("NaN", A + '{"id": "b", "title": NaN}', ":2", "NaN is no number", "null"),
    ("infinity", A + '{"id": "b", "price": -Infinity}', ":2", "-Infinity is no number"),
    ("a number beyond all", A + '{"id": "b", "price": 1e999}', ":2", "1e999"),
    ("a number of 5000 digits", A + '{"id": "b", "price": ' + "9" * 5_000 + "}", ":2", "digits"),
    ("a key twice", A + '{"id": "b", "title": "X", "title": "Y"}', ":2", "'title' twice"),
    ("nested a million deep", A + "[" * 1_000_000, ":2", "nested too deeply"),
    ("nested within an object", A + '{"id": "b", "x": ' + "[" * 50_000, ":2", "nested too deeply"),
    ("a list", A + "[1]", ":2", "no JSON object"),
    ("a text", A + '"b"', ":2", "no JSON object"),
    ("no JSON", A + "{'id': 'b'}", ":2", "no JSON", "column 2"),
    ("cut short", A + '{"id": "b", "title": "X', ":2", "no JSON"),
    ("two objects a line", '{"id": "a"} {"id": "b"}', ":1", "no JSON", "one JSON object a line"),
    ("one object over lines", '{\n"id": "a"\n}', ":1", "no JSON", "one JSON object a line"),
    ("a raw line break in a text", A + '{"id": "b", "title": "X\tY"}', ":2", "control character"),
    ("line ends of old Macs", '{"id": "a"}\r{"id": "b"}\r', ":1", "carriage return", "line feed"),
    ("not UTF-8", A.encode() + b'{"id": "\xe9"}', ":2", "0xe9", "UTF-8"),
    ("a NUL byte", A.encode() + b'{"id": "b\0"}', ":2", "NUL"),
    ("UTF-16", A.encode("utf-16"), ":1", "UTF-16", "UTF-8"),
    ("gzip without .gz", gzip.compress(A.encode(), mtime=0), ":1", "packed with gzip", ".gz"),
    ("a spreadsheet", b"PK\x03\x04\xff\0", ":1", "spreadsheet"),
    ("a byte order mark in the middle", A + "\ufeff" + A, ":2", "no JSON"),
    ("empty", "", "empty"),
    ("blank lines alone", "\n \n\t\n", "empty"),
    ("an error page", "<!DOCTYPE html>\n<html>", ":1", "no JSON"),
]


@pytest.mark.parametrize(("content", "words"), table(*((c[0], c[1], c[2:]) for c in TEXTS)))
def test_texts_refused(tmp_path, content, words):
    path = put(tmp_path / "texts.jsonl", content)
    refused(lambda: read_texts(path), "texts.jsonl", *words)


PACKED = [
    ("no gzip", A.encode(), "damaged gzip"),
    ("gzip cut short", gzip.compress(A.encode() * 99, mtime=0)[:-9], "damaged gzip"),
    ("gzip with rubbish behind", gzip.compress(A.encode(), mtime=0) + b"rubbish", "damaged gzip"),
    ("gzip of nothing", gzip.compress(b"", mtime=0), "empty"),
    ("gzip that fills the memory", gzip.compress(bytes(2_000_000)), "unpacks to more than 1,000,000"),
]


@pytest.mark.parametrize(("content", "words"), table(*((c[0], c[1], c[2:]) for c in PACKED)))
def test_packed_texts_refused(tmp_path, monkeypatch, content, words):
    monkeypatch.setattr(lines_of_files, "MOST_UNPACKED", 1_000_000)
    path = put(tmp_path / "texts.jsonl.gz", content)
    refused(lambda: read_texts(path), "texts.jsonl.gz", *words)


# What stands in the record, what becomes of it, and what is counted.
CLEANED = [
    ("as it should be", {"title": "X", "genres": ["War"]}, {"title": "X", "genres": ["War"]}, {}),
    ("genres at a bar", {"genres": "Drama|War"}, {"genres": ["Drama", "War"]}, {"genres_split_at_|_or_,": 1}),
    ("genres at a comma", {"genres": "Drama, War"}, {"genres": ["Drama", "War"]}, {"genres_split_at_|_or_,": 1}),
    ("commas stay where there are bars", {"tags": "a, b|c"}, {"tags": ["a, b", "c"]}, {"tags_split_at_|_or_,": 1}),
    ("one genre", {"genres": "Drama"}, {"genres": ["Drama"]}, {"genres_split_at_|_or_,": 1}),
    ("bars alone", {"genres": "||"}, {"genres": []}, {"genres_split_at_|_or_,": 1}),
    ("no genres listed", {"genres": "(no genres listed)"}, {"genres": ["(no genres listed)"]},
     {"genres_split_at_|_or_,": 1}),
    ("null everywhere", dict.fromkeys(records.KINDS), {}, {}),
    ("blank everywhere", dict.fromkeys(records.KINDS, " \t"), {}, {}),
    ("empty lists", {"genres": [], "title": []}, {"genres": []}, {}),
    ("blanks in a list", {"tags": ["", None, " ", "x"]}, {"tags": ["x"]}, {}),
    ("a number for a title", {"title": 1917}, {"title": "1917"}, {"numbers_made_texts": 1}),
    ("a decimal for a title", {"title": 8.5}, {"title": "8.5"}, {"numbers_made_texts": 1}),
    ("numbers for tags", {"tags": [1, 2.5]}, {"tags": ["1", "2.5"]}, {"numbers_made_texts": 2}),
    ("a number for a list", {"tags": 7}, {"tags": ["7"]}, {"numbers_made_texts": 1}),
    ("a huge number", {"title": 10**400}, {"title": "1" + "0" * 400}, {"numbers_made_texts": 1}),
    ("description of parts", {"description": ["A.", "", "B."]}, {"description": "A., B."},
     {"description_joined_from_a_list": 1}),
    ("brand of two", {"brand": ["Ann", "Bob"]}, {"brand": "Ann, Bob"}, {"brand_joined_from_a_list": 1}),
    ("paths of categories", {"categories": [["A", "B"], ["A", "C"]]}, {"categories": ["A", "B", "C"]},
     {"lists_of_lists_made_one": 1}),
    ("repeats in a list stay", {"tags": ["x", "x"]}, {"tags": ["x", "x"]}, {}),
    ("control characters", {"title": "A\0B\x1b", "tags": ["\x7f", "x\x90y"]}, {"title": "A B ", "tags": ["x y"]},
     {"control_characters_made_blanks": 4}),
    ("blanks of all kinds stay", {"title": " A\n\tB\u2028C\xa0"}, {"title": " A\n\tB\u2028C\xa0"}, {}),
    ("HTML stays", {"overview": "<b>A &amp; B</b>"}, {"overview": "<b>A &amp; B</b>"}, {}),
    ("marks of direction and joiners stay", {"title": "\u202eA\u200d🦊"}, {"title": "\u202eA\u200d🦊"}, {}),
    ("other fields stay", {"price": 1.5, "x": {"y": [None]}}, {"price": 1.5, "x": {"y": [None]}}, {}),
    ("words like nothing", {"title": "None", "tags": ["nan", "null"]}, {"title": "None", "tags": ["nan", "null"]}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "becomes", "counted"), table(*CLEANED))
def test_texts_made_clean(tmp_path, given_, becomes, counted):
    path = put(tmp_path / "texts.jsonl", json.dumps({"id": "a", **given_}) + "\n")
    assert read_texts(path) == ({"a": becomes}, counted)
    again: Counter[str] = Counter()
    assert clean_record(path, 1, becomes, again) == becomes and not +again


VALID_TEXTS = [
    ("a byte order mark", "\ufeff" + A, ["a"]),
    ("Windows line ends", A.replace("\n", "\r\n") + '\r\n{"id": "b"}\r\n', ["a", "b"]),
    ("line ends doubled", A.replace("\n", "\r\r\n") + '{"id": "b"}\r\r\n', ["a", "b"]),
    ("no last line end", A + '{"id": "b"}', ["a", "b"]),
    ("blank lines", "\n" + A + " \n\n", ["a"]),
    ("a number for an id", '{"id": 17}\n{"id": 0}', ["17", "0"]),
    ("a zero before an id", '{"id": "007"}\n{"id": "7"}', ["007", "7"]),
    ("words like nothing", '{"id": "nan"}\n{"id": "None"}\n{"id": "1.0"}', ["nan", "None", "1.0"]),
    ("a whole pair", r'{"id": "\ud83e\udd8a"}', ["🦊"]),
    ("id before asin", '{"id": "a", "asin": "b"}', ["a"]),
]


@pytest.mark.parametrize(("content", "ids"), table(*VALID_TEXTS))
def test_texts_taken(tmp_path, content, ids):
    assert list(read_texts(put(tmp_path / "texts.jsonl", content))[0]) == ids


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from((*records.KINDS, "year", "note")), JSON))
def test_a_clean_record_is_text_and_stays_so(record):
    """Whatever comes in: texts and lists of texts that can be written, the same when cleaned again; or a refusal."""
    try:
        clean = clean_record(Path("t.jsonl"), 3, record, Counter())
    except DataError as error:
        plain(str(error), "t.jsonl:3: ", "Write a ")
        return
    for field, kind in records.KINDS.items():
        value = clean.get(field, [])
        texts = value if kind == "a list of texts" or field not in clean else [value]
        assert isinstance(texts, list) and all(type(text) is str and text.strip() for text in texts)
        "".join(texts).encode()
    assert all(clean[field] is record[field] for field in record.keys() - records.KINDS)
    again: Counter[str] = Counter()
    assert str(clean_record(Path("t.jsonl"), 3, clean, again)) == str(clean) and not +again
    read_facts(clean), facts_on_record(clean)


def test_facts_are_counted_one_way(tmp_path):
    """A text of genres is two genres everywhere: in the item's text, in ELM's facts, and in a profile's count."""
    items = [f"i{n}" for n in range(30)]
    put(tmp_path / "user_sequence.txt", "".join(f"u{u} {' '.join(items[u:] + items[:u])}\n" for u in range(30)))
    record = {"title": "X (1999)", "genres": "Drama|War", "overview": "A man who fell."}
    put(tmp_path / "item_text.jsonl", "".join(json.dumps({"id": i, **record}) + "\n" for i in items))
    data = load_openp5(tmp_path)
    assert data.item_text(0) == "X (1999). Drama, War. A man who fell."
    assert read_facts(data.texts[0]).genres == ("drama", "war") and facts_on_record(data.texts[0]) == 2
    assert Sizes.of(data).films == 30 and data.notes["genres_split_at_|_or_,"] == 30


# ------------------------------------------------------------ a table of one's own

CSV = [
    ("empty", "", "empty", "user,item,timestamp"),
    ("blank", " \n\n", "empty"),
    ("only a header", HEADER, "no interactions"),
    ("no header", "a,x,1\nb,y,2\n", ":1", "lacks user, item, timestamp"),
    ("a blank line first", "\n" + ROW, ":1", "lacks user"),
    ("a column missing", "user,item\na,x\n", ":1", "lacks timestamp"),
    ("a column misspelt", "user,itme,timestamp\na,x,1\n", ":1", "'itme' meant for 'item'"),
    ("a column in capitals", "User,item,timestamp\na,x,1\n", ":1", "'User' meant for 'user'"),
    ("a column twice", "user,item,timestamp,user\na,x,1,b\n", ":1", "user twice"),
    ("a million columns", ",".join(f"c{n}" for n in range(1_000_000)) + "\n", ":1", "lacks user"),
    ("bars between", "user|item|timestamp\na|x|1\n", ":1", "lacks user"),
    ("a field too many", ROW + "b,y,2,3\n", ":3", "4 fields", "3"),
    ("a field too few", ROW + "b,y\n", ":3", "2 fields"),
    ("a comma at the end of rows", HEADER + "a,x,1,\n", ":2", "4 fields"),
    ("an id left out", ROW + ",y,2\n", ":3", "'' is no user id"),
    ("an item left out", ROW + "b,,2\n", ":3", "'' is no item id"),
    ("a blank in an id", ROW + "b b,y,2\n", ":3", "'b b' is no user id"),
    ("a blank after an id", ROW + "b ,y,2\n", ":3", "'b ' is no user id"),
    ("a line break in an id", ROW + 'b,"y\nz",2\n', ":4", "is no item id"),
    ("a NUL in an id", ROW + "b\0,y,2\n", ":3", "NUL"),
    ("a NUL in another column", "user,item,timestamp,x\na,x,1,\0\n", ":2", "NUL"),
    ("a control character in an id", ROW + "b,y\x07,2\n", ":3", r"'y\x07' is no item id"),
    ("an id of a megabyte", ROW + "b" * 100_000 + " ,y,2\n", ":3", "is no user id"),
    ("a time with an underscore", ROW + "b,y,1_000\n", ":3", "'1_000' is no timestamp"),
    ("a time with an exponent", ROW + "b,y,1e3\n", ":3", "'1e3' is no timestamp", "whole numbers"),
    ("a time in Arabic digits", ROW + "b,y,١٢٣\n", ":3", "is no timestamp"),
    ("a time with decimals", ROW + "b,y,1.0\n", ":3", "'1.0' is no timestamp", "without decimals"),
    ("a time of infinity", ROW + "b,y,inf\n", ":3", "'inf' is no timestamp"),
    ("a time that is NaN", ROW + "b,y,NaN\n", ":3", "'NaN' is no timestamp"),
    ("a time of 10^30", ROW + "b,y,1" + "0" * 30 + "\n", ":3", "is no timestamp"),
    ("a time of 9000 digits", ROW + "b,y," + "9" * 9_000 + "\n", ":3", "is no timestamp"),
    ("a date", ROW + "b,y,2020-01-01\n", ":3", "'2020-01-01' is no timestamp", "dates"),
    ("a time left out", ROW + "b,y,\n", ":3", "'' is no timestamp"),
    ("a time in hexadecimal", ROW + "b,y,0x10\n", ":3", "'0x10' is no timestamp"),
    ("the header again", ROW + ROW, ":3", "'timestamp' is no timestamp"),
    ("a quote never closed", "user,item,timestamp,x\na,x,1,ok\nb,y,2,\"oops\nc,z,3,ok\n", "no CSV", "quote"),
    ("a quote within a quote", "user,item,timestamp,x\na,x,1,\"o\"k\n", ":2", "no CSV"),
    ("a field of a megabyte", HEADER + 'a,"' + "x" * 1_000_000 + '",1\n', "no CSV"),
    ("a header of a megabyte", '"' + "x" * 1_000_000 + '",1\n', "no CSV"),
    ("not UTF-8", ROW.encode() + b"b\xe9,y,2\n", ":3", "0xe9", "UTF-8"),
    ("UTF-16", ROW.encode("utf-16"), ":1", "UTF-16"),
    ("UTF-16 without its mark", ROW.encode("utf-16-le"), ":1", "NUL"),
    ("packed", gzip.compress(ROW.encode()), ":1", "gzip", "Unpack it"),
    ("a spreadsheet", b"PK\x03\x04\xff", ":1", "spreadsheet"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "words"), table(*((c[0], c[1], c[2:]) for c in CSV)))
def test_csv_refused(tmp_path, content, words):
    path = put(tmp_path / "own.csv", content)
    refused(lambda: read_csv(path), "own.csv", *words)


VALID_CSV = [
    ("ids like numbers", HEADER + "1,1.0,1\n01,1,2\n", [("1", "1.0", 1), ("01", "1", 2)]),
    ("ids like nothing", HEADER + "nan,None,1\nNA,null,2\n", [("nan", "None", 1), ("NA", "null", 2)]),
    ("ids like large numbers", HEADER + "1e5,12345678901234567890123,1\n", [("1e5", "12345678901234567890123", 1)]),
    ("ids like truth and dates", HEADER + "True,2020-01-01,1\n", [("True", "2020-01-01", 1)]),
    ("old Macs", ROW.replace("\n", "\r"), [("a", "x", 1)]),
    ("old Macs and semicolons", "user;item;timestamp\ra;x,y;1\r", [("a", "x,y", 1)]),
    ("Windows", "\ufeff" + ROW.replace("\n", "\r\n"), [("a", "x", 1)]),
    ("semicolons", "user;item;timestamp\na;x;1\n", [("a", "x", 1)]),
    ("tabs", "user\titem\ttimestamp\na\tx\t1\n", [("a", "x", 1)]),
    ("blanks after commas", "user, item, timestamp\na, x, 1\n", [("a", "x", 1)]),
    ("a blank after the time", HEADER + "a,x,1 \n", [("a", "x", 1)]),
    ("a comma at every end", "user,item,timestamp,\na,x,1,\n", [("a", "x", 1)]),
    ("other columns twice", "x,user,x,item,timestamp\n1,a,2,x,1\n", [("a", "x", 1)]),
    ("a line break in another column", 'user,item,timestamp,x\na,x,1,"o\nk"\n', [("a", "x", 1)]),
    ("times below zero", HEADER + "a,x,-5\nb,y,+5\nc,z,007\n", [("a", "x", -5), ("b", "y", 5), ("c", "z", 7)]),
    ("the largest time", HEADER + f"a,x,{2**63 - 1}\n", [("a", "x", 2**63 - 1)]),
    ("no last line end", ROW.strip(), [("a", "x", 1)]),
    ("blank lines", HEADER + "\n\na,x,1\n\n", [("a", "x", 1)]),
]


@pytest.mark.parametrize(("content", "rows"), table(*VALID_CSV))
def test_csv_taken(tmp_path, content, rows):
    found = read_csv(put(tmp_path / "own.csv", content)).astype({"user": str, "item": str})
    assert list(found.itertuples(index=False, name=None)) == rows


def test_a_folder_and_nothing_are_no_file(tmp_path):
    for read in (read_csv, read_texts, load_templates):
        refused(lambda: read(tmp_path), str(tmp_path), "Is a directory")
        refused(lambda: read(tmp_path / "gone.csv"), "gone.csv", "No such file")


# ------------------------------------------------------------ OpenP5's files

SEQUENCES = "ann x y z\nbob y z x\n"
OPENP5 = [
    ("sequence.txt empty", "user_sequence.txt", "", "empty"),
    ("sequence: a user of two items", "user_sequence.txt", SEQUENCES + "\ncat x y\n", ":4", "'cat' has 2 items"),
    ("sequence: a user alone", "user_sequence.txt", SEQUENCES + "cat\n", ":3", "'cat' has 0 items"),
    ("sequence: a user twice", "user_sequence.txt", SEQUENCES + "ann z y x\n", ":3", "'ann' is repeated"),
    ("sequence: commas", "user_sequence.txt", "ann,x,y,z\n", ":1", "has 0 items"),
    ("sequence: old Macs", "user_sequence.txt", SEQUENCES.replace("\n", "\r"), ":1", "carriage return", "line feed"),
    ("sequence: a lone carriage return", "user_sequence.txt", SEQUENCES + "cat x\ry z\n", ":3", "carriage return"),
    ("sequence: NUL", "user_sequence.txt", SEQUENCES + "cat x y\0 z\n", ":3", "NUL"),
    ("sequence: UTF-16", "user_sequence.txt", SEQUENCES.encode("utf-16"), ":1", "UTF-16"),
    ("sequence: packed", "user_sequence.txt", gzip.compress(SEQUENCES.encode()), ":1", "gzip"),
    ("sequence: not UTF-8", "user_sequence.txt", SEQUENCES.encode() + b"\xff x y z\n", ":3", "0xff", "UTF-8"),
    ("sequence: a user without number", "user_sequence.txt", SEQUENCES + "cat x y z\n", ":3", "'cat' has no index"),
    ("sequence: an item without number", "user_sequence.txt", SEQUENCES + "bo x y q\n", ":3", "has no index number"),
    ("sequence: a name of a megabyte", "user_sequence.txt", "a" * 1_000_000 + " x y\n", ":1", "has 2 items"),
    ("users: a number twice", "user_indexing.txt", "ann 1\nbob 1\n", ":2", "already that of 'ann'"),
    ("users: a number twice, with zeros", "user_indexing.txt", "ann 1\nbob 01\n", ":2", "already that of 'ann'"),
    ("users: a user twice", "user_indexing.txt", "ann 1\nann 2\n", ":2", "'ann' has two"),
    ("users: below zero", "user_indexing.txt", "ann 1\nbob -2\n", ":2", "'bob -2' is no index entry"),
    ("users: 10^30", "user_indexing.txt", "ann 1\nbob 1" + "0" * 30 + "\n", ":2", "too large", "18 digits"),
    ("users: 9000 digits", "user_indexing.txt", "ann 1\nbob " + "9" * 9_000 + "\n", ":2", "too large"),
    ("users: a decimal", "user_indexing.txt", "ann 1\nbob 2.0\n", ":2", "is no index entry", "whole number"),
    ("users: other digits", "user_indexing.txt", "ann 1\nbob ٢\n", ":2", "is no index entry"),
    ("users: an underscore", "user_indexing.txt", "ann 1\nbob 1_0\n", ":2", "is no index entry"),
    ("users: no number", "user_indexing.txt", "ann 1\nbob\n", ":2", "is no index entry"),
    ("users: three fields", "user_indexing.txt", "ann 1\nbob 2 3\n", ":2", "is no index entry"),
    ("users: commas", "user_indexing.txt", "ann,1\nbob,2\n", ":1", "is no index entry"),
    ("users: empty", "user_indexing.txt", "\n", "empty", "remove the file"),
    ("users: one is missing", "user_indexing.txt", "ann 1\n", "user_sequence.txt:2", "'bob' has no index number"),
    ("items: old Macs", "item_random_indexing.txt", "x 1\ry 2\rz 3\r", ":1", "carriage return"),
    ("items: a number twice", "item_random_indexing.txt", "x 1\ny 2\nz 2\n", ":3", "index number 2"),
    ("items: 10^30", "item_random_indexing.txt", "x 1\ny 2\nz 1" + "0" * 30 + "\n", ":3", "too large"),
    ("items: one is missing", "item_random_indexing.txt", "x 1\ny 2\n", "user_sequence.txt:1", "'z' has no index"),
    (
        "texts: genres hold objects",
        "item_text.jsonl",
        A + '{"id": "b", "genres": [{}]}',
        ":2",
        "genres",
        "list of texts",
    ),
    ("texts: a null title is no fault, an object is", "item_text.jsonl", A + '{"id": "b", "title": {}}', ":2", "title"),
    ("texts: an error page", "item_text.jsonl", "<html>", ":1", "no JSON"),
]


@pytest.mark.parametrize(("name", "content", "words"), table(*((c[0], c[1], c[2], c[3:]) for c in OPENP5)))
def test_openp5_refused(tmp_path, name, content, words):
    put(tmp_path / "user_sequence.txt", SEQUENCES)
    put(tmp_path / "user_indexing.txt", "ann 1\nbob 2\n")
    put(tmp_path / "item_random_indexing.txt", "x 1001\ny 1002\nz 1003\n")
    put(tmp_path / name, content)
    refused(lambda: load_openp5(tmp_path), *(words if "txt:" in words[0] else (name, *words)))


TIMES = [
    ("missing", None, "user_time.txt: is missing", "python -m ilm_lib.data"),
    ("a user less", "ann 1 2 3\n", "has 1 users, user_sequence.txt has 2"),
    ("another order", "bob 1 2 3\nann 1 2 3\n", ":1", "'bob'", "'ann'"),
    ("a time less", "ann 1 2 3\nbob 1 2\n", ":2", "with 2 times", "with 3 items"),
    ("a time more", "ann 1 2 3 4\nbob 1 2 3\n", ":1", "with 4 times"),
    ("falling", "ann 1 2 3\nbob 1 3 2\n", ":2", "do not rise"),
    ("a decimal", "ann 1 2 3.5\nbob 1 2 3\n", ":1", "'3.5' is no time"),
    ("other digits", "ann 1 2 ٣\nbob 1 2 3\n", ":1", "is no time"),
    ("an underscore", "ann 1 2 3_0\nbob 1 2 3\n", ":1", "is no time"),
    ("too long", f"ann 1 2 {'9' * 5000}\nbob 1 2 3\n", ":1", "is no time", "18 digits"),
    ("empty", "\n", "is empty"),
    ("Latin", b"ann 1 2 3\nb\xf6b 1 2 3\n", "user_time.txt:2", "not UTF-8"),
]


@pytest.mark.parametrize(("content", "words"), table(*((c[0], c[1], c[2:]) for c in TIMES)))
def test_times_refused(tmp_path, content, words):
    put(tmp_path / "user_sequence.txt", "ann x y z\nbob y z x\n")
    if content:
        put(tmp_path / "user_time.txt", content)
    refused(lambda: split_by_date(load_openp5(tmp_path), tmp_path, 0.5, 0.8), *words)


VALID_OPENP5 = [
    ("Windows", SEQUENCES.replace("\n", "\r\n"), 2, 3),
    ("line ends doubled", SEQUENCES.replace("\n", "\r\r\n"), 2, 3),
    ("a carriage return at the end", SEQUENCES.strip() + "\r", 2, 3),
    ("tabs and a mark", "\ufeff" + SEQUENCES.replace(" ", "\t"), 2, 3),
    ("an item again and again", "ann x x x\nbob x x x\n", 2, 1),
    ("ids like numbers and nothing", "1 1 01 1.0\nnan None nan 1\n", 2, 5),
]


@pytest.mark.parametrize(("content", "users", "items"), table(*VALID_OPENP5))
def test_openp5_taken(tmp_path, content, users, items):
    put(tmp_path / "user_sequence.txt", content)
    data = load_openp5(tmp_path)
    assert (data.num_users, data.num_items) == (users, items)


def test_index_numbers_may_have_gaps_and_start_at_zero(tmp_path):
    put(tmp_path / "user_sequence.txt", SEQUENCES)
    put(tmp_path / "user_indexing.txt", f"ann 0\nbob {10**18 - 1}\nunused 7\n")
    data = load_openp5(tmp_path)
    assert data.user_index.tolist() == [0, 10**18 - 1] and data.notes["unused_user_indices"] == 1


# ------------------------------------------------------------ prompts, films, ELM rows, raw files

GOOD = "sequential; seen; {dataset} user_{user_id} {history}; {dataset} {target}\n"
PLAIN = "straightforward; seen; {dataset} user_{user_id}; {dataset} {target}\n"
TEMPLATES = [
    ("empty", "", "empty"),
    ("no JSON wanted", "{}\n", ":1", "1 fields"),
    ("a placeholder with a form", GOOD + PLAIN.replace("{user_id}", "{user_id:d}"), ":2", "':'"),
    ("a placeholder with a conversion", GOOD + PLAIN.replace("{user_id}", "{user_id!r}"), ":2", "'!'"),
    ("a placeholder within a placeholder", GOOD + PLAIN.replace("{user_id}", "{user_id:{dataset}}"), ":2", "':'"),
    ("an attribute", GOOD + PLAIN.replace("{dataset} user", "{dataset.x} user"), ":2", "placeholders of the source"),
    ("an empty placeholder", GOOD + PLAIN.replace("{target}", "{target} {}"), ":2", "placeholders of the target"),
    ("braces left open", GOOD + PLAIN.replace("{target}", "{target"), ":2", "bad braces"),
    ("seen and unseen alike", GOOD + PLAIN + GOOD.replace("seen", "unseen"), ":3", "seen in line 1"),
    ("no seen template of a task", GOOD, "no seen straightforward template"),
    ("unseen ones alone", (GOOD + PLAIN).replace("seen", "unseen"), "no seen sequential template"),
    ("no task", GOOD + PLAIN.replace("straightforward", "direct"), ":2", "'direct'", "sequential"),
    ("a task of a megabyte", "x" * 1_000_000 + ";seen;a;b\n", ":1", "unknown task"),
    ("old Macs", (GOOD + PLAIN).replace("\n", "\r"), ":1", "carriage return"),
    ("not UTF-8", GOOD.encode() + b"\xff", ":2", "UTF-8"),
]


@pytest.mark.parametrize(("content", "words"), table(*((c[0], c[1], c[2:]) for c in TEMPLATES)))
def test_templates_refused(tmp_path, content, words):
    path = put(tmp_path / "prompt.txt", content)
    refused(lambda: load_templates(path), "prompt.txt", *words)


def test_templates_are_looked_at_before_a_study_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    put(tmp_path / "p.txt", GOOD + PLAIN)
    params = load_params("toy", **{"data.templates": "p.txt"})
    plain(missing_data(params), "p.txt", "unseen sequential", "evaluation.prompts")
    assert missing_data(params.with_(**{"evaluation.prompts": ("seen",)})) is None
    put(tmp_path / "p.txt", GOOD + "x\n")
    plain(missing_data(params), "p.txt:2", "1 fields")


MOVIES = "movieId,title,genres\n1,Heat (1995),Crime\n7,Alien (1979),Horror|Sci-Fi\n"
PLOT = '{"movieId": 1, "overview": "A chase."}\n'
FILMS = [
    ("plots: of no film", MOVIES, PLOT + '{"movieId": 2, "overview": "X."}', f"{PLOTS}:2", "no film"),
    ("plots: a decimal for a film", MOVIES, PLOT + '{"movieId": 7.0, "overview": "X."}', f"{PLOTS}:2", "no film"),
    ("plots: none", MOVIES, PLOT + '{"movieId": 7}', f"{PLOTS}:2", "no overview"),
    ("plots: null", MOVIES, PLOT + '{"movieId": 7, "overview": null}', f"{PLOTS}:2", "no overview"),
    ("plots: blank", MOVIES, PLOT + '{"movieId": 7, "overview": " "}', f"{PLOTS}:2", "no overview"),
    ("plots: an object", MOVIES, PLOT + '{"movieId": 7, "overview": {}}', f"{PLOTS}:2", "overview"),
    ("plots: a film twice", MOVIES, PLOT + PLOT, f"{PLOTS}:2", "second plot of film 1", "line 1"),
    ("plots: half of a pair", MOVIES, PLOT + r'{"movieId": 7, "overview": "\ud800"}', f"{PLOTS}:2", "surrogate"),
    ("movies: a film twice", MOVIES + "1,Other,War\n", PLOT, "movies.csv:4", "'1' is listed twice"),
    ("movies: no title", MOVIES.replace("Heat (1995)", " "), PLOT, "movies.csv", "film 1 has no title"),
    ("movies: a column missing", MOVIES.replace("genres", "kinds"), PLOT, "movies.csv:1", "lacks genres"),
    ("movies: a quote never closed", MOVIES + '8,"Up,War\n9,In,War\n', PLOT, "movies.csv", "no CSV"),
    ("movies: not UTF-8", MOVIES.encode() + b"8,\xe9,War\n", PLOT, "movies.csv:4", "UTF-8"),
    ("movies: empty", "", PLOT, "movies.csv:1", "lacks"),
]


@pytest.mark.parametrize(("movies", "plots", "words"), table(*((c[0], c[1], c[2], c[3:]) for c in FILMS)))
def test_films_refused(tmp_path, movies, plots, words):
    put(tmp_path / "movies.csv", movies)
    put(tmp_path / PLOTS, gzip.compress(plots.encode()))
    refused(lambda: read_films(tmp_path), *words)


def elm(**changes):
    rows = [{"task": "t", "item": i, "prompt": "Of {film}?", "target": "x", "split": s} for i, s in enumerate(SPLITS)]
    rows[1] |= changes
    return rows


SPLITS = ("train", "train", "test")
ELM = [
    ("task is a number", elm(task=5), ":2", "task is 5", "Give a text"),
    ("target is a list", elm(target=["x"]), ":2", "target is ['x']"),
    ("target is a megabyte of blanks", elm(target=" " * 1_000_000), ":2", "target is"),
    ("prompt without a film", elm(prompt="Of what?"), ":2", "{film}"),
    ("item is a text", elm(item="1"), ":2", "item is '1'", "0 to 2"),
    ("item is true", elm(item=True), ":2", "item is True"),
    ("item is 10^30", elm(item=10**30), ":2", "item is 1000"),
    ("item is 1e300", elm(item=1e300), ":2", "item is 1e+300"),
    ("item is null", elm(item=None), ":2", "item is None"),
    ("split is a list", elm(split=[]), ":2", "split is []", "train or test"),
    ("split in capitals", elm(split="Train"), ":2", "split is 'Train'"),
    ("teacher is a number", elm(teacher=5), ":2", "teacher is 5"),
    ("a column too many", elm(films=5), ":2", "unknown column films"),
    ("half of a pair", elm(target="\ud800"), ":2", "surrogate"),
]


@pytest.mark.parametrize(("rows", "words"), table(*((c[0], c[1], c[2:]) for c in ELM)))
def test_elm_rows_refused(tmp_path, rows, words):
    path = put(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    refused(lambda: load_elm(path, num_items=3), "rows.jsonl", *words)


def test_parquet_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    for content, words in (("", "parquet"), ("{}", "parquet"), (b"PAR1" + bytes(99) + b"PAR1", "parquet")):
        put(path, content)
        refused(lambda: load_elm(path, num_items=3), "rows.parquet", words)
    frames = (pd.DataFrame(elm()[:0], columns=list(elm()[0])), pd.DataFrame({0: [1]}), pd.DataFrame(elm(task=None)))
    for frame, words in zip(frames, ("no rows", "unknown column 0", "task is None")):
        frame.rename(columns=str).to_parquet(path)
        refused(lambda: load_elm(path, num_items=3), "rows.parquet", words)
    path.unlink()
    refused(lambda: load_elm(path, num_items=3), "rows.parquet", "No such file")
    path.mkdir()
    refused(lambda: load_elm(path, num_items=3), "rows.parquet", "Is a directory")


MEMBERS = {"ml-1m/ratings.dat": "1::2::3::4\n", "ml-1m/movies.dat": "2::Two::War\n"}
ZIPS = [
    ("no zip", b"<html>", "no readable zip"),
    ("a zip cut short", None, "no readable zip"),
    ("nothing of a release", {"a.txt": ""}, "holds no ratings.dat"),
    ("a file in two folders", MEMBERS | {"old/ratings.dat": "1::2::3::4\n"}, "second time", "old/ratings.dat"),
    ("a link", {"ml-1m/ratings.dat": "->/etc/passwd"}, "holds no ratings.dat"),
    ("a file too large", MEMBERS | {"ml-1m/ratings.dat": "1::2::3::4\n" * 100_000}, "1,100,000 bytes", "most"),
    ("a film twice", MEMBERS | {"ml-1m/movies.dat": "2::Two::War\n2::Other::War\n"}, "movies.dat:2", "listed twice"),
    ("an underscore in a time", MEMBERS | {"ml-1m/ratings.dat": "1::2::3::4_0\n"}, "ratings.dat:1", "'4_0'"),
    ("a blank line end", MEMBERS | {"ml-1m/ratings.dat": "1::2::3::4\n1::2::3\n"}, "ratings.dat:2", "malformed"),
]


@pytest.mark.parametrize(("members", "words"), table(*((c[0], c[1], c[2:]) for c in ZIPS)))
def test_archives_refused(tmp_path, monkeypatch, members, words):
    monkeypatch.setattr(raw_files, "MOST_UNPACKED", 1_000_000)
    path = tmp_path / "ml.zip"
    if isinstance(members, bytes):
        put(path, members)
    else:
        write_zip(path, MEMBERS if members is None else members)
        put(path, path.read_bytes()[: None if members else 60])
    refused(lambda: read_movielens(path), "ml.zip", *words)


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if text.startswith("->") else stat.S_IFREG) << 16
            file.writestr(info, text.removeprefix("->"))


def test_paths_in_an_archive_lead_nowhere(tmp_path):
    """Files are read by their bare name and none is unpacked, so `../` does not matter."""
    write_zip(tmp_path / "ml.zip", {f"../../{n.rpartition('/')[2]}": t for n, t in MEMBERS.items()})
    assert len(read_movielens(tmp_path / "ml.zip")[0]) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["ml.zip"]


def test_a_password_is_asked_for_in_one_line(tmp_path):
    write_zip(tmp_path / "ml.zip", MEMBERS)
    raw = bytearray((tmp_path / "ml.zip").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := raw.find(mark, start)) >= 0:
            raw[start + at] |= 1  # the flag of an encrypted file
            start += 1
    put(tmp_path / "ml.zip", bytes(raw))
    refused(lambda: read_movielens(tmp_path / "ml.zip"), "ratings.dat", "cannot be read", "password")


REVIEW = '{"reviewerID": "A", "asin": "B", "unixReviewTime": %s}\n'
REVIEWS = [
    ("a time with a fraction", REVIEW % "1.5", ":1", "1.5 is no timestamp"),
    ("a time that is true", REVIEW % "true", ":1", "True is no timestamp"),
    ("a time that is NaN", REVIEW % "NaN", ":1", "nan is no timestamp"),
    ("a time of 10^30", REVIEW % ("1" + "0" * 30), ":1", "is no timestamp"),
    ("a time of infinity", REVIEW % "1e999", ":1", "inf is no timestamp"),
    ("nested too deeply", "[" * 100_000 + "\n", ":1", "malformed"),
    ("half of a pair in an id", REVIEW.replace('"A"', r'"\ud800"') % 1, ":1", "no user id"),
]


@pytest.mark.parametrize(("content", "words"), table(*((c[0], c[1], c[2:]) for c in REVIEWS)))
def test_amazon_reviews_refused(tmp_path, content, words):
    path = put(tmp_path / "reviews.json.gz", gzip.compress(content.encode()))
    refused(lambda: read_amazon_reviews(path), "reviews.json.gz", *words)


def test_amazon_texts_refused(tmp_path):
    deep = put(tmp_path / "meta.json.gz", "{'asin': 'B', 'x': " + "[" * 10_000 + "}\n")
    refused(lambda: read_amazon_texts(deep, {"B"}), "meta.json.gz:1", "malformed")
    assert len(read_amazon_reviews(put(tmp_path / "r.json.gz", REVIEW % "1381190400.0"))) == 1


# ------------------------------------------------------------ downloads: what lies there already

DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("digest", "file", "note", "words"),
    table(
        ("another file", DIGEST, "data", None, ("a.gz: has SHA-256", DIGEST, "Delete the file")),
        ("a file since changed", None, "data", DIGEST + "  a.gz\n", ("a.gz: has SHA-256", "a.gz.sha256")),
        ("a note of nothing", None, "data", "", ("a.gz.sha256", "holds no SHA-256", "Delete it")),
        ("a note of rubbish", None, "data", b"\xff\0", ("a.gz.sha256", "holds no SHA-256")),
        ("a folder in place of the file", DIGEST, None, None, ("a.gz", "Is a directory")),
    ),
)
def test_what_lies_there_is_checked(tmp_path, monkeypatch, digest, file, note, words):
    monkeypatch.setitem(download.FILES, "a.gz", download.RawFile(("http://127.0.0.1:9/",), digest))
    (tmp_path / "a.gz").mkdir() if file is None else put(tmp_path / "a.gz", file)
    if note is not None:
        put(tmp_path / "a.gz.sha256", note)
    refused(lambda: download.fetch("a.gz", tmp_path), *words)


# Starts of what a server may send in place of a file with a digest, of one without, and the reason that is given.
SENT = [
    ("an error page", b"\n<!DOCTYPE html>", "page"),
    ("nothing", b"", "page"),
    ("a text", b"404: not found", "page"),
    ("another file", b"\x1f\x8bother", "another SHA-256"),
]


@pytest.mark.parametrize("pinned", [True, False])
@pytest.mark.parametrize(("content", "reason"), table(*SENT))
def test_what_is_sent_is_checked(tmp_path, monkeypatch, capsys, content, reason, pinned):
    monkeypatch.setattr(
        download.pooch, "HTTPDownloader", lambda **_: lambda url, output, _: Path(output).write_bytes(content)
    )
    monkeypatch.setitem(
        download.FILES, "a.gz", download.RawFile(("http://a/", "http://b/"), DIGEST if pinned else None)
    )
    if reason != "page" and not pinned:
        assert download.fetch("a.gz", tmp_path).read_bytes() == content  # nobody can tell; its digest holds from now on
        return
    reason = "another SHA-256" if content.startswith(b"404") and pinned else reason
    refused(lambda: download.fetch("a.gz", tmp_path), "a.gz", "no mirror gave it", reason, "http://a/a.gz")
    assert not list(tmp_path.iterdir()) and "http://b/a.gz" in capsys.readouterr().out


# ------------------------------------------------------------ the command

COMMAND = [
    ("a name with dots", ["--csv", "own.csv", ".."], 2, "'..' cannot name"),
    ("a name with a slash", ["--csv", "own.csv", "a/b"], 2, "'a/b' cannot name"),
    ("a name with a line break", ["--csv", "own.csv", "a\nb"], 2, "cannot name"),
    ("a name with a line break at its end", ["--csv", "own.csv", "a\n"], 2, "cannot name"),
    ("a name with a NUL", ["--csv", "own.csv", "a\0b"], 2, "cannot name"),
    ("a name of 300 characters", ["--csv", "own.csv", "n" * 300], 2, "cannot name", "100 bytes"),
    ("a name of 300 characters alone", ["n" * 300], 2, "cannot name"),
    ("a name of 51 umlauts", ["--csv", "own.csv", "ä" * 51], 2, "cannot name"),
    ("a name with a blank", ["--csv", "own.csv", "a b"], 2, "cannot name"),
    ("a name that a shell would run", ["--csv", "own.csv", "$(x);y"], 2, "cannot name"),
    ("a name that is a device elsewhere", ["--csv", "own.csv", "con"], 2, "'con' cannot name"),
    ("no name", ["--csv", "own.csv", ""], 2, "'' cannot name"),
    ("a name with a dash", ["--csv", "own.csv", "-x"], 2, "NAME"),
    ("a name of a file", ["--csv", "own.csv", "mine.yaml"], 2, "without .yaml"),
    ("a name that is taken", ["--csv", "own.csv", "prompts"], 2, "OpenP5's prompts"),
    ("a profile of 300 characters", ["--csv", "own.csv", "--profile", "p" * 300, "Mine"], 2, "cannot name"),
    ("a profile elsewhere", ["--csv", "own.csv", "--profile", "../x", "Mine"], 2, "'../x' cannot name"),
    ("an unknown name", ["Mine"], 2, "NAME is one of", "--csv"),
    ("an unknown argument", ["--cvs", "own.csv", "Mine"], 2, "--cvs"),
    ("nothing", [], 2, "NAME", "--help"),
    ("a core below zero", ["--csv", "own.csv", "--core", "-1", "Mine"], 2, "--core", "'-1' is no whole number"),
    ("a core below zero, with =", ["--csv", "own.csv", "--core=-1", "Mine"], 2, "--core", "'-1'"),
    ("a core that is no number", ["--csv", "own.csv", "--core", "five", "Mine"], 2, "'five' is no whole number"),
    ("a seed of 10^30", ["--csv", "own.csv", "--seed", "1" + "0" * 30, "Mine"], 2, "--seed"),
    ("a seed below zero", ["--csv", "own.csv", "--seed=-1", "Mine"], 2, "--seed", "'-1'"),
    ("no such table", ["--csv", "gone.csv", "Mine"], 1, "gone.csv", "No such file"),
    ("a table that is a folder", ["--csv", ".", "Mine"], 1, "Is a directory"),
    ("no such texts", ["--csv", "own.csv", "--texts", "gone.jsonl", "Mine"], 1, "gone.jsonl", "No such file"),
    ("texts that are a table", ["--csv", "own.csv", "--texts", "own.csv", "Mine"], 1, "own.csv:1", "no JSON"),
    ("a folder that is a file", ["--csv", "own.csv", "--folder", "own.csv", "Mine"], 1, "own.csv", "Not a directory"),
    ("a core of all", ["--csv", "own.csv", "--core", "9999", "Mine"], 1, "no interactions are left"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    put(tmp_path / "own.csv", HEADER + "".join(f"u{u},i{(u + k) % 30},{k}\n" for u in range(30) for k in range(5)))
    return tmp_path


@pytest.mark.parametrize(("arguments", "status", "words"), table(*((c[0], c[1], c[2], c[3:]) for c in COMMAND)))
def test_command_refused(home, capsys, arguments, status, words):
    try:
        found = command.main(arguments)
    except SystemExit as stop:
        found = stop.code
    said = capsys.readouterr().err
    assert found == status and said.count("\n") == 1 and said.startswith("error: "), said
    plain(said.strip(), *words)
    assert sorted(os.listdir(home)) == ["own.csv"]


@pytest.mark.parametrize("name", ["None", "nan", "1", "ä" * 50, "n" * 100])
def test_names_taken(home, capsys, name):
    assert command.main(["--csv", "own.csv", name]) == 0
    assert load_params(name.lower()).data.folder == f"openp5/{name}"


def test_what_was_made_clean_is_told(home, capsys):
    put(home / "t.jsonl", "".join(json.dumps({"id": f"i{n}", "genres": "A|B", "title": n}) + "\n" for n in range(30)))
    assert command.main(["--csv", "own.csv", "--texts", "t.jsonl", "Mine"]) == 0
    out = capsys.readouterr().out
    assert "30 of the texts: genres split at | or ,\n" in out and "30 of the texts: numbers made texts\n" in out
    assert len(out.splitlines()) < 25
    assert load_openp5(home / "data" / "openp5" / "Mine").item_text(0).endswith("A, B.")


def test_a_full_disk_is_told_in_a_line(home, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", str(home / "data" / "x"))

    monkeypatch.setattr(command, "write_openp5", full)
    assert command.main(["--csv", "own.csv", "Mine"]) == 1
    plain(capsys.readouterr().err.strip(), "No space left on device", "disk")


@pytest.mark.parametrize(
    ("users", "items", "step", "words"),
    [
        ("abc", "wxyz", 0, "all timestamps are equal"),
        ("abc", ["A1", "a1", "b"], 1, "2 items differ by case"),
        ("abc", ["\u00e9", "e\u0301", "b"], 1, "2 items differ by case"),
        ("abc", ["a", "a\u200b", "b"], 1, "2 items differ by case"),
        (["Ann", "ann", "Bob"], "wxyz", 1, "2 users differ by case"),
        ("abc", "wxyz", 1, ""),
    ],
    ids=["times", "case", "composed", "no width", "users", "nothing"],
)
def test_what_is_most_likely_not_meant_is_told(home, capsys, users, items, step, words):
    put(home / "odd.csv", HEADER + "".join(f"{u},{i},{n * step}\n" for u in users for n, i in enumerate(items)))
    assert command.main(["--csv", "odd.csv", "Odd"]) == 0
    said = capsys.readouterr().out
    assert f"warning: {words}" in said if words else "warning" not in said
