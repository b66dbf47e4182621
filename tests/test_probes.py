import numpy as np
import pytest

from ilm_lib.data.elm24 import read_facts
from ilm_lib.study.probes import facts_told, label_auc, neighbours_kept, picked


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    trait = rng.normal(size=(400, 3))
    labels = [
        [n for n, t in zip(("war", "love"), row) if t > 0.3] + (["rare"] if i < 5 else [])
        for i, row in enumerate(trait)
    ]
    return trait, labels, rng


def test_planted_labels_are_read_and_noise_is_not(world):
    trait, labels, rng = world
    tokens = (trait @ rng.normal(size=(3, 32))).reshape(400, 4, 8) + 0.01 * rng.normal(size=(400, 4, 8))
    read = label_auc(tokens, labels)
    assert set(read) == {"war", "love"} and min(read.values()) > 0.97  # five items are too few to tell
    noise = label_auc(rng.normal(size=(400, 32)), labels)
    assert all(abs(v - 0.5) < 0.12 for v in noise.values())
    shuffled = label_auc(tokens, [labels[i] for i in rng.permutation(400)])
    assert all(abs(v - 0.5) < 0.12 for v in shuffled.values())
    assert label_auc(tokens, [[]] * 400) == {}


def test_neighbours(world):
    trait, _, rng = world
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert neighbours_kept(5 * trait @ turn + 7, trait) == pytest.approx(1)  # what is alike stays alike
    assert neighbours_kept(rng.normal(size=(400, 16)), trait) < 0.06  # chance is .025


def test_facts_that_texts_name_are_held_against_their_films():
    war = read_facts({"title": "A (1994)", "genres": ["War", "Sci-Fi"]})
    love = read_facts({"title": "B (1961)", "genres": ["Romance"]})
    about = [[war], [love], [war, love], [war]]
    true = ["A 1990s war and sci-fi film.", "Romance of the 1960s.", "War from the 1990s, love from the 1960s.", "War."]
    told = facts_told(true, about)
    assert told == {"genres a text": 1.25, "genres right": 1, "decades a text": 1, "decades right": 1}
    wrong = facts_told(true[1:2] + true[:1] + ["A warm story of the 1970s."] * 2, about)
    assert wrong == {"genres a text": 0.75, "genres right": 0, "decades a text": 1, "decades right": 0}
    none = facts_told(["See it."] * 4, about)
    assert none["genres a text"] == 0 and np.isnan(none["decades right"])
    unknown = read_facts({"title": "C"})
    assert facts_told(true, [[unknown]] * 4)["genres a text"] == 0


def test_the_film_of_a_text_is_picked_among_four(world):
    """A text that is its plot finds it always, one that says nothing by chance, as many draws say."""
    rng = world[2]
    plots = rng.normal(size=(60, 8))
    assert picked(plots, plots).tolist() == [1] * 60
    assert picked(rng.normal(size=(60, 8)), plots).mean() == pytest.approx(0.25, abs=0.08)
    texts = plots + 1.5 * rng.normal(size=(60, 8))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine, right = unit(texts) @ unit(plots).T, 0
    for _ in range(200):
        for film in range(60):
            others = rng.choice(np.delete(np.arange(60), film), 3, replace=False)
            right += cosine[film, film] > cosine[film, others].max()
    assert picked(texts, plots).mean() == pytest.approx(right / 12_000, abs=0.015)
