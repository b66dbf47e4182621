"""Raw files to OpenP5's form: every reader on a tiny file, the k-core, ties, equal bytes, downloads."""

import functools
import gzip
import hashlib
import json
import shutil
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
from conftest import said_under
from test_data import REAL, real

from ilm_lib import profiles
from ilm_lib.data import DataError, download, load_openp5
from ilm_lib.data import __main__ as command
from ilm_lib.data import prepare as writer
from ilm_lib.data.prepare import k_core, prepare, write_openp5
from ilm_lib.data.raw import GENRES_100K, clean, read_amazon_reviews, read_amazon_texts, read_movielens
from ilm_lib.data.records import read_texts
from ilm_lib.data.tables import read_csv
from ilm_lib.data.time_order import read_times
from ilm_lib.paper import PAPER_TABLE2


def table(*rows):
    return pd.DataFrame(rows, columns=["user", "item", "timestamp"])


def rows(interactions):
    return list(interactions.astype({"user": str, "item": str}).itertuples(index=False, name=None))


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def put(folder, name, text, encoding="utf-8"):
    write(folder / name, text, encoding)
    return folder


@pytest.fixture(autouse=True)
def own_profiles(tmp_path, monkeypatch):
    """Profiles are written below the test's folder, never into the checkout."""
    monkeypatch.setattr(profiles, "ROOT", tmp_path / "root")


# ------------------------------------------------------------ readers

KIDS = "Children's"


def flags(*genres):
    return "|".join(str(int(g in genres)) for g in GENRES_100K)


RELEASES = {
    "ml-1m": {
        "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n\n2::1193::1::978298413\n",
        "movies.dat": "661::Été: A::B (1996)::Animation|Children's\n1193::Cuckoo, The (1975)::Drama\n",
    },
    "ml-100k": {
        "u.data": "1\t1193\t5\t978300760\n1\t661\t3\t978302109\n2\t1193\t1\t978298413\n",
        "u.item": f"661|Été: A::B (1996)|01-Jan-1996||http://a/b|{flags('Animation', KIDS)}\n"
        f"1193|Cuckoo, The (1975)|01-Jan-1975||http://a/c|{flags('Drama')}\n",
    },
    "ml-latest-small": {
        "ratings.csv": "userId,movieId,rating,timestamp\n1,1193,5.0,978300760\n1,661,3.5,978302109\n"
        "2,1193,1.0,978298413\n",
        "movies.csv": "movieId,title,genres\n661,Été: A::B (1996),Animation|Children's\n"
        '1193,"Cuckoo, The (1975)",Drama\n9,Short (2001),(no genres listed)\n',
    },
}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_movielens_from_folder_and_zip(tmp_path, release, line_end):
    folder, archive = tmp_path / release, tmp_path / f"{release}.zip"
    encoding = "utf-8" if release == "ml-latest-small" else "latin-1"
    for name, text in RELEASES[release].items():
        write(folder / name, text.replace("\n", line_end), encoding)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(f"{release}/", "")
        for name in RELEASES[release]:
            file.write(folder / name, f"{release}/{name}")
    for path in (folder, archive):
        interactions, texts = read_movielens(path)
        assert rows(interactions) == [("1", "1193", 978300760), ("1", "661", 978302109), ("2", "1193", 978298413)]
        assert interactions["timestamp"].dtype == np.int64
        assert texts["661"] == {"title": "Été: A::B (1996)", "genres": ["Animation", "Children's"]}
        assert texts["1193"] == {"title": "Cuckoo, The (1975)", "genres": ["Drama"]}
        assert texts.get("9", {"genres": []})["genres"] == []


REVIEWS = [("A1", "B1", 1381190400), ("A1", "B2", 1381190400), ("A2", "B1", 1277942400)]
META = [
    {
        "asin": "B1",
        "related": {"also_bought": ["B9"]},
        "title": "Soap &amp; <b>Glory</b>\n 5 &lt; 6",
        "price": 3.5,
        "categories": [["Beauty", "Bath &amp; Shower"], ["Beauty", "Soap", ""]],
        "description": 'It\'s <br />"good".',
    },
    {"asin": "B2", "brand": "Ann", "salesRank": {"Beauty": 5}, "categories": [["Beauty"]], "title": None},
    {"asin": "B3", "title": "In no review"},
]


