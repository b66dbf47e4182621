"""`python -m ilm_lib recommend` writes what `ILM.recommend` says."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CF, ITEMS

from ilm_lib import recommend_file, users_file
from ilm_lib.__main__ import main
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import alike
from ilm_lib.model.scoring import ScoreHead

ASK = [
    ("u3", ["Film 4", "i7"]),
    (None, ["i1"]),
    ("u3", ["Film 2", "Film 9", "Film 4"]),
    ("u0", [f"i{i}" for i in range(14)]),
    (None, ["film 5", "i5"]),
]


@pytest.fixture(scope="module")
def folder(new_ilm, tmp_path_factory):
    bare = new_ilm("mlp")
    head = ScoreHead(32, CF, ITEMS, dim=8, prompt=HistoryPrompt(history_max=4))
    fold = FoldIn(0.1, 1.0, 0.1, 0.01, 1.0, 1.0)
    ilm = ILM(bare.llm, bare.tokenizer, bare.encoder, bare.cf, ITEMS, bare.catalogue, "slot", fold, head)
    return ilm.eval().save_pretrained(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def ilm(folder):
    return ILM.from_pretrained(folder)


def write_users(path, asked):
    if path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("history", "note", "user"), *(("|".join(h), "x, y", u) for u, h in asked)])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"user": u, "history": h}) + "\n" for u, h in asked), encoding="utf-8")
    elif path.suffix == ".parquet":
        pq.write_table(pa.table({"user": [u for u, _ in asked], "history": [h for _, h in asked]}), path)
    else:
        path.write_text("".join(f"{u} {' '.join(h)}\n" for u, h in asked), encoding="utf-8")
    return path


def read_table(path):
    if path.suffix == ".parquet":
        return [tuple(row.values()) for row in pq.read_table(path).to_pylist()]
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["user", "rank", "item", "title", "log_probability"]
    return [(u or None, int(rank), item, title, float(score)) for u, rank, item, title, score in rows[1:]]


def command(folder, users, out, *more):
    return main(["recommend", "--model", str(folder), "--users", str(users), "--out", str(out), *more])


def said_by(ilm, asked, **kwargs):
    """Rows of the table, each user asked alone."""
    return [
        (user, rank, r.id, r.title, r.log_probability)
        for user, history in asked
        for rank, r in enumerate(ilm.recommend(user, history, **kwargs), 1)
    ]


def same(table, expected):
    assert [row[:4] for row in table] == [row[:4] for row in expected]
    assert [row[4] for row in table] == pytest.approx([row[4] for row in expected], abs=1e-4)


@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
@pytest.mark.parametrize("users", ["users.csv", "users.jsonl", "users.parquet"])
def test_the_table_is_what_recommend_says(folder, ilm, tmp_path, capsys, monkeypatch, users, out):
    monkeypatch.setattr(recommend_file, "AT_ONCE", (2, 100))
    asked = write_users(tmp_path / users, ASK)
    assert command(folder, asked, tmp_path / out, "--k", "3") == 0
    expected = said_by(ilm, ASK, k=3)
    assert len(expected) == 3 * 3 + 1 + 3  # one has had all items but one
    same(read_table(tmp_path / out), expected)
    printed = capsys.readouterr().out
    assert "5 users" in printed and "5 of 5 users" in printed and "13 rows" in printed
    assert {path.name for path in tmp_path.iterdir()} == {users, out}
    if out.endswith("parquet"):
        assert pq.ParquetFile(tmp_path / out).num_row_groups == 3


@pytest.mark.parametrize("readout", ["beam", "score"])
def test_options_are_those_of_recommend(folder, ilm, tmp_path, readout):
    users = write_users(tmp_path / "users.csv", ASK[:2])
    assert command(folder, users, tmp_path / "out.csv", "--k", "5", "--keep-history", "--readout", readout) == 0
    expected = said_by(ilm, ASK[:2], k=5, exclude_history=False, readout=readout)
    same(read_table(tmp_path / "out.csv"), expected)


def test_openp5s_sequences_can_be_asked(folder, ilm, tmp_path):
    asked = [("u1", ["i3", "i4"]), ("u2", ["i9"])]
    assert command(folder, write_users(tmp_path / "user_sequence.txt", asked), tmp_path / "out.csv") == 0
    same(read_table(tmp_path / "out.csv"), said_by(ilm, asked))


@pytest.mark.parametrize("text, asked", [
    ("user,history\nu1,i3\nu2,\n", [("u1", ["i3"]), ("u2", [])]),
    ("user\nu1\nu2\n", [("u1", []), ("u2", [])]),
    ("history\ni3|Film 4\n", [(None, ["i3", "Film 4"])]),
    ("\ufeffuser;history\r\nu1;i3 | i4\r\n\r\n", [("u1", ["i3", "i4"])]),
    ('user\thistory\n"u1"\t"Film, 4|"', [("u1", ["Film, 4"])]),
], ids=["both", "users", "histories", "excel", "tabs"])  # fmt: skip
def test_csvs_are_read_as_they_come(tmp_path, monkeypatch, text, asked):
    monkeypatch.setattr(users_file, "BLOCK", 5)
    path = tmp_path / "users.csv"
    path.write_bytes(text.encode())
    assert [(line.user, line.history) for line in users_file.read_users(path)] == asked


def test_whole_numbers_are_ids_and_lines_are_counted_over_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(users_file, "BLOCK", 5)
    path = tmp_path / "users.jsonl"
    path.write_text('{"user": 7, "history": [12, "007"]}\n\n{"history": []}\n{"user": null}\n', encoding="utf-8")
    found = [tuple(line) for line in users_file.read_users(path)]
    assert found == [(1, "7", ["12", "007"]), (3, None, []), (4, None, [])]


def test_a_user_alone_is_asked_by_beam(folder, ilm, tmp_path):
    users = write_users(tmp_path / "users.jsonl", [("u1", [])])
    assert command(folder, users, tmp_path / "out.csv", "--readout", "beam") == 0
    same(read_table(tmp_path / "out.csv"), said_by(ilm, [("u1", [])], readout="beam"))


def test_a_run_that_fails_leaves_the_old_table(folder, tmp_path, monkeypatch):
    users, out = write_users(tmp_path / "users.csv", ASK), tmp_path / "out.csv"
    out.write_text("old", encoding="utf-8")
    monkeypatch.setattr(recommend_file, "AT_ONCE", (2, 100))
    calls, best = [], recommend_file.best_items

    def fails(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return best(*args)

    monkeypatch.setattr(recommend_file, "best_items", fails)
    assert command(folder, users, out, "--force") == 130
    assert out.read_text(encoding="utf-8") == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"users.csv", "out.csv"}
    assert command(folder, users, out, "--force") == 0
    assert len(read_table(out)) > 30


def test_users_are_read_as_a_stream(folder, ilm, tmp_path, monkeypatch):
    """No more of them are read than are recommended for at once."""
    users, read = write_users(tmp_path / "users.csv", ASK), []
    monkeypatch.setattr(recommend_file, "AT_ONCE", (2, 100))
    of = recommend_file.Asked.of
    monkeypatch.setattr(recommend_file.Asked, "of", lambda *args: read.append(args) or of(*args))
    next(recommend_file.recommended(ilm, users, 3, True, "score"))
    assert len(read) == 2


def test_prompts_of_like_length_are_read_together():
    cut = lambda length, most: [(part.start, part.stop) for part in alike(length, most)]
    assert cut([1, 2, 3, 4], 6) == [(0, 2), (2, 3), (3, 4)]
    assert cut([5, 5, 9], 4) == [(0, 1), (1, 2), (2, 3)]
    assert cut([2, 2, 2], 6) == [(0, 3)]
    assert cut([2], 1) == [(0, 1)]


def test_memory_does_not_grow_with_those_who_ask(ilm, monkeypatch):
    from ilm_lib.model import recommend

    monkeypatch.setattr(recommend, "POSITIONS", (40, 40))
    sizes, states = [], ILM.slot_states
    monkeypatch.setattr(
        ILM, "slot_states", lambda self, b, g=None: sizes.append(b.input_ids.numel()) or states(self, b, g)
    )
    histories = [["i1"] * (1 + n % 4) for n in range(50)]
    many = ilm.recommend_many(None, histories, 5)
    assert max(sizes) <= 80 and len(sizes) > 5  # rows that are shared are a little wider
    for history, found in zip(histories, many):
        assert [r.item for r in found] == [r.item for r in ilm.recommend(None, history, 5)]
    assert torch.isfinite(torch.tensor([[r.log_probability for r in found] for found in many])).all()
