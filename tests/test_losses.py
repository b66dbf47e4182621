import math
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ilm_lib.model.qformer import QFormer
from ilm_lib.model.text_codec import TextCodec
from ilm_lib.model.text_tower import QFormerForPhase1
from ilm_lib.settings import Phase1, QFormerParams
from ilm_lib.train.losses import (
    contrastive_loss,
    hard_negatives,
    interaction_loss,
    itc_loss,
    itg_loss,
    itm_loss,
    query_similarity,
)
from ilm_lib.train.pairs import Batches, Pairs
from ilm_lib.train.phase1 import losses, run_phase1, train_phase1, yardsticks


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_the_contrastive_loss_is_its_formula():
    torch.manual_seed(0)
    s, ids = torch.randn(5, 5).double(), torch.arange(5)
    row = lambda i: -math.log(math.exp(s[i, i] / 0.2) / sum(math.exp(s[i, j] / 0.2) for j in range(5)))
    column = lambda j: -math.log(math.exp(s[j, j] / 0.2) / sum(math.exp(s[i, j] / 0.2) for i in range(5)))
    naive = sum(row(i) + column(i) for i in range(5)) / 10
    assert float(contrastive_loss(s, 0.2, ids, ids)) == pytest.approx(naive)


def test_without_signal_a_contrastive_loss_is_at_chance():
    torch.manual_seed(0)
    ids = torch.arange(256)
    loss, similarity = itc_loss(unit(256, 1, 512), unit(256, 512), ids, 1.0, "best")
    assert float(loss) == pytest.approx(math.log(256), abs=0.02) and similarity.shape == (256, 256)
    assert float(contrastive_loss(torch.zeros(256, 256), 0.07, ids, ids)) == pytest.approx(math.log(256))


def test_a_duplicate_of_the_batch_is_no_negative():
    torch.manual_seed(0)
    s = torch.randn(4, 4)
    five = torch.zeros(5, 5)  # the fifth pair has the item of the first
    five[:4, :4], five[4, :4], five[:4, 4], five[4, 4] = s, s[0], s[:, 0], s[0, 0]
    ids = torch.arange(4)
    alone = contrastive_loss(s, 0.1, ids, ids)
    same = torch.tensor([0, 1, 2, 3, 0])
    with_copy, unmasked = (contrastive_loss(five, 0.1, i, i) for i in (same, torch.arange(5)))
    assert unmasked > with_copy  # a copy that counts as a negative costs ln 2 in its rows
    rows = [F.cross_entropy(s[i : i + 1] / 0.1, torch.tensor([i])) for i in range(4)]
    s_twice = [F.cross_entropy(five[i : i + 1] / 0.1, torch.tensor([i])) for i in range(1, 4)]
    columns = [F.cross_entropy(five.T[i : i + 1] / 0.1, torch.tensor([i])) for i in range(1, 4)]
    back = F.cross_entropy(s.T[:1] / 0.1, torch.tensor([0]))
    naive = (2 * rows[0] + sum(s_twice) + 2 * back + sum(columns)) / 10
    torch.testing.assert_close(with_copy, naive)
    assert torch.isfinite(alone)


def test_pairs_that_share_either_side_are_masked():
    s = torch.zeros(3, 3)
    a, b = torch.tensor([0, 0, 2]), torch.tensor([5, 6, 6])  # 0 and 1 share a user, 1 and 2 an item
    loss = contrastive_loss(s, 0.5, a, b)
    assert float(loss) == pytest.approx((math.log(2) + math.log(1) + math.log(2)) / 3)


@pytest.mark.parametrize("selection", ["best", "positive"])
def test_planted_alignment_costs_nothing(selection):
    torch.manual_seed(0)
    queries, ids = unit(32, 4, 256), torch.arange(32)
    loss, similarity = itc_loss(queries, queries[:, 2], ids, 0.07, selection)
    assert float(loss) < 1e-3 and (similarity.diagonal() > 1 - 1e-5).all()
    shuffled, _ = itc_loss(queries, queries[:, 2].roll(1, 0), ids, 0.07, selection)
    assert float(shuffled) > 1


