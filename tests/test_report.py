"""Tables, run cards and figures."""

import math
import re
import time

import numpy as np
import pandas as pd
import pytest
from conftest import frame, row

from ilm_lib.methods import METHODS
from ilm_lib.metrics import mean_se
from ilm_lib.paper import ELM_TASKS
from ilm_lib.profiles import ROOT
from ilm_lib.report import data_plots, result_plots, style, tables
from ilm_lib.report.card import commit, run_card
from ilm_lib.report.html import html_table
from ilm_lib.report.results import Claim, check_results
from ilm_lib.report.speed import CASES, case_name, speed_page

NAN = float("nan")


# --- tables ---


def test_table_beside_paper_takes_errors_from_seeds_or_the_binomial():
    results = check_results(
        frame(
            row(value=0.10),
            row(value=0.12, seed=1),
            row(method="MLP", value=0.2),
            row(metric="NDCG@10", value=0.05),
            row(history="excluded", value=0.9),
            row(history="excluded", value=0.8, seed=1),
        )
    )
    df = tables.table_beside_paper(results, "table3", "ML1M", history="kept")
    hr = "both tasks, seen prompt", "HR@10"
    assert df.loc["ILM", (*hr, "ours")] == "0.1100 ± 0.0100" and df.loc["ILM", (*hr, "paper")] == "0.1064"
    assert df.loc["MLP", (*hr, "ours")] == "0.2000 ± 0.0400†"  # sqrt(.2 * .8 / 100)
    assert df.loc["ILM", ("both tasks, seen prompt", "NDCG@10", "ours")] == "0.0500"
    assert df.loc["OpenP5-R", (*hr, "ours")] == "–" and list(df.index) == ["OpenP5-R", "MLP", "ILM-rand", "ILM"]
    assert "† one seed" in df.attrs["note"]
    excluded = tables.table_beside_paper(results, "table3", "ML1M", history="excluded")
    assert excluded.loc["ILM"].tolist() == ["0.8500 ± 0.0500"]  # no paper: it keeps the history
    with pytest.raises(ValueError, match="no rows with dataset='toy'"):
        tables.table_beside_paper(results, "table3", "toy", history="kept")
    with pytest.raises(TypeError):
        tables.table_beside_paper(results, "table3", "ML1M")


def test_paper_standard_errors_show():
    results = check_results(frame(row(table="table7", dataset="toy")))
    df = tables.table_beside_paper(results, "table7", "toy", "ML1M", history="kept")
    assert df.loc["ILM"].tolist() == ["0.1000 ± 0.0300†", "0.1072 ± 0.0004"]


def test_best_value_is_bold():
    columns = pd.MultiIndex.from_tuples([("all", "SC"), ("all", "log_pplx"), ("all", "items")])
    index = pd.Index(["MLP", "ILM", "ILM-rand", "Oracle"], name="method")
    cells = [["0.7 ± 0.1", "0.5", "9"], ["0.8", "0.4", "1"], ["0.8 ± 0.2", "0.6", "1"], ["0.99", "0.1", "1"]]
    html = tables.show(pd.DataFrame(cells, index=index, columns=columns), "A <caption>").data
    assert re.findall(r"<b>(.*?)</b>", html) == ["0.8", "0.4", "0.8 ± 0.2"]
    assert "A &lt;caption&gt;" in html and 'colspan="3"' in html


def test_best_of_each_task_is_bold_by_row():
    columns = pd.MultiIndex.from_tuples([("MLP", "SC"), ("MLP", "log_pplx"), ("ILM", "SC"), ("ILM", "log_pplx")])
    df = pd.DataFrame([["0.7", "0.5", "0.8", "0.6"]], index=pd.Index(["pitch"], name="task"), columns=columns)
    assert tables.best_cells(df) == {(0, 2), (0, 1)}


def test_variants_are_columns_of_their_own_in_the_order_of_their_numbers():
    rows = [row(table="figure3", variant=f"query_tokens={n}", value=n / 100) for n in (16, 4)]
    df = tables.table_beside_paper(check_results(frame(*rows)), "figure3", "ML1M", history="kept")
    assert [c[0] for c in df.columns] == [f"both tasks, {n} query tokens, seen prompt" for n in (4, 16)]