def amazon(folder, packed=True):
    pack = functools.partial(gzip.compress, mtime=0) if packed else bytes
    reviews = "".join(
        json.dumps({"reviewerID": u, "asin": i, "overall": 1.0, "unixReviewTime": t}) + "\n" for u, i, t in REVIEWS
    )
    (folder / "reviews.json.gz").write_bytes(pack(reviews.encode()))
    (folder / "meta.json.gz").write_bytes(pack("".join(f"{m!r}\n" for m in META).encode()))
    return folder / "reviews.json.gz", folder / "meta.json.gz"


@pytest.mark.parametrize("packed", [True, False])
def test_amazon(tmp_path, packed):
    reviews, meta = amazon(tmp_path, packed)
    assert rows(read_amazon_reviews(reviews)) == REVIEWS
    assert read_amazon_texts(meta, {"B1", "B2", "B7"}) == {
        "B1": {
            "title": "Soap & Glory 5 < 6",
            "categories": ["Beauty", "Bath & Shower", "Soap"],
            "description": 'It\'s "good".',
        },
        "B2": {"brand": "Ann", "categories": ["Beauty"]},
    }
    assert clean("&amp;amp;&nbsp; <!-- x --> a<p>b</p>") == "& a b"


def test_meta_is_data_not_code(tmp_path):
    path = write(tmp_path / "meta.json.gz", "{'asin': 'B1', 'title': print('x')}\n")
    with pytest.raises(DataError, match=r"meta\.json\.gz:1: .* is malformed"):
        read_amazon_texts(path, {"B1"})


def test_csv_and_texts(tmp_path):
    header = "\ufeffrating,item,user,timestamp\r\n"
    path = write(tmp_path / "own.csv", header + '5,x,ann,3\r\n\r\n4,"y,\u2028\nz",bob,-1\r\n')
    with pytest.raises(DataError, match=r"own\.csv:5: .* is no item id"):  # blanks part ids in OpenP5's form
        read_csv(path)
    write(path, header + '5,x,ann,3\r\n\r\n4,"y,z",bob,-1\r\n')
    assert rows(read_csv(path)) == [("ann", "x", 3), ("bob", "y,z", -1)]
    for delimiter in (";", "\t"):  # as spreadsheets write them; blanks after a delimiter do not count
        write(path, "user;item;timestamp\nann; x,1;3\n".replace(";", delimiter))
        assert rows(read_csv(path)) == [("ann", "x,1", 3)]
    texts = write(tmp_path / "texts.jsonl", '{"id": 7, "title": "Seven"}\n{"asin": "B1", "brand": "Ann"}\n')
    assert read_texts(texts) == ({"7": {"title": "Seven"}, "B1": {"brand": "Ann"}}, {})


