"""The benchmarks at toy sizes: both sides agree, rows follow the contract of results.csv."""

import numpy as np
import pandas as pd
import pytest

from bench import __main__ as runner
from bench import catalogue, decode, gpu, training
from bench import elm as elm_bench
from bench.harness import Row, at_least, at_most, compare, peak_memory, read_results
from ilm_lib.tasks import elm

SMALL = {"batch": 3, "prompt": 20, "items": 60, "width": 64, "layers": 1, "vocab": 300}


def test_ratio_says_how_many_times_better():
    assert at_most("h", 2.0, 5, "s").ratio == 2.5 and at_least("g", 30_000, 20_000, "prompts/s").ratio == 1.5
    row = compare("a", lambda: None, lambda: sum(range(200_000)), target=2, repeats=3)
    assert row.ratio == row.theirs / row.ours > 2 and row.unit == "ms"


@pytest.mark.parametrize("constrained", [True, False])
def test_beam_search_and_generate_agree(constrained):
    setting = decode.setting(**SMALL)
    decode.same_answers(setting, constrained)
    answers, _ = decode.ours(setting, constrained)
    assert len(answers) == 3 and all(len(rows) == 10 for rows in answers)


def test_a_difference_is_an_error(monkeypatch):
    setting = decode.setting(**SMALL)
    ours = decode.ours
    monkeypatch.setattr(decode, "ours", lambda s, c: ([rows[::-1] for rows in ours(s, c)[0]], ours(s, c)[1]))
    with pytest.raises(AssertionError, match="different answers"):
        decode.same_answers(setting, True)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call():
    assert 180 < peak_memory("tests.test_bench:two_hundred_mebibytes") < 260


def two_hundred_mebibytes():
    return bytearray(b"x") * (200 << 20)


def test_rows_are_merged_by_case_and_device(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path))
    runner.write([Row("a one", 1, 2, "ms", 2.0, 1), Row("a, side", 1, 2, "ms", 2.0, 1, main=False)])
    monkeypatch.setattr(runner, "device_name", lambda: "another device")
    runner.write([Row("a one", 3, 9, "ms", 3.0, 1)])
    runner.write([Row("a one", 3, 12, "ms", 4.0, 1)])
    results = read_results("results")  # those committed, and these
    assert results.columns.tolist() == ["case", "ours", "theirs", "unit", "ratio", "target", "device", "commit"]
    assert sorted(results.loc[results["case"] == "a one", "ratio"]) == [2.0, 4.0]
    assert "a, side" in set(read_results("checks")["case"]) - set(results["case"])


def test_the_case_of_training_names_the_decoder(tasks, tokenizer, monkeypatch):
    monkeypatch.setattr(training, "in_turn", lambda ours, theirs: (1.0, 1.0))  # milliseconds; no step is taken
    case = training.throughput(tasks, tokenizer).case
    assert case in {f"f training, {size}, 64 prompts a batch" for size in ("4 layers x 256", "8 layers x 1024")}


def test_what_needs_a_gpu_runs_at_any_size(tasks, new_ilm):
    ilm, sizes = new_ilm("qformer"), gpu.Sizes(query_tokens=3, batch=4, steps=1, users=3, eval_batch=2)
    assert gpu.pretraining(ilm, tasks, sizes) > 0 and not any(p.requires_grad for p in ilm.llm.parameters())
    assert gpu.phase2(ilm, tasks, sizes) > 0
    assert gpu.evaluation(ilm, tasks, sizes) > 0


def test_the_elm_bench_writes_long_texts_of_every_task_for_every_film(monkeypatch):
    monkeypatch.setattr(elm_bench, "FILMS", 40)
    ilm, tasks = elm_bench.setting()
    test = tasks.part("test")
    assert len(test) == 24 * 40 and (test.groupby("task")["item"].nunique() == 40).all()
    scored = elm.evaluate(ilm, tasks, test.iloc[::320].reset_index(drop=True), max_new_tokens=8)
    assert (scored["generated"].map(len) >= 8).all() and np.isfinite(scored["nll"]).all()


def test_committed_results_have_one_row_a_letter_and_device():
    results = read_results("results")
    assert isinstance(results, pd.DataFrame) and set("abcdefghij") <= set(results["case"].str[0])
    assert not results.assign(letter=results["case"].str[0]).duplicated(["letter", "device"]).any()
    assert (results["ratio"] > 0).all() and results["commit"].notna().all()


def test_a_growing_catalogue_is_measured_by_itself_and_its_slope_said(monkeypatch):
    costs = [catalogue.measure(what, items) for what in catalogue.WORK for items in (300, 1000)]
    assert all(cost.seconds > 0 and cost.gib >= 0 for cost in costs) and {c.what for c in costs} == {*catalogue.LABELS}
    sizes = [10**power for power in (3, 4, 5, 6)]
    rows = pd.DataFrame(
        [(what, n, 1e-3 * n**power, 1.0) for what, power in (("step", 1.0), ("trie", 0.5)) for n in sizes],
        columns=["what", "items", "seconds", "gib"],
    )
    assert catalogue.slope(rows) == pytest.approx({"step": 1, "trie": 0.5})
    assert catalogue.slope(rows, "gib") == pytest.approx({"step": 0, "trie": 0}, abs=1e-9)
    names = catalogue.trie(1000)().path
    assert len(names) == 1000 and len(np.unique(names[:, -1])) == 1000
