"""Simulated conversations that teach and ask: what is asked for, what is never shown, and how success is counted."""

import numpy as np
import pytest
import torch
from conftest import FOLD

from ilm_lib import ILM, Item
from ilm_lib.data import load_openp5
from ilm_lib.data.conversations import films_of
from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.data.toy import make_toy_world
from ilm_lib.model.dialogue import DialoguePrompt
from ilm_lib.model.encoders import MLPEncoder
from ilm_lib.model.finder import Finder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.model.seekers import Seekers
from ilm_lib.tasks import simulated
from ilm_lib.tasks.openp5 import RecommendationTasks
from ilm_lib.tasks.seekers import leaks
from ilm_lib.tasks.simulated import SeekerWorld, exchanged


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    make_toy_world(folder, num_items=90, num_users=120, seed=1)
    return load_openp5(folder, name="Toy")


@pytest.fixture(scope="module")
def world(toy):
    return SeekerWorld.of(*films_of(toy))


@pytest.fixture(scope="module")
def talker(toy, new_ilm):
    """Random weights over the toy world."""
    bare = new_ilm("none")
    torch.manual_seed(0)
    cf = torch.randn(toy.num_items, 6)
    encoder = MLPEncoder(6, 32, 2)
    encoder.calibrate(cf, 0.3)
    head = ScoreHead(32, 6, toy.num_items, dim=8, prompt=DialoguePrompt())
    names = RecommendationTasks(toy, OUR_TEMPLATES, Indexing("Toy", toy.user_index, toy.item_index), 4).catalogue()
    return ILM(bare.llm, bare.tokenizer, encoder, cf, len(cf), names.without_users(), "slot", FOLD, head).eval()


def words_of(turn):
    return " ".join(part for part in turn["content"] if isinstance(part, str))


def items_of(turn):
    return [part.row for part in turn["content"] if isinstance(part, Item)]


def test_films_of_a_dataset(toy, world):
    films = world.catalogue
    assert films.ids == toy.items and films.titles[3] == toy.texts[3]["title"]
    assert films.genres[3] == ", ".join(toy.texts[3]["genres"]) and films.plots[3] == toy.texts[3]["overview"]
    np.testing.assert_array_equal(films.histories[5], toy.sequence(5))
    assert films.shares.sum() * toy.num_users == pytest.approx(len(toy.sequences))
    assert world.rows[toy.items[7]] == 7


def test_who_asks_teaches_nothing(world):
    ask, teach = world.wishes(30, 60)
    assert len(ask) == 30 and len(teach) == 60
    key = lambda wish: (wish.goal, wish.seen)
    assert not {*map(key, ask)} & {*map(key, teach)}
    assert world.wishes(30, 20)[0] == ask, "whoever teaches, the same ask"


def test_every_turn_of_a_lesson_asks_for_the_film_that_nobody_has_named(world):
    _, teach = world.wishes(30, 40)
    factors = np.random.default_rng(0).normal(size=(90, 8))
    talks, questions = world.lessons(teach, factors, 0, turns=3, shown=2)
    assert len(talks) == 40 and len(questions) == 120
    for wish, talk in zip(teach, talks):
        assert talk.targets == [[wish.goal]] * 3
        assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] * 3 + ["user"]
        named = [row for turn in talk.turns for row in items_of(turn)]
        shown = [row for turn in talk.turns if turn["role"] == "assistant" for row in items_of(turn)]
        assert wish.goal not in named and len(shown) == len({*shown}) == 6
        assert not any(leaks(words_of(turn), world.facts[wish.goal].title) for turn in talk.turns)
    assert world.lessons(teach, factors, 0, turns=3, shown=2) == (talks, questions), "equal seeds, equal lessons"
    assert world.lessons(teach, factors, 1, turns=3, shown=2)[0] != talks


def test_an_oracle_finds_all_at_once_and_chance_few(world, talker, monkeypatch):
    ask, _ = world.wishes(40, 0)
    found = world.success(talker, ask, 0, turns=3, shown=2)
    assert found.shape == (40, 3) and (found[:, :-1] <= found[:, 1:]).all()
    assert found[:, -1].mean() < 0.4, "six films of ninety"
    goals = iter([wish.goal for wish in ask])

    def knows(ilm, dialogues):
        table, _ = ilm.table()
        return 100 * table[[next(goals) for _ in dialogues]]

    monkeypatch.setattr(simulated, "dialogue_queries", knows)
    monkeypatch.setattr(talker, "table", lambda: (torch.eye(90), torch.zeros(90)))
    assert world.success(talker, ask, 0, turns=3, shown=1).all()


def test_words_are_exchanged_and_films_stay(world):
    _, teach = world.wishes(10, 5)
    talks, _ = world.lessons(teach, np.eye(90), 0, turns=2)
    told = [talk.turns for talk in talks]
    swapped = list(exchanged(told))
    for n, talk in enumerate(swapped):
        for turn, own, other in zip(talk, told[n], told[n - 1]):
            assert items_of(turn) == items_of(own) and turn["role"] == own["role"]
            assert words_of(turn) == words_of(other)
    uneven = list(exchanged([told[0], told[1][:1]]))
    assert len(uneven[0]) == len(told[0]) and words_of(uneven[0][1]) == "", "a talk that is over says no more"


def test_what_was_said_stands_where_an_item_has_its_text():
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(30, 5)).astype(np.float32)
    texts[4] = 0  # no text
    having = texts.any(1)
    part = np.where(having[:, None], (texts - texts[having].mean(0)) @ rng.normal(size=(5, 3)), 0)
    items = torch.from_numpy(np.concatenate([rng.normal(size=(30, 2)), part], 1).astype(np.float32))
    fold = FoldIn(**{**vars(FOLD), "factors": 2.0})  # as it comes from JSON
    finder = Finder(texts, np.ones(30, np.float32))
    read = []

    def encode(said):
        read.extend(said)
        return texts[[int(text.split()[-1]) for text in said]]

    finder.__dict__["encode"] = encode
    seekers = Seekers(items, fold, finder)
    found = seekers.vectors([[], [7, 8], [7]], ["like 3", "like 3", " "])
    torch.testing.assert_close(found[0, 2:], items[3, 2:], atol=1e-4, rtol=1e-4)
    assert not found[0, :2].any() and not found[2, 2:].any(), "nothing named, nothing said"
    np.testing.assert_allclose(found[1, :2], fold.many(items.numpy(), [[7, 8]])[0, :2], atol=1e-6)
    assert read == ["like 3"], "read once"
    seekers.vectors([[]], ["like 3"])
    assert read == ["like 3"]
    torch.testing.assert_close(
        Seekers(items, fold, None).vectors([[7]], ["like 3"])[0], torch.tensor(fold.many(items.numpy(), [[7]])[0])
    )
    assert not Seekers(items, None, None).vectors([[7]], ["like 3"]).any()
