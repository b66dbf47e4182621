"""Files of users that `python -m ilm_lib recommend` cannot use, and places it cannot write to, one line a case."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CF, ITEMS
from plain import plain

from ilm_lib import recommend_file
from ilm_lib.__main__ import main
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.ilm import ILM
from ilm_lib.model.scoring import ScoreHead

LONG = "x" * 500


@pytest.fixture(scope="module")
def folder(new_ilm, tmp_path_factory):
    """A model of "Film 0" (id "i0") and on, and users "u0" and on, whose LLM reads 512 positions."""
    bare = new_ilm("mlp")
    head = ScoreHead(32, CF, ITEMS, dim=8, prompt=HistoryPrompt(history_max=200))
    ilm = ILM(bare.llm, bare.tokenizer, bare.encoder, bare.cf, ITEMS, bare.catalogue, "slot", None, head).eval()
    return ilm.save_pretrained(tmp_path_factory.mktemp("rough") / "model")


def refuses(capsys, folder, users, out, *more, code=1):
    """The one message of a command that did nothing."""
    before = {path: path.stat().st_mtime_ns for path in users.parent.rglob("*")}
    assert main(["recommend", "--model", str(folder), "--users", str(users), "--out", str(out), *more]) == code
    assert {path: path.stat().st_mtime_ns for path in users.parent.rglob("*")} == before
    said = capsys.readouterr()
    assert "users, all of them" not in said.out, "work started"
    _, found = said.err.split("error: ")  # before it, the bar of a model that is loaded
    return plain(found)


FILES = {  # name, content, what the message names
    "empty": ("users.csv", b"", ["users.csv", "is empty", "header"]),
    "blanks": ("users.csv", b"\n\n", ["users.csv", "is empty"]),
    "a header alone": ("users.csv", b"user,history\n", ["users.csv", "nobody", "one line"]),
    "empty json lines": ("users.jsonl", b"", ["users.jsonl", "nobody"]),
    "empty sequences": ("user_sequence.txt", b"\n", ["user_sequence.txt", "nobody"]),
    "neither column": ("users.csv", b"usr,films\nu1,i3\n", ["users.csv:1", "neither", "'usr' meant for 'user'"]),
    "no header": ("users.csv", b"u1,i3|i4\n", ["users.csv:1", "neither user nor history"]),
    "a column twice": ("users.csv", b"user,history,user\nu1,i3,u1\n", ["users.csv:1", "user twice"]),
    "a field too many": ("users.csv", b"user,history\nu1,i3,i4\n", ["users.csv:2", "3 fields", "|"]),
    "an open quote": ("users.csv", b'user,history\nu1,i3\nu1,"i3\nu2,i4\n', ["users.csv:", "no CSV", "quote"]),
    "UTF-16": ("users.csv", "user,history\n".encode("utf-16"), ["users.csv:1", "UTF-16", "UTF-8"]),
    "latin-1": ("users.csv", "user,history\nu1,i3\nu1,é\n".encode("latin-1"), ["users.csv:3", "not UTF-8"]),
    "a packed file": ("users.csv", b"\x1f\x8b\x08\x00\xff", ["users.csv:1", "gzip", "Unpack"]),
    "a spreadsheet": ("users.csv", b"PK\x03\x04\xff\xff", ["users.csv:1", "spreadsheet"]),
    "a NUL": ("users.csv", b"user,history\nu1,i\x003\n", ["users.csv:2", "NUL"]),
    "an unknown ending": ("users.xlsx", b"PK", ["users.xlsx", "'.xlsx'", ".csv, .jsonl, .parquet"]),
    "no ending": ("users", b"user\nu1\n", ["users", "'nothing'", ".csv"]),
    "an unknown item": ("users.csv", b"user,history\nu1,i3\nu2,i3|Filmm 3\n", ["users.csv:3", "Filmm 3", "Close"]),
    "an unknown user": ("users.csv", b"user,history\nuu5,i3\n", ["users.csv:2", "uu5", "Close", "'u5'"]),
    "a long unknown item": ("users.csv", f"history\n{LONG}\n".encode(), ["users.csv:2", "no item"]),
    "nobody who had nothing": ("users.csv", b"user,history\nu1,i3\n,\n", ["users.csv:3", "history is empty"]),
    "a user alone": ("users.jsonl", b'{"user": "u1"}\n', ["users.jsonl:1", "reads no user alone", "give a history"]),
    "no json": ("users.jsonl", b'{"user": "u1", "history": ["i3"]}\nu1,i3\n', ["users.jsonl:2", "no JSON"]),
    "a list of json": ("users.jsonl", b'["u1"]\n', ["users.jsonl:1", "no JSON object"]),
    "neither key": ("users.jsonl", b'{"usr": "u1"}\n', ["users.jsonl:1", "neither", "Name"]),
    "a key twice": ("users.jsonl", b'{"user": "u1", "user": "u2"}\n', ["users.jsonl:1", "'user' twice"]),
    "history a text": ("users.jsonl", b'{"history": "i3"}\n', ["users.jsonl:1", "history is 'i3'", "a list"]),
    "history of lists": ("users.jsonl", b'{"history": [["i3"]]}\n', ["users.jsonl:1", "holds ['i3']"]),
    "history of nothing": ("users.jsonl", b'{"history": ["i3", null]}\n', ["users.jsonl:1", "holds None"]),
    "history of truth": ("users.jsonl", b'{"history": [true]}\n', ["users.jsonl:1", "holds True"]),
    "a fraction for a user": ("users.jsonl", b'{"user": 1.5, "history": ["i3"]}\n', ["users.jsonl:1", "user is 1.5"]),
    "no parquet": ("users.parquet", b"user,history\n", ["users.parquet", "no parquet", "Write it again"]),
    "half a parquet": ("users.parquet", b"PAR1" + b"x" * 40 + b"PAR1", ["users.parquet", "parquet"]),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_file_of_users_that_cannot_be_used(folder, tmp_path, capsys, case):
    name, content, says = FILES[case]
    (tmp_path / name).write_bytes(content)
    plain(refuses(capsys, folder, tmp_path / name, tmp_path / "out.csv"), *says)


PARQUETS = {
    "neither column": ({"usr": ["u1"]}, ["users.parquet:1", "neither", "meant for 'user'"]),
    "no rows": ({"user": pa.array([], pa.string())}, ["users.parquet", "nobody"]),
    "history a text": ({"history": ["i3|i4"]}, ["users.parquet:1", "'i3|i4'", "a list"]),
    "a fraction for a user": ({"user": [1.5], "history": [["i3"]]}, ["users.parquet:1", "user is 1.5"]),
    "an unknown item": ({"history": [["i3"], ["i99"]]}, ["users.parquet:2", "i99", "Close"]),
}


@pytest.mark.parametrize("case", PARQUETS)
def test_a_parquet_that_cannot_be_used(folder, tmp_path, capsys, case):
    columns, says = PARQUETS[case]
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    plain(refuses(capsys, folder, tmp_path / "users.parquet", tmp_path / "out.csv"), *says)


def users_of(folder):
    (path := folder / "users.csv").write_text("user,history\nu1,i3\n", encoding="utf-8")
    return path


def test_no_file_of_users(folder, tmp_path, capsys):
    users_of(tmp_path)
    plain(refuses(capsys, folder, tmp_path / "user.csv", tmp_path / "out.csv"), "user.csv", "no file", "path")
    (tmp_path / "x.csv").mkdir()
    plain(refuses(capsys, folder, tmp_path / "x.csv", tmp_path / "out.csv"), "x.csv", "is a folder")


@pytest.mark.parametrize("out, says", [
    ("out.xlsx", ["out.xlsx", ".csv or .parquet"]),
    ("out", ["out", "'nothing'"]),
    ("there.csv", ["there.csv", "is there already", "--force"]),
    ("folder.csv", ["folder.csv", "is a folder"]),
    ("users.csv", ["users.csv", "those who ask"]),
    ("none/out.csv", ["none", "no folder", "Make it"]),
    ("there.csv/out.csv", ["there.csv", "no folder"]),
])  # fmt: skip
def test_a_place_that_cannot_be_written_to(folder, tmp_path, capsys, out, says):
    users = users_of(tmp_path)
    (tmp_path / "there.csv").write_text("mine", encoding="utf-8")
    (tmp_path / "folder.csv").mkdir()
    plain(refuses(capsys, folder, users, tmp_path / out), *says)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_folder_that_is_closed(folder, tmp_path, capsys):
    users = users_of(tmp_path)
    (tmp_path / "closed").mkdir(mode=0o500)
    plain(refuses(capsys, folder, users, tmp_path / "closed/out.csv"), "closed", "cannot be written")


def test_a_disk_that_is_full(folder, tmp_path, capsys, monkeypatch):
    """A table is not half there."""

    def full(stack, path):
        path.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(recommend_file.WRITERS, ".csv", full)
    users, out = users_of(tmp_path), tmp_path / "out.csv"
    assert main(["recommend", "--model", str(folder), "--users", str(users), "--out", str(out)]) == 1
    plain(capsys.readouterr().err, "out.csv", "No space left", "disk")
    assert [path.name for path in tmp_path.iterdir()] == ["users.csv"]


def test_no_model(tmp_path, capsys):
    users = users_of(tmp_path)
    plain(refuses(capsys, tmp_path / "model", users, tmp_path / "out.csv"), "model")
    plain(refuses(capsys, users, users, tmp_path / "out.csv"), "users.csv")


def test_a_readout_that_the_model_has_not(new_ilm, tmp_path, capsys):
    folder = new_ilm("mlp").save_pretrained(tmp_path / "beam" / "model")
    (tmp_path / "here").mkdir()
    users = users_of(tmp_path / "here")
    plain(refuses(capsys, folder, users, tmp_path / "here/out.csv", "--readout", "score"), "no head", "'beam'")


def test_a_history_that_the_llm_cannot_read_is_named_by_its_line(folder, tmp_path, capsys):
    users, out = tmp_path / "users.csv", tmp_path / "out.csv"
    users.write_text(f"history\ni3\n{'|'.join(['i4'] * 200)}\n", encoding="utf-8")
    assert main(["recommend", "--model", str(folder), "--users", str(users), "--out", str(out)]) == 1
    plain(capsys.readouterr().err, "users.csv:3", "512", "shorter history")
    assert not out.exists()


@pytest.mark.parametrize("arguments, says", [
    ([], ["recommend"]),
    (["recomend"], ["'recomend'", "recommend"]),
    (["recommend"], ["--model", "--users", "--out"]),
    (["recommend", "--model", "a", "--users", "b", "--out", "c", "--k", "0"], ["--k", "'0'", "from 1"]),
    (["recommend", "--model", "a", "--users", "b", "--out", "c", "--readout", "beams"], ["--readout", "beam"]),
    (["recommend", "--model", "a", "--users", "b", "--out", "c", "--top", "3"], ["--top"]),
])  # fmt: skip
def test_arguments_that_cannot_be_used(capsys, arguments, says):
    assert main(arguments) == 2
    plain(capsys.readouterr().err, *says, "--help")
