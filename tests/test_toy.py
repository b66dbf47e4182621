import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import said_under

from ilm_lib.data import toy

ROOT = Path(__file__).parents[1]
FILES = ("user_sequence.txt", "user_indexing.txt", "item_random_indexing.txt", "item_text.jsonl.gz", "oracle.npz")


class World:
    def __init__(self, folder: Path):
        lines = [line.split() for line in (folder / "user_sequence.txt").read_text().splitlines()]
        self.users = [line[0] for line in lines]
        self.texts = [json.loads(line) for line in gzip.open(folder / "item_text.jsonl.gz", "rt")]
        self.ids = [text["id"] for text in self.texts]
        row = {item: i for i, item in enumerate(self.ids)}
        self.sequences = [[row[item] for item in line[1:]] for line in lines]
        oracle = np.load(folder / "oracle.npz")
        self.scores, self.score_ids = oracle["scores"], oracle["item_ids"].tolist()
        self.folder = folder

    def hit_rate(self, scores: np.ndarray) -> float:
        """HR@10 of each user's last item among the items not watched before."""
        hits = []
        for seq, row in zip(self.sequences, scores.astype(float)):
            row[seq[:-1]] = -np.inf
            hits.append((row > row[seq[-1]]).sum() < 10)
        return float(np.mean(hits))

    def popularity(self) -> np.ndarray:
        return np.bincount(np.concatenate([s[:-2] for s in self.sequences]), minlength=len(self.ids))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("toy")
    toy.make_toy_world(folder)
    return World(folder)


@pytest.fixture(scope="module")
def films() -> toy.Films:
    """The latent traits behind `world`."""
    return toy.draw_films(np.random.default_rng(0).spawn(4)[0], 300)


def test_files_are_well_formed(world):
    assert sorted(p.name for p in world.folder.iterdir()) == sorted(FILES)
    assert len(set(world.users)) == 1000 and len(set(world.ids)) == 300
    indexing = [line.split() for line in (world.folder / "user_indexing.txt").read_text().splitlines()]
    assert indexing == [[user, str(k)] for k, user in enumerate(world.users, 1)]
    indexing = [line.split() for line in (world.folder / "item_random_indexing.txt").read_text().splitlines()]
    assert [k for _, k in indexing] == [str(k) for k in range(1001, 1301)]
    assert sorted(i for i, _ in indexing) == sorted(world.ids) and [i for i, _ in indexing] != world.ids
    assert world.scores.shape == (1000, 300) and world.scores.dtype == np.float32 and np.isfinite(world.scores).all()
    assert world.score_ids == world.ids


def test_sequences(world):
    lengths = [len(s) for s in world.sequences]
    assert min(lengths) >= 6 and max(lengths) <= 40 and 18 < np.mean(lengths) < 22
    assert all(len(set(s)) == len(s) for s in world.sequences)


def test_texts(world):
    titles = [t["title"] for t in world.texts]
    assert len(set(titles)) == 300 and sum(" II (" in t for t in titles) == 15
    for text in world.texts:
        assert set(text) == {"id", "title", "genres", "overview", "tags"}
        assert 1 <= len(text["genres"]) <= 2 and set(text["genres"]) <= set(toy.GENRES)
        assert 2 <= text["overview"].count(".") <= 4 and "{" not in text["overview"] and "|" not in text["overview"]
        assert all(s[0].isupper() for s in text["overview"].split(". "))
    sentences = [s for t in world.texts for s in t["overview"].split(". ")]
    assert len(set(sentences)) > 0.9 * len(sentences)


def test_a_tag_tells_the_mood_of_a_film(world, films):
    told = [toy.mood(text) for text in world.texts]
    assert all(name in ("", toy.MOODS[trait]) for name, trait in zip(told, films.mood, strict=True))
    assert 0.5 < np.mean([name != "" for name in told]) < 0.7 and toy.mood({}) == ""


