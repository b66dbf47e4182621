"""A user's recent factors: the least squares by hand, beside a read-out, and what is chosen on dev."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CF, ITEMS

from ilm_lib.model.factor_score import FactorScore
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.study import blend

FOLD = FoldIn(unobserved=0.1, observed=1.5, ridge=0.3, ridge_per_item=0.02, item_scale=0.5, user_scale=2.0)
TABLE = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)


def weighted_least_squares(history, half_life):
    """(6,) by the definition, item by item."""
    table = TABLE.astype(np.float64) * 0.5
    system, right = 0.1 * table.T @ table + 0.3 * np.eye(6), np.zeros(6)
    for age, row in enumerate(reversed(history)):
        weight = 2.0 ** (-age / half_life)
        system += weight * (np.outer(table[row], table[row]) + 0.02 * np.eye(6))
        right += weight * 1.5 * table[row]
    return np.linalg.solve(system, right)


@pytest.mark.parametrize("half_life", [0.5, 1.0, 7.0])
def test_recent_items_count_more(half_life):
    fold = replace(FOLD, half_life=half_life)
    expected = weighted_least_squares([3, 11, 7, 19], half_life)
    np.testing.assert_allclose(fold(TABLE, [3, 11, 7, 19]) * 2.0, expected, rtol=1e-5)


def test_without_a_half_life_all_count_alike():
    np.testing.assert_allclose(FOLD(TABLE, [3, 11, 7]) * 2.0, weighted_least_squares([3, 11, 7], 1e12), rtol=1e-5)
    np.testing.assert_array_equal(FOLD(TABLE, [3, 11, 7]), FOLD(TABLE, [7, 3, 11]))
    assert not np.allclose(*(replace(FOLD, half_life=2.0)(TABLE, h) for h in ([3, 11, 7], [7, 3, 11])))


def test_an_item_that_comes_twice_counts_once_as_the_later():
    fold = replace(FOLD, half_life=1.0)
    np.testing.assert_allclose(fold(TABLE, [5, 3, 5]), fold(TABLE, [3, 5]), rtol=1e-6)
    assert not fold(TABLE, []).any()


def test_the_rest_of_a_fused_vector_is_a_weighted_mean():
    fold = replace(FOLD, half_life=1.0, factors=4, mean_scale=3.0)
    expected = (0.5 * TABLE[2, 4:] + TABLE[9, 4:]) / 1.5 / 3.0
    np.testing.assert_allclose(fold(TABLE, [2, 9])[4:], expected, rtol=1e-5)


def test_one_product_of_longer_vectors_is_the_sum_of_both_scores():
    own = FactorScore(replace(FOLD, half_life=3.0), weight=4.0)
    asked, table, items = torch.randn(2, 5), torch.randn(20, 5), torch.from_numpy(TABLE)
    histories = [[1, 2, 3], [9]]
    scores = own.queries(asked, items, histories) @ own.table(table, items).T
    x = np.stack([weighted_least_squares(h, 3.0) for h in histories])
    expected = asked @ table.T + torch.from_numpy(4.0 * x @ (TABLE * 0.5).T.astype(np.float64)).float()
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)


def test_items_that_change_are_factorised_anew():
    own, items = FactorScore(FOLD, 1.0), torch.from_numpy(TABLE.copy())
    before = own.table(torch.zeros(20, 0), items)
    items.mul_(2)
    torch.testing.assert_close(own.table(torch.zeros(20, 0), items), 2 * before)


def test_a_model_ranks_by_both_and_does_so_from_its_folder(tmp_path, new_ilm):
    bare = new_ilm("mlp", "llama", seed=0)
    head = ScoreHead(32, CF, ITEMS, dim=8, prompt=HistoryPrompt(history_max=4))
    ilm = ILM(bare.llm, bare.tokenizer, bare.encoder, bare.cf, ITEMS, bare.catalogue, "slot", None, head).eval()
    history = [Item(4), Item(9), Item(2)]
    plain = ilm.recommend(history=history, k=5)
    fold = replace(FOLD, half_life=1.0)
    ilm.factors = FactorScore(fold, weight=1e4)
    table = ilm.cf[: ilm.num_items].numpy()
    says = table * 0.5 @ (fold(table, [4, 9, 2]) * 2.0)
    says[[4, 9, 2]] = -np.inf
    heavy = [r.item.row for r in ilm.recommend(history=history, k=5)]
    assert heavy == np.argsort(-says, kind="stable")[:5].tolist()
    assert heavy != [r.item.row for r in plain]
    again = ILM.from_pretrained(ilm.save_pretrained(tmp_path / "model"))
    assert "recent factors beside it, weight 10000" in (tmp_path / "model" / "README.md").read_text()
    assert again.factors == ilm.factors and [r.item.row for r in again.recommend(history=history, k=5)] == heavy
    ilm.factors = None
    assert ilm.recommend(history=history, k=5) == plain


# ---------------------------------------------------------------- chosen on dev


class Data:
    """Six users of a chain of 40 items: each goes on to the item after the last one."""

    def __init__(self):
        self.num_items, self.start = 40, np.array([0, 5, 11, 17, 22, 30])

    def history(self, u, split):
        return self.start[u] + np.arange(5 if split == "dev" else 6)

    def dev_targets(self):
        return self.start + 5


def chain():
    """(40, 40) factors by which an item says much of itself and of the next alone."""
    return torch.from_numpy(np.eye(40, dtype=np.float32) + np.eye(40, k=1, dtype=np.float32))


def test_choosing_finds_that_the_last_item_counts_and_how_well_each_pair_ranks():
    fold = FoldIn(0.01, 1.0, 0.1, 0.0, 1.0, 1.0)
    noise = blend.Reader(lambda h: torch.ones(len(h), 1), torch.linspace(0, 1, 40)[:, None], torch.zeros(40))
    grid = blend.choose(noise, fold, chain(), Data(), np.arange(6), blend.WEIGHTS)
    assert len(grid) == len(blend.HALF_LIVES) * len(blend.WEIGHTS)
    nothing = grid[grid["weight"] == 0]
    assert nothing["dev NDCG@10"].nunique() == 1  # without weight no half-life matters
    best = grid.loc[grid["dev NDCG@10"].idxmax()]
    assert best["weight"] > 0 and best["dev HR@10"] == 1
    one = grid[(grid["weight"] == 4) & (grid["half_life"] == 2)].iloc[0]
    own, gains = FactorScore(replace(fold, half_life=2.0), 4.0), []
    for u in range(6):
        seen = Data().history(u, "dev")
        scores = (
            torch.linspace(0, 1, 40)
            + (own.queries(torch.zeros(1, 0), chain(), [seen]) @ own.table(torch.zeros(40, 0), chain()).T)[0]
        )
        scores[seen] = -torch.inf
        place = scores.argsort(descending=True).tolist().index(Data().dev_targets()[u])
        gains.append(1 / np.log2(place + 2) if place < 10 else 0)
    assert one["dev NDCG@10"] == pytest.approx(np.mean(gains), abs=1e-6)


def test_what_is_equal_to_the_target_stands_before_it():
    level = blend.nothing(40)
    fold = FoldIn(1.0, 1.0, 1.0, 0.0, 1.0, 1.0)
    grid = blend.choose(level, fold, torch.zeros(40, 3), Data(), np.arange(6), (1.0,))
    assert not grid["dev HR@10"].any()