HEADER = "user,item,timestamp\n"
REVIEW = '{"reviewerID": "A", "asin": "B", "unixReviewTime": 1}\n'
MALFORMED = [
    (read_movielens, "ratings.dat", "1::2::3::4\n\n1::2::3\n", r"ratings\.dat:3: '1::2::3' is malformed"),
    (read_movielens, "ratings.dat", "1::2::3::4\n1::2::3::noon\n", r"ratings\.dat:2: 'noon' is no timestamp"),
    (read_movielens, "ratings.dat", "1::2::3::99999999999999999999\n", r"ratings\.dat:1: .* is no timestamp"),
    (read_movielens, "ratings.dat", "::2::3::4\n", r"ratings\.dat:1: '' is no user id"),
    (read_movielens, "ratings.dat", "1::2 3::3::4\n", r"ratings\.dat:1: '2 3' is no item id"),
    (read_movielens, "ratings.dat", "\n", r"ratings\.dat: holds no interactions"),
    (read_movielens, "ratings.dat", "1::2::3::4\n", r"movies\.dat: is missing"),
    (read_movielens, "u.data", "1\t2\t3\t4\n1 2 3 4\n", r"u\.data:2: '1 2 3 4' is malformed"),
    (read_movielens, "ratings.csv", "userId,movieId,rating\n1,2,3\n", r"ratings\.csv:1: .* lacks timestamp"),
    (read_movielens, "notes.txt", "", r"holds no ratings\.dat, u\.data or ratings\.csv"),
    (read_csv, "a.csv", "", r"a\.csv: is empty\. Write the header user,item,timestamp"),
    (read_csv, "a.csv", "\ufeff\n \n", r"a\.csv: is empty"),
    (read_csv, "a.csv", "ann,x,3\nbob,y,4\n", r"a\.csv:1: header 'ann,x,3' lacks user, item, timestamp\. Name"),
    (read_csv, "a.csv", "usr,item,timestamp\na,x,3\n", r"a\.csv:1: .* lacks user \(is 'usr' meant for 'user'\?\)"),
    (read_csv, "a.csv", "user;item;timestamp\na;x;3,5\n", r"a\.csv:2: '3,5' is no timestamp.*without decimals"),
    (read_csv, "a.csv", HEADER + 'ann,x,"1.234.567,0"\n', r"a\.csv:2: '1\.234\.567,0' is no timestamp"),
    (read_csv, "a.csv", HEADER, r"a\.csv: holds no interactions"),
    (read_csv, "a.csv", HEADER + "ann,x,3\nann,x\n", r"a\.csv:3: 2 fields, the header has 3"),
    (read_csv, "a.csv", HEADER + "ann,x,2020-01-01\n", r"a\.csv:2: '2020-01-01' is no timestamp"),
    (read_csv, "a.csv", HEADER + '"' + "x" * 140_000, r"a\.csv:2: is no CSV"),
    (read_csv, "a.csv", HEADER.encode() + b"ann,\xff,3\n", r"a\.csv:2: byte 0xff .* is not UTF-8"),
    (read_amazon_reviews, "r.gz", '{"asin": "B"}\n', r"r\.gz:1: .* is malformed.*reviewerID"),
    (read_amazon_reviews, "r.gz", "[]\n", r"r\.gz:1: '\[\]' is malformed"),
    (read_amazon_reviews, "r.gz", '{"reviewerID": ["A"], "asin": "B", "unixReviewTime": 1}\n', r":1: .*no user id"),
    (read_amazon_reviews, "r.gz", b'\n{"asin\xff', r"r\.gz:2: is not UTF-8"),
    (read_amazon_reviews, "r.gz", gzip.compress(REVIEW.encode() * 99, mtime=0)[:-9], r"r\.gz: cannot be read"),
    (functools.partial(read_amazon_texts, items={"B"}), "m.gz", "{'asin': 'B', 'title': 5}", r"m\.gz:1: .*malformed"),
    (functools.partial(read_amazon_texts, items={"B"}), "m.gz", "{'asin': 'C'}\n\nB\n", r"m\.gz:3: 'B' is malformed"),
    (read_texts, "t.jsonl", '{"title": "x"}\n', r"t\.jsonl:1: text record without id"),
]


