"""The evaluation's bookkeeping on rankings written by hand."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from ilm_lib.profiles import load_params
from ilm_lib.study import inputs, openp5_results
from ilm_lib.study import openp5 as study_openp5
from ilm_lib.study import stages as study
from ilm_lib.study.artifacts import Artifact
from ilm_lib.tasks.openp5 import beam_recall


@pytest.fixture
def params():
    return load_params("toy", seeds=(0, 1), **{"evaluation.prompts": ("seen",), "evaluation.histories": ("kept",)})


@pytest.fixture
def ranked(tmp_path, monkeypatch):
    """Three users, ten items each; seed 1 finds what seed 0 misses."""
    miss, first = np.arange(10, 20), np.arange(10)
    tops = {
        0: {"sequential": [first, miss, miss], "straightforward": [first, first, miss]},
        1: {"sequential": [miss, miss, miss], "straightforward": [miss, miss, first]},
    }

    def evaluation(params, seed, method, *, build=False):
        folder = tmp_path / f"{method}{seed}"
        folder.mkdir(exist_ok=True)
        np.savez(
            folder / "tops.npz",
            target=np.zeros(3, int),
            users=np.array([4, 0, 2]),
            **{f"{task}|seen|kept": np.stack(top) for task, top in tops[seed].items()},
        )
        return Artifact("evaluation", "", folder)

    monkeypatch.setattr(openp5_results, "evaluation", evaluation)
    return evaluation


def test_metrics_by_user_are_means_over_tasks_and_seeds(params, ranked):
    assert openp5_results.by_user(params, "ILM", "seen", "kept")["HR@10"].tolist() == [0.5, 0.25, 0.25]
    assert openp5_results.by_user(params, "ILM", "seen", "kept", "sequential")["NDCG@10"].tolist() == [0.5, 0, 0]
    assert openp5_results.by_user(params.with_(seeds=(1,)), "ILM", "seen", "kept")["HR@5"].tolist() == [0, 0, 0.5]


def test_the_share_of_history_counts_what_the_user_has_had_and_no_empty_places(params, ranked, monkeypatch):
    seen = np.zeros((5, 20), bool)
    seen[4, :5] = seen[0, 12:14] = seen[2, 0] = True  # rows of the users ranked; 10..19 of row 4 are not theirs
    monkeypatch.setattr(inputs, "dataset", lambda params: SimpleNamespace(seen_matrix=lambda split: csr_matrix(seen)))
    share = openp5_results.history_share(params.with_(seeds=(0,)), "ILM", "sequential")
    assert share == pytest.approx((5 + 2 + 0) / 30)
    both = [openp5_results.history_share(params.with_(seeds=(s,)), "ILM", "straightforward") for s in (0, 1)]
    assert openp5_results.history_share(params, "ILM", "straightforward") == pytest.approx(sum(both) / 2)


def test_rows_count_both_tasks_together(params, ranked):
    rows = openp5_results.result_rows(params, ranked(params, 0, "ILM"), "ILM", 0)
    hr = rows[rows["metric"] == "HR@10"].set_index("task")
    assert hr["value"].to_dict() == pytest.approx({"sequential": 1 / 3, "straightforward": 2 / 3, "both": 1 / 2})
    assert hr["n"].to_dict() == {"sequential": 3, "straightforward": 3, "both": 6}


def test_variants_share_a_backbone_and_differ_in_what_they_name(params):
    base, four = study_openp5.variant(params), study_openp5.with_tokens(params, 4)
    assert base.backbone.seed == four.backbone.seed == params.seed
    assert base.phase2.steps == params.ablations.phase2_steps
    assert (four.qformer.num_query_tokens, four.phase2.mlp_tokens) == (4, 4)
    keys = study_openp5.variant(params, **{"qformer.cf_keys": 4})
    assert keys.qformer.cf_keys == 4 and keys.with_(**{"qformer.cf_keys": 1}) == base


def test_the_dev_score_is_that_of_the_kept_checkpoint(params, tmp_path, monkeypatch):
    def artifact(rows):
        pd.DataFrame(rows, columns=["step", "name", "value", "split"]).to_parquet(tmp_path / "log.parquet")
        return Artifact("phase2", "", tmp_path)

    rows = [
        (s, f"dev {m}", v, "heldout")
        for s, n, h in ((1, 0.3, 0.4), (2, 0.2, 0.9))
        for m, v in (("NDCG@10", n), ("HR@10", h))
    ]
    monkeypatch.setattr(inputs, "embeddings", lambda *args, **kwargs: None)
    monkeypatch.setattr(study, "phase2", lambda *args, **kwargs: artifact(rows))
    assert openp5_results.dev_score(params, 0, "MLP") == {"dev NDCG@10": 0.3, "dev HR@10": 0.4}


def test_wider_beams_are_runs_of_their_own_and_leave_those_of_the_profile(params, monkeypatch):
    seen = []
    monkeypatch.setattr(inputs, "data", lambda *args, **kwargs: None)
    monkeypatch.setattr(inputs, "embeddings", lambda *args, **kwargs: None)
    monkeypatch.setattr(study, "backbone", lambda *args, **kwargs: None)
    monkeypatch.setattr(study_openp5, "stage", lambda name, make, profile, *, given, **rest: seen.append(given))
    more = params.with_(**{"evaluation.wide_beams": (40,), "evaluation.prompts": ("seen", "unseen")})
    for p in (more.with_(**{"evaluation.wide_beams": ()}), more, study_openp5.beside(more, "evaluation.beams", 40)):
        study_openp5.evaluation(p, 0, "OpenP5-R")
    own, also, wide = seen
    assert own == also and (own["beams"], wide["beams"]) == (10, 40) and wide["wordings"] == ("seen",)
    assert study_openp5.beside(more, "evaluation.beams", 10) is more


def test_a_beam_misses_nothing_where_every_name_is_one_token(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    params = load_params(
        "toy",
        **{
            "data.num_items": 80,
            "data.num_users": 60,
            "embeddings.dim": 4,
            "backbone.layers": 1,
            "backbone.width": 16,
            "backbone.heads": 2,
            "backbone.steps": 60,
            "backbone.index_tokens": "whole",
        },
    )
    inputs.data(params, build=True)
    cf, llm = inputs.embeddings(params, 0, build=True), study.backbone(params, 0, build=True)
    tasks = inputs.recommendation_tasks(params)
    ilm = study.trained_ilm(llm, cf, None, tasks=tasks, item_positions="shared")
    names = tasks.indexing.names()
    assert len(names) == 140 and ilm.tokenizer.convert_ids_to_tokens(ilm.tokenizer(names[0])["input_ids"]) == [names[0]]
    assert ilm.trie.most[-2:] == (80, 1) and set(ilm.trie.most[:-2]) == {1}  # one choice, among all items
    assert (beam_recall(ilm, tasks, task="sequential", users=np.arange(60)) == 1).all()
