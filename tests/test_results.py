"""results.csv and claims.csv: upsert, atomic writes, refusals, verdicts."""

import math
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from conftest import frame, row

from ilm_lib import files
from ilm_lib.paper import ELM_CLAIMS, OPENP5_CLAIMS, RESULT_COLUMNS
from ilm_lib.report import results as contract
from ilm_lib.report.results import (
    Claim,
    join_claims,
    join_results,
    read_claims,
    read_results,
    write_claims,
    write_results,
)
from ilm_lib.report.verdicts import no_gain, no_gain_reason, reason, verdict

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
    rows = [row(method=m, metric=k, seed=s, table="figure3", variant=f"query_tokens={n}")
            for m in ("MLP", "ILM") for k in ("HR@5", "HR@10") for s in (0, 11, 2) for n in (16, 2)]  # fmt: skip
    write_results(tmp_path / "a.csv", frame(*rows))
    for r in rows[::-1]:
        write_results(tmp_path / "b.csv", frame(r))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    variants = list(dict.fromkeys(read_results(tmp_path / "a.csv")["variant"]))
    assert variants == ["query_tokens=2", "query_tokens=16"]


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

    monkeypatch.setattr(files.os, "replace", fail)
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
        ({"readout": ""}, "over an LLM need a readout"),
        ({"readout": "ear"}, r"readout must be one of beam, score, \(empty\)"),
        ({"method": "iALS", "readout": "beam"}, "baselines and texts have no readout"),
        ({"variant": "4 tokens"}, "variant is empty or key=value"),
        ({"table": "figure3"}, "query_tokens=<number>"),
        ({"table": "figure3", "variant": "prompts_read=4"}, "query_tokens=<number>"),
        ({"table": "prompts read", "variant": "prompts_read=many"}, "prompts_read=<number>"),
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
    values |= {"seeds": 3, "verdict": "reproduced", "evidence": "06, Table 3", "reason": "p = .0001"}
    return Claim(sentence, **(values | changes))


def test_an_old_results_file_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "results.csv"
    frame().drop(columns=["readout", "variant"]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"results\.csv: no column readout, variant; .*make study PROFILE"):
        read_results(path)
    with pytest.raises(ValueError, match="no column readout"):
        write_results(path, frame())
    claims = tmp_path / "claims.csv"
    write_claims(claims, [claim()])
    pd.read_csv(claims).drop(columns="reason").to_csv(claims, index=False)
    with pytest.raises(ValueError, match=r"claims\.csv: no column reason"):
        read_claims(claims)


def test_claims_upsert_by_sentence(tmp_path):
    path = tmp_path / "claims.csv"
    write_claims(path, [claim("A"), claim("B", ci_low=NAN, ci_high=NAN, p_value=NAN, verdict="not tested")])
    out = write_claims(path, [claim("C"), claim("A", p_value=0.3, verdict="inconclusive")])
    assert out["claim"].tolist() == ["A", "B", "C"] and tuple(out.columns) == contract.CLAIM_COLUMNS
    assert out["verdict"].tolist() == ["inconclusive", "not tested", "reproduced"]
    assert out["p_value"].isna().tolist() == [False, True, False]
    pd.testing.assert_frame_equal(read_claims(path), out)


def test_claims_stand_in_the_order_of_the_paper_whoever_writes_first(tmp_path):
    openp5 = [claim(OPENP5_CLAIMS[k]) for k in ("frozen", "MLP", "OpenP5-R")]
    elm = [claim(s) for s in ELM_CLAIMS.values()][::-1]
    for name, order in (("a", (openp5, elm)), ("b", (elm, openp5[::-1]))):
        for claims in order:
            write_claims(tmp_path / name, claims)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    wanted = [OPENP5_CLAIMS[k] for k in ("OpenP5-R", "MLP", "frozen")] + list(ELM_CLAIMS.values())
    assert read_claims(tmp_path / "a")["claim"].tolist() == wanted


