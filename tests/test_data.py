"""Datasets in OpenP5's form: known answers on a tiny one, malformed input, the paper's counts."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import said_under

from ilm_lib.data import DataError, Dataset, data_dir, load_openp5, openp5

ROOT = Path(__file__).resolve().parents[1]
REAL = Path(os.environ.get("ILM_DATA_DIR") or ROOT.parent / "shared" / "data") / "openp5"

SEQUENCES = "ann x y z w\nbob y z x\ncat z y z w x\n"  # cat has z twice
TEXT = '{"id": "x", "title": "Ex", "genres": ["A", "B"], "overview": "Long plot here."}\n{"asin": "q"}\n'


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, "user_sequence.txt", SEQUENCES)
    write(tmp_path, "user_indexing.txt", "ann 7\nbob 3\ncat 9\n")
    write(tmp_path, "item_random_indexing.txt", "w 1004\nx 1002\ny 1001\nz 1003\n")
    write(tmp_path, "item_text.jsonl", TEXT)
    return tmp_path


def write(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")


def real(name):
    if not (REAL / name / "user_sequence.txt").exists():
        pytest.skip(f"no {name} in OpenP5's form under ILM_DATA_DIR or ../shared/data")
    return load_openp5(REAL / name)


def test_rows_and_splits(folder):
    data = load_openp5(folder, name="Tiny")
    assert (data.name, data.users, data.items) == ("Tiny", ["ann", "bob", "cat"], ["y", "x", "z", "w"])
    assert (data.num_users, data.num_items, data.num_interactions) == (3, 4, 12)
    assert data.user_index.tolist() == [7, 3, 9]
    assert data.item_index.tolist() == [1001, 1002, 1003, 1004]
    assert data.offsets.tolist() == [0, 4, 7, 12]
    assert data.sequences.dtype == np.int32 and data.offsets.dtype == np.int64
    assert data.sequence(0).tolist() == [1, 0, 2, 3]
    assert data.train_sequence(0).tolist() == data.history(0, "dev").tolist() == [1, 0]
    assert data.history(0, "test").tolist() == [1, 0, 2]
    assert data.dev_targets().tolist() == [2, 2, 3]
    assert data.test_targets().tolist() == [3, 1, 1]


def test_training_part_holds_no_target(folder):
    data = load_openp5(folder)
    train = data.train_matrix()
    assert train.dtype == np.float32
    # cat's second z is in training; the cell still is 1.
    assert train.toarray().tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 1, 0]]
    assert np.array_equal(data.seen_matrix("dev").toarray(), train.toarray() > 0)
    seen = data.seen_matrix("test")
    assert seen.dtype == bool
    assert seen.toarray().astype(int).tolist() == [[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    some = np.array([2, 0])
    assert np.array_equal(data.train_matrix(some).toarray(), train.toarray()[some])


def test_training_examples_and_pairs(folder):
    data = load_openp5(folder)
    user, position = data.train_example(range(data.num_train_examples))
    assert list(zip(user.tolist(), position.tolist(), strict=True)) == [(0, 1), (2, 1), (2, 2)]
    for outside in (-1, 3):
        with pytest.raises(IndexError, match="from 0 to 2"):
            data.train_example([0, outside])
    assert data.item_pairs().tolist() == [[0, 2], [1, 0], [2, 0]]  # y-z and z-y both count
    assert data.user_item_pairs().tolist() == [[0, 0], [0, 1], [1, 0], [2, 0], [2, 2]]


def test_texts_notes_and_checksums(folder):
    data = load_openp5(folder)
    assert data.item_text(1) == "Ex. A, B. Long plot here."
    assert data.item_text(1, max_words=2) == "Ex. A,"
    assert data.texts[0] == {} and data.item_text(0) == ""
    assert data.notes["repeated_items"] == 1
    assert data.notes["unused_texts"] == 1
    assert data.notes["items_without_text"] == 3
    assert set(data.checksums) == {f.name for f in folder.iterdir()}
    write(folder, "user_sequence.txt", SEQUENCES + "\n")
    again = load_openp5(folder)
    assert again.notes["blank_lines"] == 1
    assert again.checksums["user_sequence.txt"] != data.checksums["user_sequence.txt"]
    assert again.checksums["item_text.jsonl"] == data.checksums["item_text.jsonl"]


def test_forgiving_details(folder):
    """gzip, Windows line ends, a byte order mark, U+2028 inside JSON, unused index entries."""
    (folder / "item_text.jsonl").unlink()
    text = '{"id": "y", "title": "one\u2028two"}\r\n'
    (folder / "item_text.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "user_sequence.txt").write_bytes(b"\xef\xbb\xbf" + SEQUENCES.replace("\n", "\r\n").encode())
    write(folder, "item_random_indexing.txt", "w 1004\nx 1002\ny 1001\nz 1003\nunused 1005\n")
    data = load_openp5(folder)
    assert data.users[0] == "ann" and data.items == ["y", "x", "z", "w"]
    assert data.item_text(0) == "one two."
    assert data.notes["unused_item_indices"] == 1


def test_own_index_is_seeded(folder):
    for name in ("user_indexing.txt", "item_random_indexing.txt", "item_text.jsonl"):
        (folder / name).unlink()
    data = load_openp5(folder)
    assert data.user_index.tolist() == [1, 2, 3]
    assert data.item_index.tolist() == [1001, 1002, 1003, 1004]
    assert sorted(data.items) == ["w", "x", "y", "z"]
    assert data.notes["items_without_text"] == 4
    orders = {tuple(load_openp5(folder, index_seed=seed).items) for seed in range(10)}
    assert len(orders) > 3
    assert load_openp5(folder).items == data.items


@pytest.mark.slow
def test_independent_of_hash_seed(folder):
    (folder / "item_random_indexing.txt").unlink()
    code = (
        "import sys; from ilm_lib.data import load_openp5; d = load_openp5(sys.argv[1]);"
        "print(d.items, d.sequences, d.item_pairs().tolist(), d.texts, d.notes)"
    )
    outputs = {said_under(seed, code, str(folder)) for seed in ("0", "1", "2")}
    assert len(outputs) == 1 and "x" in outputs.pop()


BLOCKS = (1, 7, 12, 1 << 24)  # bytes; the first line of SEQUENCES and its break are 12


def assert_same(a, b):
    for name in ("name", "users", "items", "texts", "notes", "checksums"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("sequences", "offsets", "user_index", "item_index"):
        assert getattr(a, name).dtype == getattr(b, name).dtype
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()


@pytest.mark.parametrize(
    "text",
    [
        SEQUENCES,
        SEQUENCES.removesuffix("\n"),
        SEQUENCES.replace("\n", "\r\n"),
        "\ufeff\n" + SEQUENCES.replace("\n", " \n\n  \n").replace(" ", "\t\u00a0"),
    ],
)
def test_blocks_make_no_difference(folder, monkeypatch, text):
    expected = load_openp5(folder)
    (folder / "user_sequence.txt").write_bytes(text.encode())
    whole = load_openp5(folder)
    assert whole.sequences.tolist() == expected.sequences.tolist() and whole.users == expected.users
    for block in BLOCKS:
        monkeypatch.setattr(openp5, "BLOCK", block)
        assert_same(load_openp5(folder), whole)


def test_saved_and_opened(folder, tmp_path):
    """With a cache the same dataset comes from mapped files, which writing to the arrays does not change."""
    cache = tmp_path / "new" / "cache"
    data, mapped = load_openp5(folder), load_openp5(folder, cache=cache)
    assert_same(mapped, data)
    assert isinstance(mapped.sequences.base, np.memmap)
    mapped.sequences[:] = 0
    assert_same(Dataset.open(cache), data)
    write(folder, "user_sequence.txt", "eve x y z\n")
    write(folder, "user_indexing.txt", "eve 1\n")
    assert load_openp5(folder, cache=cache).num_interactions == 3
    assert mapped.sequences.sum() == 0 and len(mapped.sequences) == 12  # still there for who has it open
    assert {p.suffix for p in cache.iterdir()} == {".npy", ".json", ".jsonl"}


def test_the_data_stage_parses_once(folder, tmp_path, monkeypatch):
    """Later starts map the stage's arrays; a changed input asks for the stage again."""
    from ilm_lib import load_params
    from ilm_lib.study import inputs
    from ilm_lib.study.artifacts import MissingStage

    monkeypatch.setenv("ILM_DATA_DIR", str(folder.parent))
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(inputs, "check", lambda *_: None)  # three users are too few for a study
    params = load_params("toy", **{"data.source": "openp5", "data.folder": folder.name, "data.name": "Tiny"})
    with pytest.raises(MissingStage):
        inputs.dataset(params)
    inputs.data(params, build=True)
    monkeypatch.setattr(inputs, "load_openp5", None)
    assert_same(inputs.dataset(params), load_openp5(folder, name="Tiny"))
    write(folder, "user_indexing.txt", "ann 7\nbob 3\ncat 10\n")
    with pytest.raises(MissingStage):
        inputs.dataset(params)


