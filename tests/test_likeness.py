"""What a vector asks for by itself: its scores by hand, its training, and a head that begins with it."""

import numpy as np
import pytest
import torch
from conftest import CF, ITEMS
from torch.nn.functional import cross_entropy, normalize

from ilm_lib import ILM, Item
from ilm_lib.model.likeness import Likeness
from ilm_lib.model.recommend import dialogue_queries
from ilm_lib.sections import Optim, Score
from ilm_lib.tasks.conversation import Question, target_ranks
from ilm_lib.tasks.dialogues import DialogueTasks, Talk
from ilm_lib.tasks.scoring import NO_LOSS
from ilm_lib.train.likeness import train_likeness
from ilm_lib.train.score import score_loss, train_score

TURNS = [
    {"role": "user", "content": ["I liked ", Item(3), " and ", Item(5), "."]},
    {"role": "assistant", "content": [Item(7), "?"]},
    {"role": "user", "content": "No, sadder"},
    {"role": "assistant", "content": [Item(1), " or ", Item(2)]},
]
TALK = Talk(TURNS, [[7], [1, 2]])
ALIKE = {"parts": [2, CF - 2], "weights": (1.0, 5.0), "dim": 4}


def test_scores_are_cosines_of_the_parts_and_a_product_of_two_maps():
    torch.manual_seed(0)
    likeness, asks, items = Likeness([2, 3], (1.0, 5.0), 4).eval(), torch.randn(3, 5), torch.randn(6, 5)
    asks[0, :2] = 0  # of whom one part is not known
    found = likeness.queries(asks) @ likeness.rows(items).T
    assert likeness.queries(asks).shape == (3, likeness.width) == (3, 9)
    for who in range(3):
        for row in range(6):
            x = [normalize(part, dim=0) for part in asks[who].split([2, 3])]
            y = [normalize(part, dim=0) for part in items[row].split([2, 3])]
            scaled = [torch.cat([a * 2**0.5, b * 3**0.5]) for a, b in (x, y)]
            maps = (likeness.asks.weight @ scaled[0] + likeness.asks.bias) @ (likeness.item.weight @ scaled[1])
            torch.testing.assert_close(found[who, row], 1.0 * x[0] @ y[0] + 5.0 * x[1] @ y[1] + maps)
    nobody = likeness.queries(torch.zeros(1, 5)) @ likeness.rows(items).T
    assert nobody.isfinite().all() and nobody.std() < 1, "who is not known asks for nothing in particular"


