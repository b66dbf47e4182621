"""results.csv and claims.csv: upsert, atomic writes, refusals, verdicts."""

import math
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from conftest import frame, row

from ilm_lib import ledger
from ilm_lib.ledger import Claim, read_claims, read_results, verdict, write_claims, write_results
from ilm_lib.paper import RESULT_COLUMNS

NAN = float("nan")


def test_upsert_replaces_the_same_key_and_keeps_the_rest(tmp_path):
    path = tmp_path / "deep" / "results.csv"
    write_results(path, frame(row(), row(seed=1, value=0.2), row(seed=None, method="Popularity", value=0.01)))
    out = write_results(path, frame(row(value=0.3, n=50), row(seed=None, method="Popularity", value=0.02), row(seed=2)))
    assert out["method"].tolist() == ["Popularity", "ILM", "ILM", "ILM"]
    assert out["value"].tolist() == [0.02, 0.3, 0.2, 0.1] and out["n"].tolist() == [100, 50, 100, 100]
    assert out["seed"].isna().tolist() == [True, False, False, False]
    pd.testing.assert_frame_equal(read_results(path), out)
    assert path.read_text().splitlines()[0] == ",".join(RESULT_COLUMNS)


def test_file_does_not_depend_on_the_order_of_writing(tmp_path):
    rows = [row(method=m, metric=k, seed=s, table="figure3", task=f"N={n}")
            for m in ("MLP", "ILM") for k in ("HR@5", "HR@10") for s in (0, 11, 2) for n in (16, 2)]  # fmt: skip
    write_results(tmp_path / "a.csv", frame(*rows))
    for r in rows[::-1]:
        write_results(tmp_path / "b.csv", frame(r))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert list(dict.fromkeys(read_results(tmp_path / "a.csv")["task"])) == ["N=2", "N=16"]


def test_values_are_rounded_to_six_decimals(tmp_path):
    assert write_results(tmp_path / "r.csv", frame(row(value=1 / 3)))["value"].tolist() == [0.333333]


def test_many_writers_lose_nothing(tmp_path):
    path = tmp_path / "results.csv"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda s: write_results(path, frame(row(seed=s))), range(24)))
    assert read_results(path)["seed"].tolist() == list(range(24))


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.csv"
    write_results(path, frame())
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(ledger.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(path, frame(row(value=0.9)))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "IML"}, "method must be one of Popularity"),
        ({"metric": "HR@20"}, "metric must be one of"),
        ({"prompt": "hidden"}, r"prompt must be one of seen, unseen, \(empty\)"),
        ({"history": ""}, "need a history rule"),
        ({"value": NAN}, "not finite"),
        ({"value": math.inf}, "not finite"),
        ({"value": 1.01}, r"lie in \[0, 1\]"),
        ({"metric": "SC", "history": "", "value": 80.0}, "not per cent"),
        ({"metric": "log_pplx", "history": "", "value": -0.1}, "not negative"),
        ({"n": 0}, "must be positive"),
        ({"n": None}, "must be positive"),
        ({"dataset": ""}, "dataset is empty"),
        ({"table": "figure3", "task": "4"}, "N=<query tokens>"),
        ({"table": "prompts read", "task": "sequential, 54"}, "<prompts> a user"),
    ],
)
def test_bad_rows_are_refused_with_the_reason(tmp_path, changes, message):
    path = tmp_path / "results.csv"
    with pytest.raises(ValueError, match=message):
        write_results(path, frame(row(seed=1), row(**changes)))
    assert not path.exists()


def test_wrong_columns_and_double_keys_are_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds"):
        write_results(tmp_path / "r.csv", frame().assign(seeds=1))
    with pytest.raises(ValueError, match="share one key"):
        write_results(tmp_path / "r.csv", frame(row(), row(value=0.2)))


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((0.01, 0.002, 0.02, 0.01), "reproduced"),
        ((0.01, -0.002, 0.02, 0.2), "inconclusive"),
        ((0.01, 0.0, 0.02, 0.05), "inconclusive"),  # p must be below alpha
        ((-0.01, -0.02, -0.002, 0.01), "not reproduced"),
        ((-0.01, -0.02, -0.002, 0.99), "not reproduced"),  # a one-sided p says nothing about the other side
        ((-0.01, -0.02, 0.0, 0.04), "inconclusive"),
        ((0.0, 0.0, 0.0, 1.0), "inconclusive"),
        ((0.01, NAN, NAN, NAN), "inconclusive"),
        ((NAN, NAN, NAN, NAN), "not tested"),
    ],
)
def test_verdict(args, expected):
    assert verdict(*args) == expected


def test_verdict_refuses_nonsense():
    with pytest.raises(ValueError, match="probabilities"):
        verdict(0.1, 0, 1, 1.2)
    with pytest.raises(ValueError, match="upside down"):
        verdict(0.1, 1, 0, 0.2)
    assert verdict(0.1, 0.01, 1, 0.04, alpha=0.01) == "inconclusive"


def claim(sentence: str = "ILM beats MLP", **changes) -> Claim:
    values = {"paper": 0.0041, "ours": "0.01, by eye", "ci_low": 0.001, "ci_high": 0.02, "p_value": 0.0001}
    return Claim(sentence, **(values | {"seeds": 3, "verdict": "reproduced", "evidence": "06, Table 3"} | changes))


def test_claims_upsert_by_sentence(tmp_path):
    path = tmp_path / "claims.csv"
    write_claims(path, [claim(), claim("B", ci_low=NAN, ci_high=NAN, p_value=NAN, verdict="not tested")])
    out = write_claims(path, [claim("C"), claim(p_value=0.3, verdict="inconclusive")])
    assert out["claim"].tolist() == ["ILM beats MLP", "B", "C"] and tuple(out.columns) == ledger.CLAIM_COLUMNS
    assert out["verdict"].tolist() == ["inconclusive", "not tested", "reproduced"]
    assert out["p_value"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(read_claims(path), out)


def test_claims_refuse_unknown_verdicts_and_doubles(tmp_path):
    with pytest.raises(ValueError, match="verdict must be one of"):
        claim(verdict="refuted")
    with pytest.raises(ValueError, match="given twice"):
        write_claims(tmp_path / "c.csv", [claim(), claim()])
