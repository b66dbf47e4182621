"""Verdicts on runs whose truth is planted: an effect must be found, no effect must not be."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ilm_lib.methods import baselines
from ilm_lib.paper import ELM_CLAIMS, OPENP5_CLAIMS, RANKING_METRICS, RESULT_COLUMNS
from ilm_lib.profiles import load_params
from ilm_lib.study import claims, comparisons, elm_results, inputs, openp5_results
from ilm_lib.study import openp5 as study_openp5
from ilm_lib.study import stages as study
from ilm_lib.tasks.openp5 import TASKS

USERS = 3000


@pytest.fixture
def params():
    return load_params(
        "toy",
        **{
            "seeds": (0, 1, 2),
            "data.name": "ML1M",
            "ablations.query_tokens": (1, 4, 32),
            "methods": ("OpenP5-R", "MLP", "ILM-rand", "ILM", "ILM-IT", "ILM-IT-II", "ILM-IT-UI"),
        },
    )


@pytest.fixture
def planted(monkeypatch):
    """Hit rates by method, or by (method, tokens) in figure 3; gaps of phase 1 by method."""
    rates, gaps = {}, {}

    def by_user(params, method, prompt, history, task="both", *, build=False):
        key = (method, params.qformer.num_query_tokens)
        rate = rates.get(key, rates.get(method, 0.1))
        luck = np.random.default_rng(0).random((USERS, 2))  # common to all methods, as easy users are
        hits = (luck < rate).mean(1)
        return dict.fromkeys(RANKING_METRICS, hits)

    def text_gap(params, methods=("ILM-IT", "ILM-IT-II", "ILM-IT-UI")):
        noise = np.random.default_rng(len(methods)).normal(0, 0.02, (len(methods), len(params.report_seeds)))
        rows = [
            (m, s, step, 2.0 + (split == "heldout") * (gaps.get(m, 1.0) + noise[methods.index(m), s]), split)
            for m in methods
            for s in params.report_seeds
            for step in (1, 2)
            for split in ("train", "heldout")
        ]
        return pd.DataFrame(rows, columns=["method", "seed", "step", "value", "split"])

    dataset = SimpleNamespace(num_users=6040, num_items=3416, num_interactions=999_611)
    encoder = SimpleNamespace(read_text=lambda encoding: json.dumps({"llm_before": "a", "llm_after": "a"}))
    monkeypatch.setattr(openp5_results, "by_user", by_user)
    monkeypatch.setattr(openp5_results, "dev_score", lambda params, seed, method: {"dev NDCG@10": 0.1})
    monkeypatch.setattr(claims, "text_gap", text_gap)
    monkeypatch.setattr(inputs, "dataset", lambda params: dataset)
    monkeypatch.setattr(study, "phase2", lambda params, seed, method: SimpleNamespace(path=lambda name: encoder))
    return rates, gaps


def verdicts(params):
    return {c.claim: c.verdict for c in claims.openp5_claims(params)}


def test_planted_effects_are_found(params, planted):
    rates, gaps = planted
    rates |= {
        "ILM": 0.14,
        "OpenP5-R": 0.10,
        "MLP": 0.10,
        "ILM-rand": 0.18,
        "ILM-IT-UI": 0.13,
        ("ILM", 1): 0.10,
        ("ILM", 4): 0.14,
        ("ILM", 32): 0.11,
    }
    gaps |= {"ILM-IT-II": 0.5}
    found = verdicts(params)
    assert found["ILM beats OpenP5-R: the frozen LLM gains from CF tokens"] == "reproduced"
    assert found["ILM beats ILM-rand: phase 1 matters"] == "not reproduced"
    assert found["The user-item loss helps where texts are scarce (ML1M)"] == "reproduced"
    assert found["The item-item loss helps where texts are scarce (ML1M)"] == "inconclusive"
    assert found["The item-item loss closes the gap between train and held-out text generation"] == "reproduced"
    assert found["The user-item loss closes the gap between train and held-out text generation"] == "inconclusive"
    assert found["More query tokens first help, then hurt"] == "reproduced"
    assert found["At most numbers of tokens ILM is ahead of an MLP with as many"] == "reproduced"
    assert found["The LLM stays exactly as it was"] == found["The data sets have the counts of Table 2"] == "reproduced"


def test_every_claim_has_a_reason_from_its_numbers_and_a_place_in_the_file(params, planted):
    rates, _ = planted
    rates |= {"ILM": 0.14, "OpenP5-R": 0.10, "MLP": 0.14, "ILM-rand": 0.18}
    made = claims.openp5_claims(params)
    assert {c.claim for c in made} <= set(OPENP5_CLAIMS.values())
    why = {c.claim: c.reason for c in made}
    assert why[OPENP5_CLAIMS["OpenP5-R"]] == "the paper's direction, p = .005, corrected for 24 comparisons"
    assert "too few users or no effect look the same" in why[OPENP5_CLAIMS["MLP"]]
    assert why[OPENP5_CLAIMS["ILM-rand"]] == "the whole interval lies on the other side of 0"
    assert "too few seeds" in why[OPENP5_CLAIMS["item-item gap"]]
    assert why[OPENP5_CLAIMS["frozen"]].startswith("counted: 18 of 18")


def test_no_effect_is_never_reproduced(params, planted):
    found = verdicts(params)
    frozen = {"The LLM stays exactly as it was", "The data sets have the counts of Table 2"}
    assert {v for c, v in found.items() if c not in frozen} == {"inconclusive"}


def test_no_gain_is_a_claim_of_its_own(params, planted):
    rates, _ = planted
    amazon = params.with_(**{"data.name": "Beauty"})
    assert verdicts(amazon)["The item-item loss brings no obvious gain where texts are rich"] == "reproduced"
    rates["ILM-IT-II"] = 0.14
    found = verdicts(amazon)
    assert found["The item-item loss brings no obvious gain where texts are rich"] == "not reproduced"
    assert found["The data sets have the counts of Table 2"] == "not reproduced"  # the dataset is still that of ML1M


def test_what_no_run_bears_on_is_not_tested(params, planted):
    few = params.with_(**{"methods": ("OpenP5-R", "ILM"), "ablations.query_tokens": (1, 4), "data.name": "Toy"})
    found = verdicts(few)
    assert sum(v == "not tested" for v in found.values()) == 9
    assert found["ILM beats the MLP adapter"] == "not tested"


def test_the_gain_is_followed_over_what_the_llm_has_read(params, monkeypatch):
    params = params.with_(**{"ablations.backbone_steps": (1600, 400), "evaluation.histories": ("kept",)})
    assert params.backbone.steps == 1600

    def rate(params, method, task):
        return 0.1 + 0.1 * (method == "ILM" and params.backbone.steps == 400 and task == "straightforward")

    def by_user(params, method, prompt, history, task, *, build=False):
        luck = np.random.default_rng(0).random(USERS)
        return {"HR@10": (luck < rate(params, method, task)).astype(float)}

    def rows(params, artifact, method, seed, table):
        return pd.DataFrame(
            [
                (table, "ML1M", task, prompt, "kept", "beam", method, "", seed, "HR@10", rate(params, method, task), 9)
                for task in ("sequential", "straightforward", "both")
                for prompt in ("seen", "unseen")
            ],
            columns=RESULT_COLUMNS,
        )

    monkeypatch.setattr(inputs, "dataset", lambda params: SimpleNamespace(num_users=800))
    monkeypatch.setattr(study_openp5, "evaluation", lambda *args, build: None)
    monkeypatch.setattr(openp5_results, "by_user", by_user)
    monkeypatch.setattr(openp5_results, "result_rows", rows)
    results, gains = comparisons.gain_by_reading(params)
    assert len(results) == 2 * 3 * 2 and set(results["seed"]) == {0}
    found = set(zip(results["task"], results["variant"]))
    assert found == {(task, f"prompts_read={n}") for task in TASKS for n in (8, 32)}  # 16 prompts a step
    assert gains[["task", "prompts"]].values.tolist() == [[t, n] for t in TASKS for n in (8, 32)]
    assert gains["diff"].round(1).tolist() == [0, 0, 0.1, 0]
    assert (gains["p"] < 0.05).tolist() == [False, False, True, False]
    assert study_openp5.beside(params, "backbone.steps", 1600) is params
    assert study_openp5.beside(params, "backbone.steps", 400).evaluation.prompts == ("seen",)


@pytest.fixture
def elm_scored(monkeypatch):
    """What each method gains, in nats, on 200 films of three tasks."""
    gains = {}

    def scored(run):
        method, seed = run
        films, rng = np.repeat(np.arange(200), 3), np.random.default_rng([len(method), seed])
        nll = 1.5 + 0.3 * np.sin(films) - gains.get(method, 0.0) + rng.normal(0, 0.1, 600)
        return pd.DataFrame(
            {
                "item": films,
                "task": np.tile(["summary", "pitch", "sadder"], 200),
                "nll": 20 * nll,
                "tokens": 20,
                "SC": 0.5,
            }
        )

    monkeypatch.setattr(elm_results, "evaluation", lambda params, seed, method, build=False: (method, seed))
    monkeypatch.setattr(elm_results, "scored", scored)
    return gains


@pytest.mark.parametrize("gain, wanted", [(0.05, "reproduced"), (0.0, "inconclusive"), (-0.05, "not reproduced")])
def test_the_claims_on_the_elm_tasks_find_what_is_planted(elm_scored, gain, wanted):
    elm_scored["ILM"] = gain
    found = {c.claim: c for c in claims.elm_claims(load_params("toy", seeds=(0, 1)))}
    assert {c.verdict for c in found.values()} == {wanted} and len(found) == 2
    claim = found["On the ELM tasks ILM beats the MLP adapter"]
    assert (claim.ci_low + claim.ci_high) / 2 == pytest.approx(gain, abs=0.02)
    assert claim.paper == "0.5730 against 0.6520 nats" and ("ahead in 3 of 3" in claim.ours) == (gain > 0)
    without = claims.elm_claims(load_params("toy", methods=("OpenP5-R", "MLP")))
    assert {c.verdict for c in without} == {"not tested"} and without[0].reason == "needs the methods ILM, MLP"


def test_a_gain_that_a_blind_model_has_too_does_not_count(elm_scored):
    elm_scored |= {"ILM": 0.05, "Film-blind": 0.05}
    made = claims.elm_claims(load_params("toy", seeds=(0, 1)))
    assert {c.verdict for c in made} == {"inconclusive"} and {c.claim for c in made} == set(ELM_CLAIMS.values())
    assert all(c.reason.startswith("ILM does not beat Film-blind") for c in made)


def test_cells_are_corrected_for_all_of_them(params, planted):
    rates, _ = planted
    rates |= {"ILM": 0.108}
    table = comparisons.cells(params, [*baselines("irspack"), "OpenP5-R", "MLP", "ILM-rand"])
    assert len(table) == 6 * 2 * 4 and (table["p corrected"] >= table["p"]).all()
    shown = comparisons.cells_table(table)
    assert list(shown.columns) == ["baseline", "prompt", *(f"Δ {m}" for m in RANKING_METRICS)] and len(shown) == 12
    assert shown["prompt"].tolist() == ["seen"] * 6 + ["unseen"] * 6
    assert shown.iloc[0]["Δ HR@10"].startswith("+0.0")
