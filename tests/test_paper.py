"""The paper's numbers: complete, typed, and checked against each other."""

import pandas as pd
import pytest

from ilm_lib import paper
from ilm_lib.paper import ELM_TASKS, PAPER, PAPER_SE, PAPER_TABLE2, PUBLISHED_ML100K, RESULT_COLUMNS


def rows(table: str, frame: pd.DataFrame = PAPER) -> pd.DataFrame:
    return frame[frame["table"] == table]


def wide(table: str, frame: pd.DataFrame = PAPER) -> pd.DataFrame:
    keys = ["dataset", "task", "prompt", "metric"]
    return rows(table, frame).pivot(index=keys, columns="method", values="value")


@pytest.mark.parametrize("frame", [PAPER, PAPER_SE, PUBLISHED_ML100K])
def test_form_is_that_of_results(frame):
    assert tuple(frame.columns) == RESULT_COLUMNS
    assert frame["seed"].isna().all() and str(frame["seed"].dtype) == "Int64"
    assert not frame.duplicated([c for c in RESULT_COLUMNS if c not in ("value", "n")]).any()
    assert frame["value"].between(0, 1).all()


def test_every_cell_of_every_table_is_there():
    assert PAPER.groupby("table").size().to_dict() == {
        "table1": 24 * 3 * 2, "table3": 8 * 12, "table4": 6 * 12, "table6": 48, "table7": 24,
    }  # fmt: skip
    assert PAPER_SE.groupby("table").size().to_dict() == {"table6": 48, "table7": 24}
    assert len(PUBLISHED_ML100K) == 16 and len(ELM_TASKS) == 23 and "all" not in ELM_TASKS


@pytest.mark.parametrize(
    ("table", "dataset", "task", "prompt", "method", "metric", "value"),
    [
        ("table1", "ELM24", "movie to viewer", "", "MLP", "SC", 0.7693),
        ("table1", "ELM24", "common with nn", "", "ILM", "log_pplx", 0.5234),
        ("table3", "ML1M", "both", "seen", "ILM-rand", "HR@10", 0.1084),
        ("table3", "Clothing", "both", "unseen", "OpenP5-R", "HR@10", 0.0034),
        ("table4", "Beauty", "both", "unseen", "ILM-IT", "HR@5", 0.0218),
        ("table6", "ELM24", "diff than nn", "", "ILM", "log_pplx", 0.5111),
        ("table7", "ML1M", "both", "unseen", "ILM", "HR@10", 0.1069),
    ],
)
def test_spot_values(table, dataset, task, prompt, method, metric, value):
    wanted = {"dataset": dataset, "task": task, "prompt": prompt, "method": method, "metric": metric}
    found = rows(table)[(rows(table)[list(wanted)] == pd.Series(wanted)).all(axis=1)]
    assert found["value"].tolist() == [value]


def test_hit_rates_bound_ndcg_and_grow_with_k():
    for table in ("table3", "table4", "table7"):
        m = rows(table).pivot(index=["dataset", "prompt", "method"], columns="metric", values="value")
        assert (m["HR@5"] <= m["HR@10"]).all() and (m["NDCG@5"] <= m["NDCG@10"]).all()
        assert (m["NDCG@5"] <= m["HR@5"]).all() and (m["NDCG@10"] <= m["HR@10"]).all()


def test_table2_counts_both_tasks_and_holds_out_a_tenth():
    assert (PAPER_TABLE2["test"] == 2 * PAPER_TABLE2["users"]).all()
    assert (PAPER_TABLE2["item_text"] / PAPER_TABLE2["items"]).between(0.895, 0.905).all()
    n = rows("table3").groupby("dataset")["n"].unique().map(list).to_dict()
    assert n == {d: [t] for d, t in zip(PAPER_TABLE2["dataset"], PAPER_TABLE2["test"], strict=True)}


def test_table4_repeats_ilm_of_table3():
    pd.testing.assert_series_equal(wide("table4")["ILM-IT-UI"], wide("table3")["ILM"], check_names=False)


def test_relative_changes_printed_under_table1():
    m = rows("table1").query("task == 'all'").pivot(index="method", columns="metric", values="value")
    change = 100 * (m / m.loc["MLP"] - 1)
    assert change.round(2).loc["ILM"].to_dict() == {"SC": 3.27, "log_pplx": -12.12}
    assert change.loc["ILM-rand", "SC"] == pytest.approx(1.91, abs=0.01)
    assert change.loc["ILM-rand", "log_pplx"] == pytest.approx(-10.47, abs=0.01)


def test_row_all_is_a_mean_over_24_tasks_of_which_one_is_not_shown():
    m = rows("table1").pivot(index="task", columns=["metric", "method"], values="value")
    gap = (m.drop("all").mean() - m.loc["all"]).abs()
    # the 23 rows miss "all" by far more than two roundings of half a digit (.0001 in value)
    assert (gap > 0.0005).all()
    unseen = 24 * m.loc["all"] - m.drop("all").sum()
    assert unseen["SC"]["ILM"] == pytest.approx(0.816, abs=0.005)
    assert unseen["log_pplx"]["ILM"] == pytest.approx(0.50, abs=0.005)


def test_table1_shows_the_best_run_of_table6():
    one, six, se = (f.query("method == 'ILM'").set_index(["task", "metric"])["value"]
                    for f in (rows("table1"), rows("table6"), rows("table6", PAPER_SE)))  # fmt: skip
    z = ((one - six) / se).unstack()
    assert z["log_pplx"].between(-2.03, -1.8).all()
    assert z["SC"].drop("five neg char.").between(1.59, 2.03).all() and z.loc["five neg char.", "SC"] < 0


def test_places_where_ilm_is_not_ahead():
    t1 = wide("table1").reset_index()
    sc = t1[(t1["metric"] == "SC") & (t1["ILM"] <= t1["ILM-rand"])]
    assert sc["task"].tolist() == ["five neg char."]
    assert (t1[t1["metric"] == "log_pplx"]["ILM"] < t1[t1["metric"] == "log_pplx"]["ILM-rand"]).all()
    t3 = wide("table3")
    behind = t3.index[t3["ILM"] <= t3.drop(columns="ILM").max(axis=1)].tolist()
    assert behind == [("ML1M", "both", "seen", "HR@10")]
    mean = t3.join(wide("table7")["ILM"].rename("mean"))
    below = mean.index[mean["mean"] < mean["ILM-rand"]]
    assert sorted(i[3] for i in below) == ["HR@10", "HR@5", "NDCG@10", "NDCG@5"]
    assert {i[:3] for i in below} == {("ML1M", "both", "seen")}
    six = rows("table6").query("metric == 'log_pplx'").set_index("task")["value"]
    rand = t1[t1["metric"] == "log_pplx"].set_index("task")["ILM-rand"]
    assert (six - rand > 0).sum() == 5


def test_hyperparameters_name_each_data_set_and_disagree_on_the_schedule():
    for stage in ("pretrain", "phase1", "phase2"):
        assert set(paper.HYPERPARAMETERS_OPENP5[stage]["steps"]) == set(PAPER_TABLE2["dataset"])
    assert paper.HYPERPARAMETERS_ELM24["phase1"]["steps"] == 259_000
    assert paper.HYPERPARAMETERS_ELM24["phase2"]["schedule"] == "linear"
    assert any("cosine" in note and "linear" in note for note in paper.PAPER_DISAGREES)
