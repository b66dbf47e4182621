"""The membership test's arithmetic: what is random finds nothing, what remembers all finds all."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_llm

from bench import privacy, privacy_models
from bench.privacy import (
    attack,
    auc,
    calibrate,
    folder_scores,
    less_frozen,
    non_members,
    summary,
    table,
    tenths,
    threshold,
)
from ilm_lib.model.ilm import ILM
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.profiles import ROOT

USERS, ITEMS = 60, 200


@pytest.fixture
def drawn():
    """Members and non-members of 60 users, 20 each, drawn at random."""
    rows = [np.random.default_rng(u).permutation(ITEMS) for u in range(USERS)]
    return [r[:20] for r in rows], [r[20:40] for r in rows]


def scored(members, value):
    """Noise, and `value` on top of it for members."""
    scores = np.random.default_rng(1).normal(size=(USERS, ITEMS))
    for row, of_user in zip(scores, members):
        row[of_user] += value
    return scores


def test_random_scores_find_nothing(drawn):
    found = attack(scored(drawn[0], 0), *drawn)
    assert found["auc"].mean() == pytest.approx(0.5, abs=0.03) and found["tpr"].mean() < 0.03


def test_what_remembers_all_finds_all(drawn):
    found = attack(scored(drawn[0], 100), *drawn)
    assert (found["auc"] == 1).all() and (found["tpr"] == 1).all()
    assert (attack(-scored(drawn[0], 100), *drawn)["auc"] == 0).all()


@pytest.mark.parametrize(
    ("members", "others", "value"),
    [([2, 3], [0, 1], 1), ([1], [1], 0.5), ([0, 2], [1], 0.5), ([1, 1], [1, 0], 0.75), ([0], [1, 2], 0)],
)
def test_auc_by_hand(members, others, value):
    assert auc(np.array(members), np.array(others)) == value


def test_a_kind_that_a_user_lacks_does_not_count():
    assert np.isnan(auc(np.array([1.0]), np.array([])))


@pytest.mark.parametrize(("rate", "expected"), [(0.01, 98), (0.02, 97), (0, 99)])
def test_the_threshold_lets_at_most_the_rate_through(rate, expected):
    others = np.random.default_rng(0).permutation(100)
    assert threshold(others, rate) == expected and (others > expected).mean() <= rate


def test_calibration_takes_what_all_users_share():
    own = np.zeros((USERS, ITEMS))
    own[3, 7] = 1
    shared = np.random.default_rng(0).normal(size=ITEMS) * 100
    assert np.unravel_index(calibrate(own + shared).argmax(), own.shape) == (3, 7)


def test_tenths_are_of_one_size_and_rise():
    popularity = np.random.default_rng(0).permutation(ITEMS)
    assert np.bincount(tenths(popularity, popularity)).tolist() == [ITEMS // 10] * 10
    assert tenths(np.array([-1, 0, ITEMS - 1]), popularity).tolist() == [0, 0, 9]


def test_non_members_are_what_a_user_never_had(data):
    popularity = np.bincount(data.train_matrix().indices, minlength=data.num_items)
    for user in range(data.num_users):
        of_user = non_members(data, user, popularity, np.random.default_rng(user))
        sequence, members = data.sequence(user), np.unique(data.train_sequence(user))
        assert len(of_user["uniform"]) == len(members) and not np.isin(of_user["uniform"], sequence).any()
        assert not np.isin(of_user["popularity"], sequence).any()
        wanted = tenths(popularity[members] - 1, popularity)
        assert set(tenths(popularity[of_user["popularity"]], popularity)) <= set(wanted)
        assert set(of_user["own held-out"]) == set(sequence[-2:]) - set(members)


def test_a_folder_is_asked_with_and_without_vectors(new_ilm):
    """Vectors of another user are those of another user, the bare LLM reads none, and the folder stays as it was."""
    ilm = new_ilm("mlp").eval()
    users, before = np.array([1, 4, 6]), ilm.cf.clone()
    scores = folder_scores(ilm, users)
    assert torch.equal(ilm.cf, before)
    assert all(values.shape == (3, ilm.num_items) for values in scores.values())
    assert (np.exp(scores["number and vector"]).sum(1) < 1.001).all()
    assert not np.allclose(scores["number and vector"], scores["number alone"])
    mixed = scores["number, another's vector"]
    assert np.allclose(scores["vector, another's number"], mixed[[1, 2, 0]])
    with torch.no_grad():
        ilm.cf[ilm.num_items + 4] = before[ilm.num_items + 1]
    assert np.allclose(folder_scores(ilm, users)["number and vector"][1], mixed[1], atol=1e-5)


def test_the_bare_llm_has_a_number_alone(new_ilm):
    assert folder_scores(new_ilm("none").eval(), np.array([0, 2])).keys() == {"number alone"}


def test_items_that_are_a_token_each_are_scored_by_that_token(tasks, data):
    tokenizer = train_tokenizer(tasks.corpus(50), 400, whole=tasks.indexing.names())
    llm = tiny_llm("llama", len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
    ilm = ILM(llm, tokenizer, None, torch.zeros(data.num_items + data.num_users, 4), data.num_items, tasks.catalogue())
    place, answers = privacy.distinct_token(ilm), [ilm.prompts.answer_ids(a) for a in privacy.answers_of(ilm)]
    assert place is not None
    prompts = [tasks.indexing.render(ilm.catalogue.straightforward, user) for user in (0, 3)]
    found = privacy.one_token(ilm.eval(), prompts)
    for row, prompt in zip(found, prompts):
        ids = torch.tensor([[*ilm.prompts.encode(prompt)[0], *answers[0][:place]]])
        with torch.no_grad():
            expected = llm(ids).logits[0, -1].log_softmax(-1)[[answer[place] for answer in answers]]
        assert torch.allclose(row, expected, atol=1e-4)
    other = ILM(llm, train_tokenizer(tasks.corpus(50), 400), None, ilm.cf, data.num_items, tasks.catalogue())
    assert privacy.distinct_token(other) is None  # two digits a token


def test_the_llm_of_other_users_reads_nothing_of_those_attacked(tasks):
    out = privacy_models.attacked(tasks.data.num_users)
    rest = np.setdiff1d(np.arange(tasks.data.num_users), out)
    part = privacy_models.of_users(tasks, rest)
    assert part.data.users == [tasks.data.users[u] for u in rest]
    assert all(np.array_equal(part.data.sequence(i), tasks.data.sequence(u)) for i, u in enumerate(rest))
    said = "\n".join(part.corpus(300))
    numbers = set(map(int, re.findall(r"user_(\d+)", said)))
    assert numbers and numbers <= set(tasks.data.user_index[rest].tolist())


def test_standard_errors_are_over_users_and_over_seeds():
    about = {"llm": "all users", "trained": "encoder", "score": "number alone", "calibrated": False, "dev": 0.1}
    cells = {0: [0.4, 0.6], 1: [0.6, 0.8]}  # seed: AUC of two users
    found = [
        pd.DataFrame({"auc": v, "tpr": v, "user": [0, 1], "seed": s, "against": "uniform"}) for s, v in cells.items()
    ]
    rows = summary(pd.concat(found).assign(**about)).set_index("seed")
    assert rows["auc"].tolist() == pytest.approx([0.5, 0.7, 0.6])
    assert rows["auc_se_users"].tolist() == pytest.approx([0.1] * 3)
    assert rows.loc["mean", "auc_se_seeds"] == pytest.approx(0.1) and np.isnan(rows.loc[0, "auc_se_seeds"])


def test_fully_trained_is_compared_with_frozen_user_by_user():
    about = {
        "llm": "all users",
        "score": "number alone",
        "calibrated": False,
        "against": "uniform",
        "seed": 0,
        "dev": 0.1,
    }
    cells = {"nothing": [0.1, 0.1], "encoder": [0.5, 0.9], "encoder and LLM": [0.6, 1.0]}
    found = [pd.DataFrame({"auc": v, "tpr": v, "user": [0, 1], "trained": name}) for name, v in cells.items()]
    less = less_frozen(pd.concat(found).assign(**about))
    assert less["trained"].tolist() == ["encoder and LLM, less encoder"] * 2
    row = summary(less).set_index("seed").loc["mean"]
    assert row["auc"] == pytest.approx(0.1) and row["auc_se_users"] == pytest.approx(0)


def test_the_page_shows_the_numbers_that_were_written():
    assert table(pd.read_csv(privacy.RESULTS)) in (ROOT / "PRIVACY.md").read_text(encoding="utf-8")
