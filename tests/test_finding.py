"""Tags as queries: what is held out, what may be known, how answers are measured, and what the page says of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bench import find
from ilm_lib.data.conversations import TAGS, read_catalogue, read_tags
from ilm_lib.model.finder import Aligned, Finder, Weights
from ilm_lib.profiles import ROOT, data_dir
from ilm_lib.settings import Phase1, QFormerParams
from ilm_lib.tasks.finding import FINDING, LEAST, MOST, Query, found, holds, part_of, spelling, tag_task
from ilm_lib.train.pairs import Pairs
from ilm_lib.train.phase1 import train_phase1


def test_spellings_of_a_tag_are_held_out_together():
    for one, other in (
        ("Sci-Fi", "scifi"),
        ("sequels", "sequel"),
        ("King's men", "king men"),
        ("video game", "videogames"),
    ):
        assert spelling(one) == spelling(other) and part_of(one) == part_of(other)
    assert spelling("star wars") != spelling("star trek")
    parts = [part_of(f"tag {n}") for n in range(2000)]
    assert {part: round(parts.count(part) / 2000, 1) for part in set(parts)} == {"train": 0.6, "dev": 0.2, "test": 0.2}


def test_a_text_holds_a_tag_as_whole_words_in_a_row():
    held = {spelling("teen"), spelling("sci-fi"), spelling("end of the world")}
    assert all(
        holds(text, held)
        for text in ("Teen movie", "for teens", "great scifi!", "a Sci-Fi film", "it ends, of the world")
    )
    assert not any(holds(text, held) for text in ("fifteen", "sci and then fi", "end of the new world", "", "teenage"))


def by_part(part: str, count: int) -> list[str]:
    return [tag for n in range(1000) if part_of(tag := f"w{n:03}x") == part][:count]


def world():
    """12 items; a training, a dev and a test tag, rare and frequent ones, and a training tag that holds a held one."""
    train, dev, test = (by_part(part, 3) for part in ("train", "dev", "test"))
    compound = next(f"{test[0]} {w}" for w in by_part("train", 50) if part_of(f"{test[0]} {w}") == "train")
    tags = [[train[0], dev[0], test[0], compound, train[0]] for _ in range(6)]
    tags += [[test[1], train[1]] for _ in range(4)] + [[], []]
    texts = [f"item {n}" for n in range(12)]
    texts[2] = f"a plot with {test[0].upper()}s in it"
    return tags, texts, train, dev, test, compound


def test_held_out_tags_are_in_no_text_and_rare_ones_are_not_asked():
    tags, texts, train, dev, test, compound = world()
    task = tag_task(tags, texts)
    assert [q.words for q in task.queries["test"]] == [test[0]] and [q.words for q in task.queries["dev"]] == [dev[0]]
    assert task.known[0] == [train[0]] and task.known[7] == [train[1]] and task.known[11] == []
    assert {q.words for q in task.queries["train"]} == {train[0], compound}
    (asked,) = task.queries["test"]
    assert asked.rows.tolist() == [*range(6)] and asked.unsaid.tolist() == [0, 1, 3, 4, 5], "item 2 says it in its plot"


def test_measures_by_hand():
    query = Query("t", np.array([0, 3]), np.array([3]))
    scores = np.arange(60, 0, -1.0)[None]
    got = {name: values.tolist() for name, values in found(scores, [query]).items()}
    assert set(got) == set(FINDING)
    assert got["R@10"] == got["R@50"] == got["R@50 unsaid"] == got["MRR"] == [1]
    assert got["NDCG@10"] == pytest.approx([(1 + 1 / np.log2(5)) / (1 + 1 / np.log2(3))])
    last = {name: values.tolist() for name, values in found(-scores, [query]).items()}
    assert last["R@10"] == last["R@50"] == last["NDCG@10"] == [0] and last["MRR"] == [1 / 57]
    many = Query("t", np.arange(40), np.arange(0))
    got = found(scores, [many])
    assert got["R@10"].tolist() == [1] and got["NDCG@10"] == pytest.approx([1]), "ten of ten that can be"
    assert got["R@50"].tolist() == [1] and not len(got["R@50 unsaid"])


def test_equal_scores_count_against_and_wrong_ones_are_refused():
    query = Query("t", np.array([0]), np.array([0]))
    got = found(np.zeros((1, 60)), [query])
    assert got["MRR"].tolist() == [1 / 60] and got["R@50"].tolist() == [0]
    with pytest.raises(ValueError, match="scores of 2 queries for 1"):
        found(np.zeros((2, 60)), [query])
    with pytest.raises(ValueError, match="no number"):
        found(np.full((1, 60), np.nan), [query])


def test_items_that_say_the_tag_do_not_stand_in_the_way_of_those_that_do_not():
    query = Query("t", np.arange(60), np.array([55, 59]))
    scores = np.arange(100, 0, -1.0)[None]
    assert found(scores, [query])["R@50 unsaid"].tolist() == [1]


def test_others_vectors_are_those_of_other_films():
    items = torch.arange(1, 41.0)[:, None, None].expand(40, 2, 3).clone()
    items[5:9] = 0
    mixed = find.anothers(items, seed=0)
    assert not mixed[5:9].any() and (mixed[[*range(5), *range(9, 40)]] != 0).all()
    assert mixed.flatten().sort()[0].equal(items.flatten().sort()[0])
    moved = (mixed != items).any(2).any(1)
    assert moved.sum() > 30 and (mixed == mixed[:, :1, :1]).all(), "a film's vectors stay together"


def test_gains_are_paired_over_tags_and_mean_over_seeds():
    rng = np.random.default_rng(0)
    kept = {(m, metric): list(rng.random((2, 50))) for m in find.COMPARED for metric in find.GAINED}
    for metric in find.GAINED:
        kept["Finder", metric] = [values + 0.25 for values in kept["MiniLM, tags", metric]]
    gains = find.gains_of(kept).set_index(["against", "metric"])
    against = gains.loc["MiniLM, tags"]
    np.testing.assert_allclose(against[["gain", "low", "high"]], 0.25, atol=1e-6)
    assert (gains["n"] == 50).all() and gains.loc["BM25, tags"]["low"].lt(gains.loc["BM25, tags"]["gain"]).all()
    assert "| MiniLM, tags | +0.250 (+0.250 to +0.250) |" in find.gain_table(gains.reset_index())


def test_phase_1_finds_items_without_words_and_anothers_vectors_do_not(monkeypatch):
    """Four kinds of items that different people have; of each kind some say nothing, and are found all the same."""
    kinds, each = ("red", "green", "blue", "grey"), 20
    rng = np.random.default_rng(0)
    kind = np.arange(4 * each) % 4
    cf = torch.from_numpy((np.eye(4).repeat(2, 1)[kind] * 2 + 0.3 * rng.normal(size=(4 * each, 8))).astype(np.float32))
    silent = np.arange(4 * each) >= 3 * each
    rows = np.flatnonzero(~silent).repeat(3)
    none = np.empty((0, 2), np.int64)
    pairs = Pairs([f"{kinds[kind[row]]} {n}" for n, row in enumerate(rows)], rows, none, none)
    sizes = QFormerParams(
        num_query_tokens=2, layers=1, width=16, heads=2, contrast_dim=8, text_vocab=400, max_text_tokens=8
    )
    settings = Phase1(steps=80, batch_size=32, lr=1e-2, optimizer="adamw", precision="float32", losses=("itc",))
    model, codec, _ = train_phase1(pairs, cf, sizes, settings, settings.losses, seed=0)
    towers = Aligned(model, codec)
    texts = np.where(silent[:, None], 0, 1).astype(np.float32)
    finder = Finder(texts, np.ones(4 * each, np.float32), towers.items(cf), towers, Weights(0, 1, 0))
    monkeypatch.setattr(Finder, "encode", property(lambda _: lambda words: np.ones((len(words), 1), np.float32)))

    def right(finder: Finder) -> float:
        """The share of the silent items of the kind asked for among the first so many silent ones."""
        scores = finder.log_probabilities(kinds)[:, torch.from_numpy(silent)]
        return float((kind[silent][scores.topk(each // 4).indices.numpy()] == np.arange(4)[:, None]).mean())

    assert right(finder) > 0.75
    assert right(replace(finder, items=find.anothers(finder.items, seed=0))) < 0.6, "chance is 0.25"


@pytest.fixture(scope="module")
def films():
    root = data_dir()
    if not (root / TAGS).exists():
        pytest.skip(f"{root / TAGS} is absent: the tags of MovieLens may not be handed on")
    catalogue, tags = read_catalogue(root), read_tags(root / TAGS)
    texts = [catalogue.text(row) for row in range(len(catalogue.ids))]
    return catalogue, tag_task([tags.get(movie, []) for movie in catalogue.ids], texts)


def test_no_film_text_holds_a_held_out_tag_but_in_its_own_words(films):
    """What methods read beside title, genres and plot: not one word for word, in any spelling."""
    catalogue, task = films
    held = {spelling(q.words) for part in ("dev", "test") for q in task.queries[part]}
    assert len(held) > 300 and len(task.queries["train"]) > 400
    assert not [tag for known in task.known for tag in known if holds(tag, held)]
    assert sum(map(len, task.known)) > 20_000
    for row in range(0, len(catalogue.ids), 997):
        read = find.text_with_tags(catalogue, row, task.known[row])
        own = find.text_with_tags(catalogue, row, [])
        assert own == catalogue.text(row)
        assert {s for s in held if holds(read, {s})} == {s for s in held if holds(own, {s})}
    for queries in task.queries.values():
        assert all(LEAST <= len(q.rows) <= MOST and set(q.unsaid) <= set(q.rows) for q in queries)


def test_missing_data_and_wrong_seeds_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="ml-latest-small"):
        find.main(["0"])
    with pytest.raises(SystemExit, match="'x' is no whole number"):
        find.main(["x"])


def test_the_page_shows_the_numbers_that_were_written():
    written = pd.read_csv(find.RESULTS, keep_default_na=False)
    assert set(written["method"]) == set(find.METHODS) and set(written["metric"]) == set(FINDING)
    page = (ROOT / "reports" / "README.md").read_text(encoding="utf-8")
    assert find.table(written) in page
    gains = pd.read_csv(find.GAINS, keep_default_na=False)
    assert find.gain_table(gains) in page
    assert (gains["low"] <= gains["gain"]).all() and (gains["gain"] <= gains["high"]).all()
    means = written.groupby(["method", "metric"])["value"].mean()
    for row in gains.itertuples():
        assert row.gain == pytest.approx(means[row.method, row.metric] - means[row.against, row.metric], abs=2e-6)
    assert written["value"].between(0, 1).all() and (written["task"] == "find").all()