def test_hard_negatives_are_other_items_and_like_ones():
    torch.manual_seed(0)
    items = torch.tensor([0, 1, 2, 0, 3, 4])
    similarity = torch.eye(6) * 0.3
    similarity[1, 4] = similarity[2, 0] = 0.6  # item row 1 looks like text 4, row 2 like text 0
    drawn = [hard_negatives(similarity, items, 0.07) for _ in range(300)]
    text, item = (torch.stack(side) for side in zip(*drawn))
    assert text.shape == item.shape == (300, 6)
    assert not (items[text] == items).any() and not (items[item] == items).any()
    assert (text[:, 1] == 4).float().mean() > 0.9 and (text[:, 2] == 0).float().mean() > 0.9
    assert (item[:, 4] == 1).float().mean() > 0.9 and (item[:, 0] == 2).float().mean() > 0.9
    assert len(text[:, 4].unique()) == 5  # drawn, not the nearest


def test_hard_negatives_are_the_draws_of_multinomial():
    torch.manual_seed(0)
    similarity, items = torch.randn(6, 6), torch.tensor([0, 1, 2, 0, 3, 4])
    for seed in range(20):
        drawn = hard_negatives(similarity, items, 0.5, torch.Generator().manual_seed(seed))
        logits, same, g = similarity / 0.5, items[:, None] == items, torch.Generator().manual_seed(seed)
        for x, got in zip((logits, logits.T), drawn):
            weights = x.masked_fill(same, -1e4).softmax(1)
            assert torch.equal(got, torch.multinomial(weights, 1, generator=g)[:, 0])


def test_hard_negatives_of_a_perfect_model_are_still_other_items():
    torch.manual_seed(0)
    similarity = 2 * torch.eye(3) - 1
    for _ in range(50):
        for drawn in hard_negatives(similarity, torch.arange(3), 0.07):
            assert not (drawn == torch.arange(3)).any()


def test_a_batch_of_one_item_can_still_be_drawn_from():
    for drawn in hard_negatives(torch.ones(4, 4), torch.zeros(4), 0.07):
        assert drawn.shape == (4,) and ((0 <= drawn) & (drawn < 4)).all()


def test_generation_loss_is_the_mean_over_the_tokens_that_follow():
    torch.manual_seed(0)
    logits, target = torch.randn(6, 7, requires_grad=True), torch.tensor([4, 5, 6, 2, 3, 2])
    loss, naive = itg_loss(logits, target), -logits.log_softmax(-1)[torch.arange(6), target].mean()
    torch.testing.assert_close(loss, naive)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, naive)))


def test_matching_loss():
    assert float(itm_loss(torch.zeros(6, 2), 2)) == pytest.approx(math.log(2))
    sure = torch.tensor([[-9.0, 9], [9, -9], [9, -9]])
    assert float(itm_loss(sure, 1)) < 1e-6 and float(itm_loss(-sure, 1)) == pytest.approx(18, abs=1e-3)


def test_centring_brings_out_what_a_common_part_hides():
    torch.manual_seed(0)
    ids, common, a = torch.arange(64), 20 * torch.randn(1, 1, 32), torch.randn(64, 2, 32)
    loss = lambda center: float(interaction_loss(a + common, a + common, ids, ids, 0.3, "best", center))
    assert loss(False) > math.log(64) - 0.1 and loss(True) < loss(False) - 1
    mean = (a + common).mean(0)
    by_hand = interaction_loss(a + common - mean, a + common - mean, ids, ids, 0.3, "best", False)
    assert loss(True) == pytest.approx(float(by_hand), abs=1e-4)


def test_query_similarity_shows_collapse():
    torch.manual_seed(0)
    one = torch.randn(50, 1, 64)
    torch.testing.assert_close(query_similarity(one.expand(-1, 4, -1)), torch.ones(4, 4))
    apart = query_similarity(torch.randn(50, 4, 64))
    torch.testing.assert_close(apart.diagonal(), torch.ones(4))
    assert (apart - torch.eye(4)).abs().max() < 0.1


TRAITS = ("red green blue grey", "quiet loud odd plain", "old new short long", "sea city farm moon")
SMALL = dict(num_query_tokens=2, layers=2, width=32, heads=2, text_vocab=400, max_text_tokens=16)
PHASE1 = dict(steps=120, batch_size=64, lr=4e-3, optimizer="adamw", holdout=0.2, warmup=0.1)


