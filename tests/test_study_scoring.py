"""The score read-out as stages of a study, on a toy world of the smallest sizes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from ilm_lib.files import read_json
from ilm_lib.model.backbone import weights_fingerprint
from ilm_lib.model.prompts import Item
from ilm_lib.paper import SCORING_CLAIMS
from ilm_lib.profiles import load_params, results_path
from ilm_lib.report import write_results
from ilm_lib.report.results import check_results
from ilm_lib.study import blend, cold, inputs, scoring, scoring_results, stages, vectors
from ilm_lib.study.artifacts import MissingStage
from ilm_lib.study.openp5_results import best_on_dev
from ilm_lib.tasks.scoring import dev_metrics

SMALL = {
    "data.num_items": 80,
    "data.num_users": 60,
    "embeddings.dim": 8,
    "qformer.width": 16,
    "qformer.heads": 2,
    "qformer.contrast_dim": 8,
    "qformer.max_text_tokens": 8,
    "phase1.steps": 2,
    "phase1.batch_size": 8,
    "backbone.steps": 2,
    "backbone.width": 16,
    "backbone.layers": 1,
    "sasrec.steps": 4,
    "sasrec.eval_every": 4,
    "score.steps": 6,
    "score.batch_size": 16,
    "score.eval_every": 3,
    "score.precision": "float32",
    "score.dim": 8,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One folder for the module: what one test makes the next may use, as the notebooks do."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ILM_RUNS_DIR", str(folder))
        patch.setenv("ILM_PROGRESS", "/dev/null")
        yield folder


@pytest.fixture(scope="module")
def small(runs):
    params = load_params("toy", **SMALL)
    inputs.data(params, build=True)
    return params


def fake_text(monkeypatch):
    """Sentence vectors that depend on the text alone."""

    def embed(encoder, texts, **kwargs):
        return np.stack([np.random.default_rng(sum(map(ord, t))).normal(size=12) for t in texts]).astype(np.float32)

    monkeypatch.setattr("ilm_lib.baselines.nearest_text.sentence_encoder", lambda name: None)
    monkeypatch.setattr("ilm_lib.baselines.nearest_text.embed_sentences", embed)


@pytest.mark.parametrize("method", ["MLP-N", "ILM-rand", "ILM"])
def test_every_method_ranks_all_test_users(small, method):
    run = scoring.score_ranking(small, 0, method, build=True)
    with np.load(run.path("tops.npz")) as saved:
        assert set(saved.files) == {"users", "target", "sequential||kept", "sequential||excluded"}
        assert saved["users"].tolist() == list(range(60)) and saved["sequential||kept"].shape == (60, 10)
        seen = inputs.dataset(small).seen_matrix("test").toarray()
        assert not np.take_along_axis(seen, saved["sequential||excluded"], 1).any()
    proof = read_json(scoring.score(small, 0, method).path("score.json"))
    assert proof["llm_before"] == proof["llm_after"]
    assert scoring.score_ranking(small, 0, method) == run
    with pytest.raises(MissingStage, match="10_scoring"):
        scoring.score_ranking(small.with_(**{"score.lr": 0.009}), 0, method)


def test_users_alone_are_asked_where_the_prompt_has_them(small):
    with_user = small.with_(**{"score.user": True})
    run = scoring.score_ranking(with_user, 0, "ILM-rand", build=True)
    with np.load(run.path("tops.npz")) as saved:
        assert "straightforward||excluded" in saved.files


def test_users_alone_may_be_made_of_what_they_did_of_late(small):
    recent = small.with_(**{"score.user": True, "score.user_half_life": 2.0})
    scoring.score_ranking(recent, 0, "ILM-rand", build=True)
    given = scoring.ranking_inputs(recent, 0, "ILM-rand", build=False)
    given.pop("precision")
    ilm, _ = scoring.ranking_model(**given)
    data, fold = inputs.dataset(small), vectors.history_fold_in(small, 0, ("cf",))
    of_late = replace(fold, half_life=2.0)(ilm.cf[:80].numpy(), data.train_sequence(7))
    np.testing.assert_allclose(ilm.cf[80 + 7].numpy(), of_late, atol=1e-5)
    assert ilm.fold_in.half_life == 2.0 and not np.allclose(of_late, fold(ilm.cf[:80].numpy(), data.train_sequence(7)))


def test_the_users_vectors_in_front_are_those_of_the_table(small):
    """Folded in from the training part a user has the vector that the factorisation gave, or nearly so."""
    data, cf = inputs.dataset(small), inputs.embeddings(small, 0, build=True)
    table, items = stages.cf_of_model(cf, 0, False)
    fold = vectors.history_fold_in(small, 0, ("cf",))
    found = fold.many(table[:items].numpy(), [data.train_sequence(u) for u in range(60)])
    likeness = [np.corrcoef(a, b)[0, 1] for a, b in zip(found, table[items:].numpy())]
    assert np.median(likeness) > 0.99


def test_fused_vectors_keep_their_parts_and_users_have_the_mean(small, monkeypatch):
    fake_text(monkeypatch)
    kinds = ("cf", "sasrec", "text")
    fused = inputs.cf_embeddings(vectors.vectors(small, 0, kinds, build=True))
    assert fused.item.shape == (80, 8 + 64 + 12)
    for part in (slice(0, 8), slice(8, 72), slice(72, 84)):
        assert np.sqrt(np.mean(fused.item[:, part] ** 2)) == pytest.approx(1, abs=1e-5)
    data = inputs.dataset(small)
    mean = fused.item[np.unique(data.train_sequence(3)), 8:].mean(0)
    np.testing.assert_allclose(fused.user[3, 8:], mean, atol=1e-5)
    table, items = stages.cf_of_model(vectors.vectors(small, 0, kinds), 0, False)
    fold = vectors.history_fold_in(small, 0, kinds)
    found = fold(table[:items].numpy(), data.train_sequence(3))
    np.testing.assert_allclose(found[8:], table[items + 3, 8:], atol=1e-4)
    assert np.corrcoef(found[:8], table[items + 3, :8])[0, 1] > 0.99
    assert vectors.vectors(small, 0, ("cf",)) == inputs.embeddings(small, 0)


@pytest.mark.parametrize("which", ["random", "trained"])
def test_another_llm_reads_as_it_was_trained_to(small, which):
    """The ranking loads the very LLM that training ended with: the dev score of the kept weights comes again."""
    other = small.with_(**{"score.llm": which})
    data, trained = inputs.data(other), scoring.score(other, 0, "ILM-rand", build=True)
    proof = read_json(trained.path("score.json"))
    assert (proof["llm_before"] == proof["llm_after"]) == (which == "random")
    frozen = read_json(scoring.score(small, 0, "ILM-rand", build=True).path("score.json"))
    assert proof["llm_before"] != frozen["llm_before"]
    tasks, llm = inputs.recommendation_tasks(other), stages.backbone(other, 0)
    ilm = scoring.trained_scorer(llm, inputs.embeddings(other, 0), trained, tasks=tasks)
    assert weights_fingerprint(ilm.llm) == proof["llm_after"]
    users = inputs.open_dataset(data).users_of("dev")
    found = dev_metrics(ilm, scoring.scoring_tasks(ilm, tasks), users)
    log = scoring_results.dev_scores(other.with_(**{"ablations.scored": {}}), "ILM-rand", build=True)
    assert found["dev NDCG@10"] == pytest.approx(log["dev NDCG@10"][0], abs=1e-6)


def test_another_items_vector_is_one_of_the_readings(small):
    found = scoring_results.dev_scores(small.with_(**{"ablations.scored": {}}), "ILM", build=True)
    assert list(found["reading"].unique()) == ["as in the profile", scoring_results.ANOTHERS]
    own, anothers = found.groupby("reading", sort=False)["dev NDCG@10"].mean()
    assert own != anothers


def test_rows_and_claims_of_a_page(small, monkeypatch):
    rows = scoring_results.result_rows(small, ["Popularity", "ILM"], build=True)
    assert set(rows["readout"]) == {"", "score"} and set(rows["task"]) == {"sequential"}
    assert (rows[rows["method"] == "ILM"]["n"] == 60).all()
    shares, table = scoring_results.llm_share(small, "ILM", build=True)
    write_results(results_path(small.profile), shares)
    seen = shares[(shares["metric"] == "HR@10") & (shares["history"] == "excluded")]
    assert seen["variant"].tolist() == [variant for both in scoring_results.SHARES.values() for _, variant in both]
    assert seen["value"].tolist() == table[["HR@10, LLM on", "HR@10, LLM off"]].to_numpy().ravel().tolist()
    assert table["p"].between(0, 1).all()
    one = scoring_results.llm_share(small.with_(**scoring_results.NO_SIDE), "ILM")[1]
    pd.testing.assert_frame_equal(one, table.iloc[1:].reset_index(drop=True))
    groups = scoring_results.by_length(small, "ILM")
    assert groups["users"].sum() <= 60 and groups["p"].between(0, 1).all()
    monkeypatch.setattr(scoring_results, "LENGTHS", (1, np.inf))
    everybody = scoring_results.by_length(small, "ILM").iloc[0]
    assert everybody["users"] == 60
    assert everybody["LLM on"] == pytest.approx(scoring_results.by_user(small, "ILM")["HR@10"].mean())
    found = scoring_results.scoring_claims(small, build=True)
    assert [claim.claim for claim in found] == list(SCORING_CLAIMS.values())
    assert all(claim.verdict != "not tested" for claim in found)
    without = scoring_results.scoring_claims(small.with_(methods=("MLP",)))
    assert all(claim.verdict == "not tested" for claim in without)


def test_recent_factors_are_chosen_on_dev_and_rank_the_test_users(small, monkeypatch):
    rows, table = scoring_results.beside_factors(small, ["iALS", "SASRec", "ILM", "ILM, LLM off"], build=True)
    assert table["method"].tolist() == ["iALS", "iALS, training part", "SASRec", "ILM", "ILM, LLM off"]
    assert set(rows["variant"]) == {"factors=recent", "context=last with recent factors"}
    check_results(rows)
    alone = rows[rows["task"] == "straightforward"]
    assert set(alone["method"]) == {"iALS"} and not alone["value"].isna().any()
    run = blend.blended(small, 0, "ILM")
    chosen, grid = read_json(run.path("blend.json")), pd.read_parquet(run.path("grid.parquet"))
    assert chosen["dev NDCG@10"] == grid["dev NDCG@10"].max()
    without = grid[grid["weight"] == 0].iloc[0]
    assert without["dev NDCG@10"] == pytest.approx(best_on_dev(scoring.score(small, 0, "ILM"))["dev NDCG@10"], abs=1e-6)
    with np.load(run.path("tops.npz")) as saved:
        assert set(saved.files) == {"users", "target", "sequential||kept", "sequential||excluded"}
        seen = inputs.dataset(small).seen_matrix("test").toarray()
        assert not np.take_along_axis(seen, saved["sequential||excluded"], 1).any()
        tops = saved["sequential||excluded"]
    ilm = blend.serving_model(small, 0, "ILM")
    assert (ilm.factors is not None) == (chosen["weight"] > 0)
    served = ilm.recommend_many(
        None, [[Item(int(i)) for i in inputs.dataset(small).history(u, "test")] for u in range(60)]
    )
    same = [[r.item.row for r in found] == top.tolist() for found, top in zip(served, tops)]
    assert np.mean(same) > 0.9  # factors of the model's scaled table differ in the last digit


def test_no_weight_is_a_methods_own_ranking(small, monkeypatch):
    monkeypatch.setattr(blend, "WEIGHTS", (0.0,))
    other = small.with_(**{"score.dev_users": 59})  # another key
    for method in ("SASRec", "ILM"):
        own = scoring_results.ranking(other, 0, method, build=True)
        with (
            np.load(blend.blended(other, 0, method, build=True).path("tops.npz")) as beside,
            np.load(own.path("tops.npz")) as saved,
        ):
            prompt = "seen" if method == "SASRec" else ""
            assert np.mean(beside["sequential||excluded"] == saved[f"sequential|{prompt}|excluded"]) > 0.99


def test_what_is_compared_may_have_fewer_seeds_than_ilm(small):
    more = small.with_(**{"seeds": (0, 1, 2), "ablations.compared_seeds": 1})
    assert [scoring_results.seeds_of(more, m) for m in ("ILM", "SASRec", "iALS", "MLP", "ILM-rand")] == [
        (0, 1, 2)
    ] * 3 + [(0,)] * 2
    assert scoring_results.seeds_of(more, "ILM", "context=last") == (0,)
    assert scoring_results.seeds_of(small.with_(seeds=(0, 1)), "MLP") == (0, 1)


def test_both_readouts_are_compared_over_the_same_users(small, monkeypatch):
    few = small.with_(**{"evaluation.max_users": 20, "methods": ("MLP", "ILM-rand"), "phase2.steps": 2})
    monkeypatch.setattr(few.__class__, "report_seeds", (0,))
    table = scoring_results.by_readout(few, build=True)
    assert table["method"].tolist() == ["MLP", "ILM-rand"]
    run = scoring_results.ranking(few, 0, "MLP")
    users = inputs.sample_users(inputs.dataset(few), "test", 20)
    with np.load(run.path("tops.npz")) as saved:
        hits = (saved["sequential||excluded"][users] == saved["target"][users, None]).any(1)
    assert len(users) == 20 and table["score"][0] == pytest.approx(hits.mean())


def test_cold_items_are_asked_of_texts_and_tokens_alone(runs, monkeypatch):
    fake_text(monkeypatch)
    params = load_params(
        "toy", **SMALL, **{"data.cold_items": 0.1, "score.vectors": ("cf", "text"), "score.cold_dropout": 0.3}
    )
    data = inputs.data(params, build=True)
    withheld = inputs.cold_items(data)
    assert len(withheld.items) == 8
    for method in ("Nearest text", "Text and factors", "ILM-rand"):
        run = cold.cold_ranking(params, 0, method, build=True)
        with np.load(run.path("cold.npz")) as saved:
            assert set(saved["cold"][saved["cold"] >= 0]) <= set(withheld.items)
            assert len(saved["target"]) == len(withheld.users)
        assert 0 <= cold.cold_metrics(run, "all")["HR@10"].mean() <= cold.cold_metrics(run, "cold")["HR@10"].mean() == 1
    table = cold.cold_scores(params, ["Nearest text", "Text and factors", "ILM-rand"]).set_index(["method", "among"])
    assert table.loc[("chance", "cold"), "HR@10"] == 1 and table.loc[("ILM-rand", "cold"), "HR@10"] == 1
    assert table.loc[("ILM-rand", "all"), "HR@10"] == pytest.approx(cold.cold_metrics(run, "all")["HR@10"].mean())
    pairs = inputs.openp5_pairs(inputs.open_dataset(data), withheld)
    assert not set(pairs.entity.tolist()) & set(withheld.items)
    head = load_file(scoring.score(params, 0, "ILM-rand").path("score.safetensors"))
    assert not head["head.share"][withheld.items].any()
