import numpy as np
import pytest

from ilm_lib.probes import label_auc, neighbours_kept


@pytest.fixture
def world():
    rng = np.random.default_rng(0)
    trait = rng.normal(size=(400, 3))
    labels = [[n for n, t in zip(("war", "love"), row) if t > 0.3] + (["rare"] if i < 5 else [])
              for i, row in enumerate(trait)]
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