def test_two_readouts_of_a_method_are_not_mixed():
    results = check_results(frame(row(), row(readout="score")))
    with pytest.raises(ValueError, match=r"choose one readout of \['beam', 'score'\]"):
        tables.table_beside_paper(results, "table3", "ML1M", history="kept")


def test_plain_index_is_hidden_and_cells_are_escaped():
    html = html_table(pd.DataFrame({"what": ["<b>"], "value": [1]}))
    assert "&lt;b&gt;" in html and html.count("<th") == 3  # thead and two columns


def test_fractions_of_a_column_have_equally_many_decimals():
    df = pd.DataFrame({"p": [0.041, 0.0969, NAN], "few": [1.0, "–", 0.5], "n": [1, 20, 3], "tiny": [1e-9, 0.5, 0.25]})
    cells = re.findall(r"<td[^>]*>(.*?)</td>", html_table(df))
    assert cells == ["0.0410", "1.0", "1", "1e-09", "0.0969", "–", "20", "0.50", "", "0.5", "3", "0.25"]


# --- claims ---


def claim(sentence: str = "ILM beats MLP", **changes) -> Claim:
    values = {"paper": 0.0041, "ours": "0.01, by eye", "ci_low": 0.001, "ci_high": 0.02, "p_value": 0.0001}
    values |= {"seeds": 3, "verdict": "reproduced", "evidence": "06, Table 3", "reason": "p = .0001"}
    return Claim(sentence, **(values | changes))


def test_claims_table_reads_well():
    shown = tables.claims_table([claim("B", ci_low=NAN, ci_high=NAN, p_value=NAN, verdict="inconclusive"), claim()])
    assert shown["95% interval"].tolist() == ["–", "[+0.0010, +0.0200]"] and shown["p"].tolist() == ["–", "< 0.001"]
    assert shown["why"].tolist() == ["p = .0001"] * 2
    html = tables.show(shown).data
    assert 'class="ilm-v open"' in html and 'class="ilm-table ilm-cards"' in html and 'data-label="why"' in html
    assert 'class="text wrap"' in html_table(pd.DataFrame({"evidence": ["06_openp5_eval, Table 3"]}))


# --- run card ---


def test_run_card_has_what_a_number_needs():
    params = {"phase1": {"steps": 3}, "data_dir": str(ROOT / "data")}
    card = run_card(params, seed=4, device="cpu", precision="float32", checksums={"x": "a" * 64},
                           started=time.time() - 2)  # fmt: skip
    values = card.set_index("what")["value"]
    assert list(card.columns) == ["what", "value"] and values["seed"] == "4" and values["sha256 x"] == "a" * 16
    assert values["params.phase1.steps"] == "3" and values["params.data_dir"] == "data"
    assert float(values["wall time"].split()[0]) >= 2 and float(values["peak memory"].split()[0]) > 0.01
    assert re.fullmatch(r"[0-9a-f]{7,}(\+changes)?|unknown", values["commit"])
    with pytest.raises(ValueError, match="time.time"):
        run_card({}, seed=0, device="cpu", precision="x", checksums={}, started=time.perf_counter() - 1e9)


def test_commit_is_unknown_outside_git(monkeypatch, tmp_path):
    monkeypatch.setattr("ilm_lib.report.card.ROOT", tmp_path)
    assert commit() == "unknown"


# --- figures ---


def synthetic() -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for m, method in enumerate(("MLP", "ILM")):
        for s in range(2):
            noise = 0.001 * rng.standard_normal()
            rows += [row(method=method, seed=s, prompt=p, value=0.05 + 0.01 * m + noise) for p in ("seen", "unseen")]
            rows += [
                row(table="figure3", variant=f"query_tokens={n}", method=method, seed=s, value=0.05 + noise)
                for n in (1, 4)
            ]
            text = {"table": "table1", "prompt": "", "history": "", "metric": "SC", "method": method, "seed": s}
            rows += [row(**text, task=t, value=0.7 + 0.1 * m + noise) for t in (*ELM_TASKS, "all")]
    return check_results(frame(*rows))