def world(seed=0, films=60, questions=600):
    """Films of 6 kinds, ten each: what was said tells the kind, the film named tells the number within it."""
    rng = np.random.default_rng(seed)
    kind, number = np.arange(films) % 6, np.arange(films) // 6
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    factors, texts = unit(rng.normal(size=(films // 6, 8)))[number], unit(rng.normal(size=(6, 16)))[kind]
    target = rng.integers(films, size=questions)
    named = (target - target % 6) + (target % 6 + rng.integers(1, 6, questions)) % 6
    meaning = unit(rng.normal(size=(6, 16)))  # how one speaks of a kind is not how it is described
    asked = [Question(n, 1, int(t), (int(m),)) for n, (t, m) in enumerate(zip(target, named))]
    vectors = np.concatenate([factors[named], meaning[kind[target]]], 1)
    table = lambda x: torch.tensor(x, dtype=torch.float32)
    return table(np.concatenate([factors, texts], 1)), asked, table(vectors)


def found_first(folder, items, asked, vectors, ask=None, seed=0, steps=200):
    """The share of the last 100 questions whose film stands first, and the scores."""
    folder.mkdir()
    torch.manual_seed(seed)
    likeness, bias = Likeness([8, 16], (1.0, 5.0), 16, dropout=0.0), torch.zeros(len(items))
    parts = [(asked[a:b], vectors[a:b]) for a, b in ((0, 400), (400, 500))]
    optim = Optim(steps=steps, batch_size=40, lr=0.01, optimizer="adamw")
    state = folder / "state.likeness.safetensors"
    train_likeness(likeness, items, bias, *parts, seed=seed, state=state, optim=optim)
    with torch.no_grad():
        scores = (likeness.queries(vectors[500:] if ask is None else ask) @ likeness.rows(items).T).numpy()
    return (target_ranks(scores, asked[500:]) == 1).mean(), scores


def test_both_parts_together_find_what_neither_finds_alone(tmp_path):
    items, asked, vectors = world()
    films, words = vectors.clone(), vectors.clone()
    films[:, 8:], words[:, :8] = 0, 0
    assert found_first(tmp_path / "both", items, asked, vectors)[0] > 0.95
    assert found_first(tmp_path / "films", items, asked, films)[0] < 0.45
    assert found_first(tmp_path / "words", items, asked, words)[0] < 0.3
    other = torch.cat([vectors[500:, :8], vectors[500:, 8:].flip(0)], 1)
    assert found_first(tmp_path / "other", items, asked, vectors, other)[0] < 0.4, "another's words lose the gain"


def test_shuffled_answers_teach_nothing(tmp_path):
    items, asked, vectors = world()
    order = np.random.default_rng(1).permutation(len(asked))
    mixed = [Question(q.dialogue, 1, asked[n].target, ()) for q, n in zip(asked, order)]
    _, scores = found_first(tmp_path / "mixed", items, mixed, vectors)
    assert 20 < target_ranks(scores, mixed[500:]).mean() < 41, "chance is 30.5"


def test_equal_seeds_are_equal_and_others_differ(tmp_path):
    of = lambda name, seed: found_first(tmp_path / name, *world(), seed=seed, steps=20)[1]
    one, same, other = of("a", 0), of("b", 0), of("c", 1)
    assert (one == same).all() and (one != other).any()


# ---------------------------------------------------------------- in a head


@pytest.mark.parametrize("side", [None, {"layers": 1, "heads": 2}])
def test_a_fresh_head_ranks_by_likeness_and_how_well_known_items_are(new_talker, side):
    ilm = new_talker(side=side, likeness=ALIKE)
    query, (table, bias) = dialogue_queries(ilm, [TURNS[:1]]), ilm.table()
    seeker = ilm.seekers.vectors([[3, 5]], ["I liked  and ."])
    likeness = ilm.head.likeness
    alone = likeness.queries(seeker) @ likeness.rows(ilm.cf[:ITEMS]).T + ilm.head.bias
    assert query.shape[1] == table.shape[1] == ilm.head.width
    torch.testing.assert_close(query @ table.T + bias, alone)
    best = ilm.chat(TURNS[:1], k=2, writes=False).recommended
    assert [one.item.row for one in best] == alone[0].index_fill(0, torch.tensor([3, 5]), -9e9).topk(2).indices.tolist()


def test_save_and_load(new_talker, tmp_path):
    ilm = new_talker(likeness=ALIKE)
    torch.nn.init.normal_(ilm.head.query.weight)
    again = ILM.from_pretrained(ilm.save_pretrained(tmp_path / "model"))
    scores = [one.table()[0] @ dialogue_queries(one, [TURNS])[0] for one in (ilm, again)]
    torch.testing.assert_close(*scores)
    assert again.head.config() == ilm.head.config()


def test_what_was_named_has_no_part_in_the_loss(new_talker):
    ilm = new_talker(likeness=ALIKE)
    torch.nn.init.normal_(ilm.head.query.weight)
    histories = DialogueTasks.of(ilm).histories(ilm.prompts, [TALK], np.random.default_rng(0))
    asked = histories.targets != NO_LOSS
    assert [rows for rows, one in zip(histories.banned, asked.tolist()) if one] == [[3, 5], [3, 5, 7]]
    with torch.no_grad():
        table, bias = ilm.table()
        scores = ilm.head.queries(ilm.slot_states(histories.batch, histories.guests)[asked]) @ table.T + bias
        assert not torch.allclose(score_loss(ilm, histories, Score()), cross_entropy(scores, histories.targets[asked]))
        scores[0, [3, 5]] = scores[1, [3, 5, 7]] = -torch.inf
        torch.testing.assert_close(score_loss(ilm, histories, Score()), cross_entropy(scores, histories.targets[asked]))


def test_who_is_told_no_items_may_not_have_them_either(new_talker):
    tasks = DialogueTasks.of(new_talker(tokens=False))
    asked, vectors = tasks.asks([Talk([], []), TALK])
    assert [(q.target, q.named) for q in asked] == [(7, (3, 5)), (1, (3, 5, 7)), (2, (3, 5, 7))]
    assert tasks.asked([TALK])[0].named == [[], []] and not vectors.any(), "the seeker's vector has nothing of them"


def test_what_the_llm_adds_is_learned_beside_a_likeness_that_stays(new_talker, tmp_path):
    ilm = new_talker(likeness=ALIKE)
    ilm.head.likeness.requires_grad_(False)
    before = {name: value.clone() for name, value in ilm.head.likeness.state_dict().items()}
    batches = DialogueTasks.of(ilm).training_batches(ilm.prompts, [TALK], 1, 0)
    train_score(tmp_path, ilm, batches, Score(steps=10, batch_size=2, lr=0.01), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in ilm.head.likeness.state_dict().items())
    assert ilm.head.query.weight.abs().max() > 0