@pytest.mark.slow
def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    script = (
        "import sys, pathlib; from ilm_lib.data.toy import make_toy_world as m; "
        "m(pathlib.Path(sys.argv[1]), num_items=100, num_users=50, seed=int(sys.argv[2]))"
    )

    def digest(name: str, hash_seed: str, seed: str) -> list[str]:
        said_under(hash_seed, script, str(tmp_path / name), seed)
        return [hashlib.sha256((tmp_path / name / f).read_bytes()).hexdigest() for f in FILES]

    first = digest("a", "1", "3")
    assert first == digest("b", "2", "3")
    assert (tmp_path / "a/item_text.jsonl.gz").read_bytes()[4:8] == bytes(4)  # gzip's time stamp
    assert not set(first) & set(digest("c", "1", "4"))


def test_too_small_a_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_items"):
        toy.make_toy_world(tmp_path, num_items=40)


def test_oracle_beats_popularity_and_needs_its_rows_and_columns(world):
    rng = np.random.default_rng(0)
    popularity = world.hit_rate(np.tile(world.popularity(), (1000, 1)))
    assert 0.45 < world.hit_rate(world.scores) < 0.65
    assert 0.06 < popularity < 0.16
    assert world.hit_rate(world.scores[rng.permutation(1000)]) < popularity + 0.04
    assert world.hit_rate(world.scores[:, rng.permutation(300)]) < 0.07  # chance is 10 of about 280


def test_last_item_transitions_beat_popularity(world):
    popularity = world.popularity() + 1
    counts = np.zeros((300, 300))
    for seq in world.sequences:
        np.add.at(counts, (seq[:-3], seq[1:-2]), 1)
    counts += 3 * popularity / popularity.sum()
    last = world.hit_rate(np.stack([counts[s[-2]] for s in world.sequences]))
    earlier = world.hit_rate(np.stack([counts[s[-5]] for s in world.sequences]))
    assert last > 1.5 * world.hit_rate(np.tile(popularity, (1000, 1)))
    assert last > earlier + 0.03  # it is the last step that counts


def between_share(values: np.ndarray, sequences: list) -> float:
    """Share of the views' variance that lies between users, less what chance gives; about 0 without any taste."""
    views = [values[s] for s in sequences]
    every = np.concatenate(views)
    between = sum(len(v) * (v.mean() - every.mean()) ** 2 for v in views) / ((every - every.mean()) ** 2).sum()
    return between - len(views) / len(every)


def test_hidden_dimensions_drive_viewing_but_no_text(world, films, monkeypatch):
    planted = [between_share(h, world.sequences) for h in films.hidden.T]
    assert min(planted) > 0.1
    for strength in (toy.TASTE, toy.PULL):
        monkeypatch.setitem(strength, "hidden", 0.0)
    without, _ = toy.draw_views(np.random.default_rng(1), films, 1000)
    assert max(between_share(h, without) for h in films.hidden.T) < 0.05

    other = replace(films, hidden=films.hidden[::-1], popularity=films.popularity[::-1])
    draw = lambda f: toy.draw_texts(np.random.default_rng(0).spawn(4)[1], f)
    assert draw(films) == draw(other) == [{k: v for k, v in t.items() if k != "id"} for t in world.texts]


def test_motifs_drive_viewing_and_texts(world, films, monkeypatch):
    def same_motif(sequences) -> float:
        pairs = [films.motif[s][:, None] == films.motif[s] for s in sequences]
        return sum(p.sum() - len(p) for p in pairs) / sum(len(p) * (len(p) - 1) for p in pairs)

    monkeypatch.setattr(toy, "MOTIF", 0.0)
    without, _ = toy.draw_views(np.random.default_rng(1), films, 1000)
    assert same_motif(world.sequences) > 1.5 * same_motif(without)
    for text, motif in zip(world.texts, films.motif):
        assert any(place in text["overview"] for place in toy.words.MOTIFS[motif][1:])


def test_sequels_follow_their_first_part(world, films):
    follows = [
        s[k + 1] == second
        for second in np.flatnonzero(films.parent >= 0)
        for s in world.sequences
        for k in range(len(s) - 1)
        if s[k] == films.parent[second] and second not in s[:k]
    ]
    assert np.mean(follows) > 0.15