def test_palette_covers_all_methods_without_repeats():
    assert set(style.PALETTE) == set(METHODS) == set(style.MARKERS)
    assert len(set(style.PALETTE.values())) == len(set(style.MARKERS.values())) == len(METHODS)


def test_figures_have_titles_labels_and_legends(tmp_path):
    results, eye = synthetic(), np.eye(3)
    losses = pd.DataFrame({"step": [0, 1] * 2, "name": "itc", "value": [2.0, 1.0] * 2, "chance": 2.0})
    losses["split"] = ["train", "train", "heldout", "heldout"]
    readings = pd.DataFrame(
        [(r, s, 0.1 + s) for r in ("as it is", "other") for s in (0, 1)], columns=["reading", "seed", "dev NDCG@10"]
    )
    read = pd.concat(
        [
            results[results["table"] == "figure3"].assign(
                table="prompts read", task=task, variant=results["variant"].str.replace("query_tokens", "prompts_read")
            )
            for task in ("sequential", "straightforward")
        ]
    )
    drawn = {
        "tail": data_plots.plot_long_tail([9, 5, 1, 1]),
        "lengths": data_plots.plot_sequence_lengths([3, 5, 400]),
        "map": data_plots.plot_item_map(np.random.default_rng(0).random((12, 2)), list("abcdefghijkl"), "Map"),
        "losses": data_plots.plot_losses(losses),
        "queries": data_plots.plot_query_similarity(eye),
        "methods": result_plots.plot_metric_by_method(results, "HR@10", table="table3"),
        "tokens": result_plots.plot_query_tokens(results),
        "read": result_plots.plot_prompts_read(read),
        "elm": result_plots.plot_elm_tasks(results, "SC"),
        "gap": data_plots.plot_loss_gap(
            pd.concat([losses.assign(method=m, seed=s) for m in ("ILM", "MLP") for s in (0, 1)])
        ),
        "readings": result_plots.plot_readings(readings, "dev NDCG@10", chosen="as it is"),
    }
    for name, fig in drawn.items():
        ax = fig.axes[0]
        assert ax.get_xlabel() and (ax.get_ylabel() or ax.get_yticklabels()), name
        assert ax.get_title(loc="left") or fig.get_suptitle(), name
        assert name in ("queries", "readings") or fig.legends, name
        assert not any(a.get_legend() for a in fig.axes), f"{name}: a legend inside the axes may lie on the data"
        path = style.save_figure(fig, tmp_path / name)
        assert path.suffix == ".png" and path.stat().st_size < 150_000
    assert next(t.get_text() for t in drawn["map"].legends[0].get_texts()) == "other (4)"
    assert "off the diagonal 0.00" in drawn["queries"].axes[0].get_title(loc="left")
    assert [ax.get_title(loc="left") for ax in drawn["read"].axes] == ["sequential", "straightforward"]
    assert [t.get_text() for t in drawn["tokens"].legends[0].get_texts()] == ["MLP", "ILM"]


def test_a_figure_carries_its_description(tmp_path):
    fig = data_plots.plot_long_tail([9, 5, 1, 1], "Few items")
    path = style.save_figure(fig, tmp_path / "tail")
    said = style.alt_text(path)
    assert said.startswith("Few items. Vertical: Interactions per item (log scale). Horizontal: Item rank")
    assert "Drawn: 4 items, 16 interactions, top 20% of items: 56% of interactions." in said
    panels = data_plots.plot_losses(pd.DataFrame([(1, n, 1.0, "train") for n in ("itc", "itm")],
                                                 columns=["step", "name", "value", "split"]))  # fmt: skip
    assert "Panels: itc, itm. Vertical: Loss (nats)" in style.describe(panels)
    panels.savefig(tmp_path / "plain.png")
    assert style.alt_text(tmp_path / "plain.png") == ""