MALFORMED = [
    ("user_sequence.txt", None, r"user_sequence\.txt: cannot be read"),
    ("user_sequence.txt", b"", r"user_sequence\.txt: is empty"),
    ("user_sequence.txt", b" \n\n", r"user_sequence\.txt: is empty"),
    ("user_sequence.txt", b"ann x y z\n\nbob x y\n", r":3: user 'bob' has 2 items"),
    ("user_sequence.txt", b"ann x y z\nbob x y z\nann x y z\n", r":3: user 'ann' is repeated"),
    ("user_sequence.txt", b"ann x y z\nbob x \xff z\n", r":2: byte 0xff at offset 16 is not UTF-8"),
    ("user_sequence.txt", b"ann x y z\nbob x new z\n", r":2: item 'new' has no index number"),
    ("user_sequence.txt", b"ann x y z\ndan x y z\n", r":2: user 'dan' has no index number"),
    ("user_sequence.txt", b"ann x 5 z\n5 x y z\n", r":2: user '5' has no index number"),
    ("user_indexing.txt", b"ann 7\nbob 7\n", r":2: index number 7 of 'bob' is already that of 'ann'"),
    ("item_random_indexing.txt", b"w 1001\nx 1001\n", r":2: index number 1001"),
    ("item_random_indexing.txt", b"w 1001\nw 1002\n", r":2: 'w' has two index numbers"),
    ("item_random_indexing.txt", b"w 1001\nx ten\n", r":2: 'x ten' is no index entry"),
    ("item_random_indexing.txt", b"w 1001\nx\n", r":2: 'x' is no index entry"),
    ("item_random_indexing.txt", b"", r"item_random_indexing\.txt: is empty"),
    ("item_text.jsonl", b'{"id": "x"}\n{"id": \n', r":2: is no JSON"),
    ("item_text.jsonl", b'{"title": "Ex"}\n', r":1: text record without id"),
    ("item_text.jsonl", b'{"id": null}\n', r":1: text record without id"),
    ("item_text.jsonl", b"[1]\n", r":1: is no JSON object"),
    ("item_text.jsonl", b'{"id": 1}\n{"asin": "1"}\n', r":2: item '1' has two text records"),
]