def planted(shuffled):
    """256 items, one for every choice of four traits; the embedding is the traits, plus noise."""
    rng = np.random.default_rng(0)
    traits = np.array(list(product(range(4), repeat=4)))
    cf = np.eye(4, dtype=np.float32)[traits].reshape(256, 16) + 0.05 * rng.standard_normal((256, 16), dtype=np.float32)
    words = [" ".join(names.split()[t] for names, t in zip(TRAITS, row)) for row in traits]
    entity = rng.permutation(256) if shuffled else np.arange(256)
    near = np.stack([np.arange(256), np.arange(256)], 1)
    return Pairs(words, entity, near, near), torch.from_numpy(cf)


@pytest.mark.parametrize("shuffled", [False, True], ids=["planted", "shuffled"])
def test_phase1_learns_what_is_there_and_only_that(shuffled):
    pairs, cf = planted(shuffled)
    model, _codec, log = train_phase1(
        pairs, cf, QFormerParams(**SMALL), Phase1(**PHASE1, losses=("itc",)), ("itc",), seed=0
    )
    last = log[log.split == "heldout"].groupby("name").value.last()
    held = 51  # a fifth of 256
    assert not model.training and set(last.index) == {"itc", "recall@1", "recall@10", "query_cosine"}
    if shuffled:
        assert last["recall@10"] < 10 / held + 0.2 and last["itc"] > math.log(held) - 0.3
    else:
        assert last["recall@10"] > 0.8 and last["recall@1"] > 0.3 and last["itc"] < math.log(held) - 1.5


@pytest.mark.slow
def test_matching_is_learned_from_negatives_that_are_not_all_of_the_hardest():
    chance, ends = 0.6365, {}  # one pair in three matches
    for case, shuffled, temperature in (("planted", False, 0.5), ("shuffled", True, 0.5), ("hardest", False, 0.07)):
        params = Phase1(**{**PHASE1, "steps": 240}, losses=("itc", "itm"), temperature_negatives=temperature)
        _, _, log = train_phase1(*planted(shuffled), QFormerParams(**SMALL), params, params.losses, seed=0)
        ends[case] = log[(log.split == "heldout") & (log.name == "itm")].value.iloc[-1]
    assert ends["planted"] < chance - 0.2 and min(ends["shuffled"], ends["hardest"]) > chance - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("shuffled", [False, True], ids=["planted", "shuffled"])
def test_phase1_reads_two_items_where_a_text_is_about_two(shuffled):
    pairs, cf = planted(False)
    rng = np.random.default_rng(0)
    one, two = np.stack([np.arange(256), np.full(256, -1)], 1), rng.integers(256, size=(2048, 2))
    two = two[two[:, 0] != two[:, 1]]
    told = rng.permutation(two) if shuffled else two
    both = Pairs(
        [*pairs.texts, *(f"{pairs.texts[i]} {pairs.texts[j]}" for i, j in told)],
        np.concatenate([one, two]),
        pairs.ii,
        pairs.ui,
    )
    train, held = both.split(0.2, seed=0)
    assert not set(train.entity.ravel()) & set(held.entity.ravel()) - {-1} and len(held.about(1)) == 51
    _, _, log = train_phase1(both, cf, QFormerParams(**SMALL), Phase1(**PHASE1), ("itc", "itg"), seed=0)
    last = log[log.split == "heldout"].groupby("name").value.last()
    assert {"itc", "itg", "itc of two", "itg of two"} == set(log[log.split == "train"].name)
    chance = math.log(min(PHASE1["batch_size"], 128, len(held.about(2))))
    assert (last["itc of two"] > chance - 0.3) == shuffled and (last["itc of two"] < chance - 1) == (not shuffled)


def test_phase1_leaves_the_query_tower_apart_and_loses_nothing(tmp_path):
    pairs, cf = planted(False)
    params = Phase1(**{**PHASE1, "steps": 2, "batch_size": 8}, losses=("itc",))
    run_phase1(tmp_path, pairs, cf, QFormerParams(**SMALL), params, ("itc",), seed=0)
    model, _, _ = train_phase1(pairs, cf, QFormerParams(**SMALL), params, ("itc",), seed=0)
    tower, rest = (load_file(tmp_path / f"{name}.safetensors") for name in ("qformer", "phase1"))
    QFormer(QFormerParams(**SMALL), 16).load_state_dict(tower)  # what phase 2 starts from, and no more than that
    together = {**{f"qformer.{name}": value for name, value in tower.items()}, **rest}
    wanted = model.state_dict()
    assert together.keys() == wanted.keys() and all(torch.equal(together[name], wanted[name]) for name in wanted)