def test_a_notebook_keeps_the_description_beside_the_image():
    from IPython.core.formatters import DisplayFormatter

    data, metadata = DisplayFormatter().format(data_plots.plot_long_tail([3, 2, 1], "Few items"))
    assert metadata["image/png"]["alt"].startswith("Few items.") and "text/plain" in data


def test_figures_never_mix_history_rules():
    results = pd.concat([synthetic(), synthetic().query("metric == 'HR@10'").assign(history="excluded")])
    with pytest.raises(ValueError, match="choose one history"):
        result_plots.plot_metric_by_method(results, "HR@10", table="table3")
    result_plots.plot_metric_by_method(results, "HR@10", table="table3", history="excluded")


def test_summary_errors():
    out = result_plots.summarise(check_results(frame(row(value=0.1), row(value=0.3, seed=1)))).iloc[0]
    assert (out["mean"], out["seeds"]) == (pytest.approx(0.2), 2) and out["se"] == pytest.approx(0.1)
    assert math.isnan(mean_se([1.0])[1])


def test_a_growing_catalogue_has_a_line_a_work_and_plain_numbers():
    rows = [(what, items, items / 1e5, items / 1e6) for what in ("a", "b") for items in (10_000, 1_000_000)]
    costs = pd.DataFrame(rows, columns=["what", "items", "seconds", "gib"])
    figure = result_plots.plot_catalogue(costs, {"a": "one", "b": "other"}, title="Costs")
    figure.canvas.draw()
    for ax in figure.axes:
        assert [line.get_label() for line in ax.lines] == ["one", "other", "linear growth"]
        assert [t.get_text() for t in ax.get_xticklabels()] == ["10,000", "1,000,000"] and ")" in ax.get_ylabel()
        assert not any("$" in t.get_text() for t in ax.get_yticklabels())


def test_speed_has_a_point_and_a_target_for_every_case():
    rows = pd.DataFrame({"case": ["a one", "b two"], "ratio": [20.0, 0.9], "target": [10.0, 0.85], "device": "CPU"})
    (ax,) = result_plots.plot_speed(rows).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [CASES["b"][1], CASES["a"][1]]
    points, targets = ax.lines
    assert points.get_xdata().tolist() == [20, 0.9] and targets.get_xdata().tolist() == [10, 0.85]
    assert points.get_ydata().tolist() == targets.get_ydata().tolist() == [1, 0]


def test_a_ranking_measure_is_not_labelled_as_a_loss():
    history = pd.DataFrame(
        {
            "step": [1, 2, 1, 2],
            "name": ["loss", "loss", "dev NDCG@10", "dev NDCG@10"],
            "value": [2.0, 1.0, 0.1, 0.2],
            "split": ["train"] * 2 + ["heldout"] * 2,
        }
    )
    assert [ax.get_ylabel() for ax in data_plots.plot_losses(history).axes] == [
        "Loss (nats)",
        "Mean over held-out cases",
    ]


def test_cases_of_the_bench_have_names_for_people():
    assert case_name("c phase-1 step, 128 x 32 tokens, float32") == "One step of phase 1, 128 x 32 tokens, float32"
    assert case_name("d, peak memory") == "Recommend, real items alone allowed: peak memory"
    assert case_name("zero") == "zero" and case_name("j") == "j"
    html = speed_page("<h1>Speed</h1><td>d, peak memory</td> d, peak memory <th>b encoder's part of a step</th>",
                      ["d, peak memory", "b encoder's part of a step"])  # fmt: skip
    assert (
        html.count("Recommend") == html.count("How to read this") == 1
        and "<th>Encode the items of a batch</th>" in html
    )
    for name in ("results", "checks"):
        measured = pd.read_csv(ROOT / "reports" / "speed" / f"{name}.csv")["case"]
        assert all(case_name(case) != case for case in measured)
    letters = pd.read_csv(ROOT / "reports" / "speed" / "results.csv")["case"]
    assert all(case_name(case).startswith(CASES[case[0]][1]) and ":" not in case_name(case) for case in letters)