@pytest.mark.parametrize(("reader", "name", "content", "message"), MALFORMED)
def test_malformed(tmp_path, reader, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        reader(tmp_path if reader is read_movielens else path)
    assert str(caught.value).count(". ") >= 1  # what is wrong, then a remedy


def test_malformed_films_and_archives(tmp_path):
    ratings = "1\t2\t3\t4\n"
    folder = put(put(tmp_path, "u.data", ratings), "u.item", f"2|Two||||{flags('War')}\n3|Three||||{flags()[:-1]}2\n")
    with pytest.raises(DataError, match=r"u\.item:2: .*0 2' are no genre flags"):
        read_movielens(folder)
    put(folder, "u.item", "2|Two\n")
    with pytest.raises(DataError, match=r"u\.item:1: '2\|Two' is malformed. Each line must be 24 fields"):
        read_movielens(folder)
    put(put(folder, "ratings.dat", "1::2::3::4\n"), "movies.dat", "2::Two::War\n3::Three\n")
    with pytest.raises(DataError, match=r"movies\.dat:2: '3::Three' is malformed"):
        read_movielens(folder)
    with pytest.raises(DataError, match=r"bad\.zip: is no readable zip.*Delete the file"):
        read_movielens(write(tmp_path / "bad.zip", "<html>"))
    archive = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml-1m/ratings.dat", "1::2::3::4\n")
    archive.write_bytes(archive.read_bytes().replace(b"1::2::3", b"1::2::9", 1))  # a flipped bit
    with pytest.raises(DataError, match=r"ml-1m\.zip.ml-1m.ratings\.dat: cannot be read \(Bad CRC"):
        read_movielens(archive)
    with pytest.raises(DataError, match=r"gone\.zip: is no readable zip"):
        read_movielens(tmp_path / "gone.zip")
    with pytest.raises(DataError, match=r"gone\.gz: cannot be read"):
        read_amazon_reviews(tmp_path / "gone.gz")
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read"):
        read_csv(tmp_path / "gone.csv")


# ------------------------------------------------------------ filters


def brute_force_core(pairs, k):
    while True:
        users, items = [u for u, _ in pairs], [i for _, i in pairs]
        left = [(u, i) for u, i in pairs if users.count(u) >= k and items.count(i) >= k]
        if left == pairs:
            return pairs
        pairs = left


@pytest.mark.parametrize("k", [0, 2, 3, 5])
def test_k_core_against_brute_force(k):
    sizes = set()
    for seed in range(6):
        rng = np.random.default_rng(seed)
        pairs = [(f"u{u}", f"i{i}") for u, i in zip(rng.zipf(1.4, 300) % 40, rng.zipf(1.3, 300) % 30)]
        interactions = table(*((u, i, n) for n, (u, i) in enumerate(pairs)))
        for kind in (object, "str", "category"):
            core = k_core(interactions.astype({"user": kind, "item": kind}), k)
            assert [r[:2] for r in rows(core)] == brute_force_core(pairs, k)
            assert core["timestamp"].is_monotonic_increasing
        sizes.add(len(core))
    assert k == 0 or len(sizes) > 1  # the cases differ
    assert len(k_core(interactions, 400)) == 0


def test_repeated_pairs_and_short_users():
    interactions = table(("a", "x", 9), ("a", "y", 5), ("a", "x", 1), ("a", "z", 7), ("b", "x", 1), ("b", "y", 1))
    left, dropped = prepare(interactions, 0)
    assert rows(left) == [("a", "x", 1), ("a", "y", 5), ("a", "z", 7)]  # the first x, in time order
    assert list(dropped.values()) == [1, 0, 2]
    left, dropped = prepare(interactions, 2)
    assert len(left) == 0 and list(dropped.values()) == [1, 1, 4]  # z, then the users hold two items


# ------------------------------------------------------------ the OpenP5 form

ROWS = (
    ("bob", "10", 5),
    ("ann", "9", 5),
    ("ann", "10", 5),
    ("ann", "11", 2),
    ("bob", "9", 5),
    ("cat", "007", 2),
    ("bob", "11", 4),
    ("cat", "7", 9),
    ("cat", "9", 3),
    ("bob", "7", 5),
    ("ann", "7", 8),
)
TEXTS = {"9": {"title": "Nine\u2028é", "genres": ["A", "B"]}, "10": {}, "11": {"brand": "El"}, "12": {"title": "No"}}


def test_round_trip(tmp_path):
    """Time order, ties by row; users by first interaction; texts only of the items that are there."""
    write_openp5(tmp_path / "sets" / "Tiny", table(*ROWS), TEXTS)
    data = load_openp5(tmp_path / "sets" / "Tiny")
    sequences = {u: [data.items[i] for i in data.sequence(n)] for n, u in enumerate(data.users)}
    assert list(sequences.items()) == [  # ann and cat both start at 2, ann comes first in the file
        ("ann", ["11", "9", "10", "7"]),
        ("cat", ["007", "9", "7"]),
        ("bob", ["11", "10", "9", "7"]),
    ]
    assert data.user_index.tolist() == [1, 2, 3] and data.item_index.tolist() == [1001, 1002, 1003, 1004, 1005]
    assert read_times(tmp_path / "sets" / "Tiny", data)[0].tolist() == [2, 5, 5, 8, 2, 3, 9, 4, 5, 5, 5]
    by_id = dict(zip(data.items, data.texts, strict=True))
    assert by_id["9"] == {"id": "9", **TEXTS["9"]} and by_id["11"]["brand"] == "El" and by_id["10"] == {}
    assert data.notes["unused_texts"] == data.notes["unused_item_indices"] == data.notes["blank_lines"] == 0
    assert [p.name for p in (tmp_path / "sets").iterdir()] == ["Tiny"]  # nothing half written is left


def test_item_numbers(tmp_path):
    """A permutation over ids sorted as numbers: which rows come first in the file does not matter."""

    def numbers(name, interactions, seed):
        write_openp5(tmp_path / name, interactions, {}, seed=seed)
        assert not (tmp_path / name / "item_text.jsonl.gz").exists()
        return (tmp_path / name / "item_random_indexing.txt").read_text()

    first = numbers("a", table(*ROWS), 0)
    assert numbers("b", table(*ROWS[::-1]).astype("category").astype({"timestamp": int}), 0) == first
    order = np.random.default_rng(0).permutation(5)
    ids = np.array(["007", "7", "9", "10", "11"])
    assert first.split()[::2] == ids[np.argsort(order)].tolist()
    named = [(u, f"B{i}", t) for u, i, t in ROWS]  # no numbers: sorted as text
    ids = np.array(["B007", "B10", "B11", "B7", "B9"])
    assert numbers("c", table(*named), 0).split()[::2] == ids[np.argsort(order)].tolist()
    assert len({first, *(numbers(f"s{seed}", table(*ROWS), seed) for seed in (1, 3, 4))}) == 4


@pytest.mark.slow
def test_equal_bytes(tmp_path):
    code = (
        "import sys, ast, pandas as pd; from pathlib import Path; from ilm_lib.data.prepare import write_openp5;"
        "rows, texts = ast.literal_eval(sys.argv[2]); items = {r[1] for r in rows};"
        "write_openp5(Path(sys.argv[1]), pd.DataFrame(rows, columns=['user', 'item', 'timestamp']),"
        "{i: texts[i] for i in items if i in texts}); assert 'torch' not in sys.modules"
    )
    contents = []
    for seed in ("1", "2"):
        said_under(seed, code, str(tmp_path / seed), repr((ROWS, TEXTS)))
        contents.append({p.name: p.read_bytes() for p in (tmp_path / seed).iterdir()})
    assert contents[0] == contents[1] and len(contents[0]) == 5


def test_write_refuses(tmp_path):
    with pytest.raises(DataError, match="is there already"):
        write_openp5(tmp_path, table(*ROWS), {})
    with pytest.raises(DataError, match="no interactions are left"):
        write_openp5(tmp_path / "a", table(), {})
    with pytest.raises(DataError, match=r"user 'dan' has 1 items, 3 are needed.*prepare"):
        write_openp5(tmp_path / "a", table(*ROWS, ("dan", "7", 1)), {})
    for bad in ("two words", 7):
        with pytest.raises(DataError, match="is no id"):
            write_openp5(tmp_path / "a", table(*ROWS, ("ann", bad, 1)), {})
    assert not list(tmp_path.iterdir())


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_, **__):
        assert [len(list(p.iterdir())) for p in tmp_path.iterdir()] == [4]
        raise OSError("no space left")

    monkeypatch.setattr(writer.gzip, "compress", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_openp5(tmp_path / "a", table(*ROWS), TEXTS)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------ downloads


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        if "cut" not in self.path:
            return super().do_GET()
        self.send_response(200)  # a connection that breaks off
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half of it")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder served on this machine; returns it and the dead and the living address."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 5)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    closed = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    closed.server_close()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield folder, *(f"http://127.0.0.1:{s.server_address[1]}/" for s in (closed, server))
    server.shutdown()
    server.server_close()
    thread.join()