def test_phase1_runs_all_losses_in_turn():
    pairs, cf = planted(False)
    wanted = ("itc", "itg", "itm", "ii", "ui")
    params = Phase1(**{**PHASE1, "steps": 6, "batch_size": 16}, losses=wanted)
    _, _, log = train_phase1(pairs, cf, QFormerParams(**SMALL), params, wanted, seed=0)
    assert set(wanted) <= set(log[log.split == "heldout"].name)
    assert set(log[log.split == "train"].name) == set(wanted) and np.isfinite(log.value).all()


def test_generation_starts_with_its_own_token_and_is_told_the_text_so_far():
    pairs, cf = planted(False)
    codec = TextCodec.build(QFormerParams(**SMALL), pairs.texts)
    torch.manual_seed(0)
    model = QFormerForPhase1(QFormer(QFormerParams(**SMALL), 16), len(codec.tokenizer))
    ids = codec.encode([*pairs.texts[:6], "red"])
    assert (ids[:, 0] == codec.cls).all() and (ids[-1] == codec.pad).any()
    batch = {"cf": cf[:7], "ids": ids, "entity": torch.arange(7)}
    got = losses(model, batch, Phase1(**PHASE1), ("itg",), codec)
    told = torch.cat([torch.full((7, 1), codec.dec), ids[:, 1:]], 1)
    logp = model.generate(cf[:7], told, ids != codec.pad)[:, :-1].log_softmax(-1)
    each = logp.gather(2, ids[:, 1:, None])[..., 0]
    assert list(got) == ["itg"] and codec.dec not in (codec.cls, codec.sep, codec.pad)
    torch.testing.assert_close(got["itg"], -each[ids[:, 1:] != codec.pad].mean())
    drawn = Batches(Pairs([*pairs.texts[:6], "red"], np.arange(7), pairs.ii, pairs.ui), ids, cf, codec.pad)
    drawn = drawn.text(np.arange(7))  # with the positions of the targets
    assert len(drawn["targets"]) < ids[:, 1:].numel()
    torch.testing.assert_close(losses(model, drawn, Phase1(**PHASE1), ("itg",), codec), got)


@pytest.mark.parametrize("size", [4, None])
def test_interactions_are_compared_through_the_projection(new_qformer, size):
    model, (a, b) = new_qformer(contrast_dim=size, cf_dim=16), torch.randn(2, 6, 16)
    ids, params = torch.arange(6), Phase1(**PHASE1)
    got = losses(model, {"cf_a": a, "cf_b": b, "ids_a": ids, "ids_b": ids + 6, "kind": "ui"}, params, ("ui",), None)
    sides = model.qformer.queries(torch.cat([a, b]))
    if size:
        sides = F.linear(sides, model.query_proj.weight, model.query_proj.bias)
        assert sides.shape[-1] == size
    wanted = interaction_loss(*sides.chunk(2), ids, ids + 6, params.temperature_interaction, "best", params.center)
    torch.testing.assert_close(got["ui"], wanted)


def test_texts_are_cut_to_the_towers_length():
    codec = TextCodec.build(QFormerParams(**SMALL), planted(False)[0].texts)
    ids = codec.encode(["red quiet old sea " * 9, "red"])
    assert ids.shape == (2, 16) and int(ids[0, -1]) == codec.sep and ids[1].tolist().count(codec.sep) == 1


def test_held_out_entities_have_no_text_in_training():
    pairs, _ = planted(False)
    twice = Pairs(list(pairs.texts) * 2, np.tile(pairs.entity, 2), pairs.ii, pairs.ui)
    train, held = twice.split(0.1, seed=0)
    assert not set(train.entity) & set(held.entity) and len(held.entity) == 2 * 26
    assert len(train.ii) + len(held.ii) == 256 and not set(map(tuple, train.ui)) & set(map(tuple, held.ui))
    assert all(pairs.texts[e] == t for e, t in zip(held.entity, held.texts))


def test_yardsticks_know_chance_and_the_raw_embeddings():
    pairs, cf = planted(False)
    values = yardsticks(pairs, cf, Phase1(**PHASE1))
    assert values["chance ii"] == pytest.approx(math.log(51)) == values["chance itc"]
    assert values["ii raw"] < values["chance ii"] - 0.5