@pytest.mark.parametrize(("name", "content", "message"), MALFORMED)
def test_malformed(folder, monkeypatch, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    for block in BLOCKS:
        monkeypatch.setattr(openp5, "BLOCK", block)
        with pytest.raises(DataError, match=message) as caught:
            load_openp5(folder)
        assert name in str(caught.value)
        assert str(caught.value).count(". ") >= 1  # what is wrong, then a remedy


def test_damaged_gzip_and_missing_folder(folder):
    (folder / "item_text.jsonl").unlink()
    (folder / "item_text.jsonl.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
    with pytest.raises(DataError, match=r"item_text\.jsonl\.gz: damaged gzip"):
        load_openp5(folder)
    with pytest.raises(DataError, match="no such folder"):
        load_openp5(folder / "nowhere")


def test_data_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    assert data_dir() == tmp_path
    monkeypatch.delenv("ILM_DATA_DIR")
    assert data_dir() == ROOT / "data"


# Users, items and interactions of OpenP5, training examples of the paper's Table 2.
@pytest.mark.parametrize(
    ("name", "users", "items", "interactions", "table_2"),
    [
        ("Beauty", 22_363, 12_101, 198_502, 2_628_260),
        ("ML1M", 6_040, 3_416, 999_611, 19_629_820),
        ("Clothing", 39_387, 23_033, 278_677, 3_210_320),
    ],
)
def test_counts_of_the_paper(name, users, items, interactions, table_2):
    data = real(name)
    assert (data.num_users, data.num_items, data.num_interactions) == (users, items, interactions)
    assert 2 * 10 * data.num_train_examples == table_2
    user, position = data.train_example(range(data.num_train_examples))
    targets = data.sequences[data.offsets[user] + position]
    assert np.array_equal(np.bincount(user, minlength=users) + 3, np.diff(data.offsets))
    assert data.train_matrix()[user, targets].min() == 1
    assert data.notes["repeated_items"] == data.notes["items_without_text"] == 0
    assert data.item_index.min() == 1001 and len(set(data.item_index.tolist())) == items


def test_pairs_of_beauty():
    data = real("Beauty")
    assert len(data.item_pairs()) == 114_582
    assert len(data.user_item_pairs()) == 153_776