def register(monkeypatch, name, mirrors, content):
    digest = content and hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(download.FILES, name, download.RawFile(mirrors, digest))
    return digest


def test_second_mirror(mirror, monkeypatch, tmp_path, capsys):
    folder, dead, alive = mirror
    (folder / "a.zip").write_bytes(b"data")
    register(monkeypatch, "a.zip", (dead, alive), b"data")
    path = download.fetch("a.zip", tmp_path / "new" / "raw")
    assert path == tmp_path / "new" / "raw" / "a.zip" and path.read_bytes() == b"data"
    assert "Connection refused" in capsys.readouterr().out
    (folder / "a.zip").unlink()
    assert download.fetch("a.zip", tmp_path / "new" / "raw") == path  # from the disk
    assert [p.name for p in path.parent.iterdir()] == ["a.zip"]


def test_wrong_digest(mirror, monkeypatch, tmp_path, capsys):
    folder, _, alive = mirror
    digest = register(monkeypatch, "a.zip", (alive,), b"data")
    (folder / "a.zip").write_bytes(b"other")
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(DataError, match=f"another SHA-256.*Put a.zip .SHA-256 {digest}. there"):
        download.fetch("a.zip", tmp_path / "raw")
    assert other in capsys.readouterr().out
    assert not list((tmp_path / "raw").iterdir())
    write(tmp_path / "raw" / "a.zip", "other")
    with pytest.raises(DataError, match=f"has SHA-256 {other}, expected {digest}. Delete the file"):
        download.fetch("a.zip", tmp_path / "raw")
    assert (tmp_path / "raw" / "a.zip").exists()