def test_files_of_several_notebooks_join_in_one_order_and_the_last_has_the_last_word(tmp_path):
    """Whatever the scheduling: rows by what they are about, claims as in the paper."""
    elm, openp5 = [claim(s) for s in ELM_CLAIMS.values()], [claim(s) for s in OPENP5_CLAIMS.values()]
    write_claims(tmp_path / "a.csv", [*elm[::-1], claim("Own")])
    write_claims(tmp_path / "b.csv", openp5[::-1])
    texts = {path: path.read_text() for path in (tmp_path / "a.csv", tmp_path / "b.csv")}
    joined = [join_claims(dict(order)) for order in (texts.items(), reversed(texts.items()))]
    assert joined[0].to_csv() == joined[1].to_csv()
    assert joined[0]["claim"].tolist() == [*OPENP5_CLAIMS.values(), *ELM_CLAIMS.values(), "Own"]
    assert join_claims({}) is None and join_results({}) is None

    write_results(tmp_path / "02.csv", frame(row(method="iALS", value=0.3), row(method="Popularity")))
    write_results(tmp_path / "06.csv", frame(row(method="iALS", value=0.4), row()))
    both = join_results({path: path.read_text() for path in (tmp_path / "02.csv", tmp_path / "06.csv")})
    assert list(zip(both["method"], both["value"])) == [("Popularity", 0.1), ("iALS", 0.4), ("ILM", 0.1)]
    write_results(tmp_path / "both.csv", both)
    assert (tmp_path / "both.csv").read_text() == both.to_csv(index=False, lineterminator="\n")


def test_a_claim_about_a_method_that_left_does_not_stay_behind(tmp_path):
    path = tmp_path / "claims.csv"
    write_claims(path, [claim(OPENP5_CLAIMS["MLP"]), claim(OPENP5_CLAIMS["frozen"])])
    write_claims(path, [claim(ELM_CLAIMS["MLP"])])
    out = write_claims(path, [claim(OPENP5_CLAIMS["frozen"])])
    assert out["claim"].tolist() == [OPENP5_CLAIMS["frozen"], ELM_CLAIMS["MLP"]]


def test_claims_refuse_unknown_verdicts_doubles_and_verdicts_without_reason(tmp_path):
    with pytest.raises(ValueError, match="verdict must be one of"):
        claim(verdict="refuted")
    with pytest.raises(ValueError, match="needs its reason"):
        claim(reason=" ")
    with pytest.raises(ValueError, match="given twice"):
        write_claims(tmp_path / "c.csv", [claim(), claim()])


@pytest.mark.parametrize(
    ("args", "comparisons", "expected"),
    [
        ((0.01, 0.002, 0.02, 0.01), 24, "the paper's direction, p = .010, corrected for 24 comparisons"),
        ((0.01, 0.002, 0.02, 0.0001), 1, "the paper's direction, p < .001"),
        (
            (0.01, 0.002, 0.02, 0.2),
            8,
            "the interval lies above 0, yet p = .200: p is corrected for 8 comparisons, the interval is not",
        ),
        ((0.01, 0.0001, 0.02, 0.06), 1, "the interval lies above 0, yet p = .060"),
        (
            (0.001, -0.002, 0.004, 0.4),
            8,
            "the interval reaches from −.0020 to +.0040: too few users or no effect look the same",
        ),
        ((-0.01, -0.02, -0.002, 0.01), 8, "the whole interval lies on the other side of 0"),
        (
            (-0.01, -0.02, -0.002, 0.5),
            8,
            "the whole interval lies on the other side of 0; "
            "p = .500 is corrected for 8 comparisons, the interval is not",
        ),
        ((0.01, NAN, NAN, NAN), 1, "too few users for an interval"),
        ((NAN, NAN, NAN, NAN), 1, "there is nothing to compare"),
    ],
)
def test_reasons_follow_from_the_numbers(args, comparisons, expected):
    assert reason(*args, comparisons=comparisons) == expected


def test_reasons_of_no_gain():
    assert no_gain(-0.002, 0.003, 1.0, 0.01) == "reproduced"
    assert no_gain_reason(-0.002, 0.003, 1.0, 0.01).startswith("the interval stays within ± .0100")
    assert no_gain_reason(-0.02, 0.003, 1.0, 0.01).startswith("the interval reaches beyond ± .0100")
    assert "there is a gain" in no_gain_reason(0.001, 0.003, 0.01, 0.01)