def test_all_mirrors_dead(mirror, monkeypatch, tmp_path, capsys):
    _, dead, alive = mirror
    digest = register(monkeypatch, "cut.zip", (dead, alive, alive + "none/"), b"data")
    with pytest.raises(DataError) as caught:
        download.fetch("cut.zip", tmp_path / "raw")
    message, out = str(caught.value), capsys.readouterr().out
    for part in (tmp_path / "raw" / "cut.zip", digest, f"{dead}cut.zip", "refused", "IncompleteRead"):
        assert str(part) in message
    assert all(f"{mirror}cut.zip" in out for mirror in (dead, alive, alive + "none/"))
    assert not list((tmp_path / "raw").iterdir())  # nothing half loaded
    register(monkeypatch, "b.zip", (alive,), b"data")
    with pytest.raises(DataError, match=r"b\.zip: is missing and no mirror gave it \(HTTP 404\)"):
        download.fetch("b.zip", tmp_path / "raw")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written|File exists"):
        download.fetch("b.zip", tmp_path / "file")


def test_without_a_pinned_digest(mirror, monkeypatch, tmp_path, capsys):
    """The digest found first is told, noted and holds from then on; an error page is no data."""
    folder, _, alive = mirror
    register(monkeypatch, "r.json.gz", (alive + "portal/", alive), None)
    write(folder / "portal" / "r.json.gz", "\n<html>log in</html>")
    (folder / "r.json.gz").write_bytes(b"{data")
    path = download.fetch("r.json.gz", tmp_path)
    digest, out = hashlib.sha256(b"{data").hexdigest(), capsys.readouterr().out
    assert path.read_bytes() == b"{data" and "HTML or text page" in out and digest in out
    assert (tmp_path / "r.json.gz.sha256").read_text() == f"{digest}  r.json.gz\n"
    assert download.fetch("r.json.gz", tmp_path) == path
    path.write_bytes(b"changed")
    with pytest.raises(DataError, match=f"expected {digest}"):
        download.fetch("r.json.gz", tmp_path)


def test_registry():
    for name, known in download.FILES.items():
        assert len(known.mirrors) > 1 and all(m.startswith("http") and m.endswith("/") for m in known.mirrors)
        assert name.startswith(("ml-", "prompt")) == (known.sha256 is not None)
        assert known.sha256 is None or len(bytes.fromhex(known.sha256)) == 32
    assert {f for files in download.DATASETS.values() for f in files} | {download.PROMPT_FILE} == set(download.FILES)


# ------------------------------------------------------------ the command


def test_command_with_csv(tmp_path, monkeypatch, capsys):
    lines = "".join(f"{u},{i},{t}\n" for u, i, t in (*ROWS, ("dan", "9", 1), ("ann", "9", 99)))
    own = write(tmp_path / "own.csv", HEADER + lines)
    texts = write(tmp_path / "texts.jsonl", '{"id": "9", "title": "Nine"}\n{"id": "12", "title": "No"}\n')
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path / "data"))
    arguments = ["--csv", str(own), "--texts", str(texts), "Mine"]
    assert command.main(arguments) == 0
    data, out = load_openp5(tmp_path / "data" / "openp5" / "Mine"), capsys.readouterr().out
    assert (data.num_users, data.num_items, data.num_interactions) == (3, 5, 11)
    assert "1 interactions dropped: repeated pairs" in out and "1 interactions dropped: of users" in out
    assert "4 items without text" in out and "warning" not in out and "1 texts dropped: of items without" in out
    assert "no profile is written, the data are too small: Mine: 3 users, 5 items, 2 examples to train on" in out
    assert command.main(arguments) == 1  # never written over
    assert "is there already" in capsys.readouterr().err
    assert command.main([*arguments[:-1], "--core", "9", "None"]) == 1
    assert "no interactions are left" in capsys.readouterr().err
    for wrong in (["Other"], [*arguments[:-1], "../Mine"], [*arguments, "--profile", "a/b"]):
        assert command.main(wrong) == 2
    assert {p.name for p in (tmp_path / "data" / "openp5").iterdir()} == {"Mine"}


def test_command_with_amazon(tmp_path, monkeypatch, capsys):
    reviews, meta = amazon(tmp_path)
    for file, path in zip(download.DATASETS["Beauty"], (reviews, meta), strict=True):
        (tmp_path / "raw").mkdir(exist_ok=True)
        path.rename(tmp_path / "raw" / file)
        monkeypatch.setitem(download.FILES, file, download.RawFile((), None))
    (tmp_path / "raw" / download.DATASETS["Beauty"][0]).write_bytes(
        gzip.compress(
            "".join(
                json.dumps({"reviewerID": f"A{u}", "asin": f"B{i}", "unixReviewTime": u}) + "\n"
                for u in range(6)
                for i in range(5)
            ).encode()
        )
    )
    assert command.main(["Beauty", "--folder", str(tmp_path)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "users 6 22,363 22,363" in out and "training examples 240 2,628,260 2,628,260" in out
    assert "warning: users here: 6, paper's Table 2: 22,363, a difference of -22,357" in out
    assert "another dataset than the paper's" in out and "2 items without text" in out
    assert load_openp5(tmp_path / "openp5" / "Beauty").item_text(0) is not None


def test_failed_download_ends_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(download.FILES, "ml-1m.zip", download.RawFile((), "0" * 64))
    assert command.main(["ML1M", "--folder", str(tmp_path)]) == 1
    assert "Put ml-1m.zip (SHA-256 000" in capsys.readouterr().err
    assert not (tmp_path / "openp5").exists()


def test_counts_of_openp5_are_those_of_table_2():
    """Of Clothing the paper prints 40 training examples fewer than OpenP5's files give."""
    for row in PAPER_TABLE2.itertuples():
        counts = command._counts(*command.OPENP5_COUNTS[row.dataset])
        assert (counts["users"], counts["items"], counts["test examples"]) == (row.users, row.items, row.test)
        assert counts["training examples"] - row.train == (40 if row.dataset == "Clothing" else 0)


# ------------------------------------------------------------ real data


@pytest.mark.skipif(
    not (REAL.parent / "ml-latest-small" / "ratings.csv").exists(),
    reason="no ml-latest-small under ILM_DATA_DIR or ../shared/data",
)
def test_latest_small(tmp_path, capsys):
    source = REAL.parent / "ml-latest-small"
    interactions, texts = read_movielens(source)
    assert len(interactions) == 100_836 and len(texts) == 9_742
    (tmp_path / "raw").mkdir()
    shutil.copytree(source, tmp_path / "raw" / "ml-latest-small")
    assert command.main(["latest-small", "--folder", str(tmp_path)]) == 0
    data = load_openp5(tmp_path / "openp5" / "latest-small")
    assert (data.num_users, data.num_items, data.num_interactions) == (610, 3_650, 90_274)
    assert data.notes["items_without_text"] == data.notes["repeated_items"] == 0
    assert data.item_text(data.items.index("1")).startswith("Toy Story (1995). Adventure, Animation")
    assert "10,562 interactions dropped: below the 5-core" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ML1M", "ML100K"])
def test_real_sequences_come_back(tmp_path, capsys, name):
    """OpenP5's sequences as raw ratings with rising times, and ratings that the 5-core must drop again."""
    data = real(name)
    user = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    lines = [
        f"{data.users[u]}::{data.items[i]}::3::{978_300_000 + t}\n"
        for t, (u, i) in enumerate(zip(user, data.sequences))
    ]
    rare = [f"{data.users[u]}::{900_000 + u % 150}::3::{978_300_000 + 7 * u}\n" for u in range(598)]
    unpacked = tmp_path / "raw" / download.DATASETS[name][0].removesuffix(".zip")
    write(unpacked / "ratings.dat", "".join(lines + rare))
    write(unpacked / "movies.dat", "".join(f"{i}::Film {i}::Drama\n" for i in data.items), "latin-1")
    assert command.main([name, "--folder", str(tmp_path)]) == 0
    again, out = load_openp5(tmp_path / "openp5" / name), capsys.readouterr().out
    assert (again.num_users, again.num_items, again.num_interactions) == command.OPENP5_COUNTS[name]
    assert "598 interactions dropped: below the 5-core" in out and "warning" not in out
    assert (tmp_path / "openp5" / name / "user_sequence.txt").read_bytes() == (
        REAL / name / "user_sequence.txt"
    ).read_bytes()
    assert again.users == data.users and again.user_index.tolist() == list(range(1, again.num_users + 1))
