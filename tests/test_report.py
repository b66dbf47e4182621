"""Tables, run cards, figures and the rendered site."""

import math
import os
import re
import time
from datetime import datetime

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import frame, row
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ilm_lib import figures, ledger, report, result_figures, site, style, tables
from ilm_lib.card import commit, run_card
from ilm_lib.ledger import Claim, write_claims, write_results
from ilm_lib.metrics import mean_se
from ilm_lib.paper import ELM_TASKS, METHODS
from ilm_lib.profiles import ROOT

NAN = float("nan")


# --- tables ---


def test_table_beside_paper_takes_errors_from_seeds_or_the_binomial():
    results = ledger.check_results(
        frame(row(value=0.10), row(value=0.12, seed=1), row(method="MLP", value=0.2), row(metric="NDCG@10", value=0.05),
              row(history="excluded", value=0.9), row(history="excluded", value=0.8, seed=1))  # fmt: skip
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
    results = ledger.check_results(frame(row(table="table7", dataset="toy")))
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


def test_plain_index_is_hidden_and_cells_are_escaped():
    html = site.html_table(pd.DataFrame({"what": ["<b>"], "value": [1]}))
    assert "&lt;b&gt;" in html and html.count("<th") == 3  # thead and two columns


def test_fractions_of_a_column_have_equally_many_decimals():
    df = pd.DataFrame({"p": [0.041, 0.0969, NAN], "few": [1.0, "–", 0.5], "n": [1, 20, 3], "tiny": [1e-9, 0.5, 0.25]})
    cells = re.findall(r"<td[^>]*>(.*?)</td>", site.html_table(df))
    assert cells == ["0.0410", "1.0", "1", "1e-09", "0.0969", "–", "20", "0.50", "", "0.5", "3", "0.25"]


# --- claims ---


def claim(sentence: str = "ILM beats MLP", **changes) -> Claim:
    values = {"paper": 0.0041, "ours": "0.01, by eye", "ci_low": 0.001, "ci_high": 0.02, "p_value": 0.0001}
    return Claim(sentence, **(values | {"seeds": 3, "verdict": "reproduced", "evidence": "06, Table 3"} | changes))


def test_claims_table_reads_well():
    shown = tables.claims_table([claim("B", ci_low=NAN, ci_high=NAN, p_value=NAN, verdict="inconclusive"), claim()])
    assert shown["95% interval"].tolist() == ["–", "[+0.0010, +0.0200]"] and shown["p"].tolist() == ["–", "< 0.001"]
    assert 'class="ilm-v open"' in tables.show(shown).data
    assert 'class="text wrap"' in site.html_table(pd.DataFrame({"evidence": ["06_openp5_eval, Table 3"]}))


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
    monkeypatch.setattr("ilm_lib.card.ROOT", tmp_path)
    assert commit() == "unknown"


# --- figures ---


def synthetic() -> pd.DataFrame:
    rng, rows = np.random.default_rng(0), []
    for m, method in enumerate(("MLP", "ILM")):
        for s in range(2):
            noise = 0.001 * rng.standard_normal()
            rows += [row(method=method, seed=s, prompt=p, value=0.05 + 0.01 * m + noise) for p in ("seen", "unseen")]
            rows += [row(table="figure3", task=f"N={n}", method=method, seed=s, value=0.05 + noise) for n in (1, 4)]
            text = {"table": "table1", "prompt": "", "history": "", "metric": "SC", "method": method, "seed": s}
            rows += [row(**text, task=t, value=0.7 + 0.1 * m + noise) for t in (*ELM_TASKS, "all")]
    return ledger.check_results(frame(*rows))


def test_palette_covers_all_methods_without_repeats():
    assert set(style.PALETTE) == set(METHODS) == set(style.MARKERS)
    assert len(set(style.PALETTE.values())) == len(set(style.MARKERS.values())) == len(METHODS)


def test_figures_have_titles_labels_and_legends(tmp_path):
    results, eye = synthetic(), np.eye(3)
    losses = pd.DataFrame({"step": [0, 1] * 2, "name": "itc", "value": [2.0, 1.0] * 2, "chance": 2.0})
    losses["split"] = ["train", "train", "heldout", "heldout"]
    readings = pd.DataFrame([(r, s, 0.1 + s) for r in ("as it is", "other") for s in (0, 1)],
                            columns=["reading", "seed", "dev NDCG@10"])
    read = pd.concat([results[results["table"] == "figure3"].assign(
        table="prompts read", task=results["task"].str.replace("N=", f"{task}, ") + " a user")
        for task in ("sequential", "straightforward")])
    drawn = {
        "tail": figures.plot_long_tail([9, 5, 1, 1]),
        "lengths": figures.plot_sequence_lengths([3, 5, 400]),
        "map": figures.plot_item_map(np.random.default_rng(0).random((12, 2)), list("abcdefghijkl"), "Map"),
        "losses": figures.plot_losses(losses),
        "queries": figures.plot_query_similarity(eye),
        "methods": result_figures.plot_metric_by_method(results, "HR@10", table="table3"),
        "tokens": result_figures.plot_query_tokens(results),
        "read": result_figures.plot_prompts_read(read),
        "elm": result_figures.plot_elm_tasks(results, "SC"),
        "gap": figures.plot_loss_gap(
            pd.concat([losses.assign(method=m, seed=s) for m in ("ILM", "MLP") for s in (0, 1)])),
        "readings": result_figures.plot_readings(readings, "dev NDCG@10", chosen="as it is"),
    }
    for name, fig in drawn.items():
        ax = fig.axes[0]
        assert ax.get_xlabel() and (ax.get_ylabel() or ax.get_yticklabels()), name
        assert ax.get_title(loc="left") or fig.get_suptitle(), name
        assert name in ("queries", "readings") or fig.legends or ax.get_legend(), name
        path = style.save_figure(fig, tmp_path / name)
        assert path.suffix == ".png" and path.stat().st_size < 150_000
    assert [t.get_text() for t in drawn["map"].legends[0].get_texts()][0] == "other (4)"
    assert "off the diagonal 0.00" in drawn["queries"].axes[0].get_title(loc="left")
    assert [ax.get_title(loc="left") for ax in drawn["read"].axes] == ["sequential", "straightforward"]
    assert [t.get_text() for t in drawn["tokens"].axes[0].get_legend().get_texts()] == ["MLP", "ILM"]


def test_figures_never_mix_history_rules():
    results = pd.concat([synthetic(), synthetic().query("metric == 'HR@10'").assign(history="excluded")])
    with pytest.raises(ValueError, match="choose one history"):
        result_figures.plot_metric_by_method(results, "HR@10", table="table3")
    result_figures.plot_metric_by_method(results, "HR@10", table="table3", history="excluded")


def test_summary_errors():
    out = result_figures.summarise(ledger.check_results(frame(row(value=0.1), row(value=0.3, seed=1)))).iloc[0]
    assert (out["mean"], out["seeds"]) == (pytest.approx(0.2), 2) and out["se"] == pytest.approx(0.1)
    assert math.isnan(mean_se([1.0])[1])


# --- site ---


def notebook(path) -> None:
    cells = [
        new_markdown_cell("# 01 · Data & *splits*\n\nFor $h_{cls}$ it costs `$5`.\n\n$$e = m^2$$"),
        new_markdown_cell("$$\\begin{cases}a\\end{cases}$$"),
        new_code_cell("answer = 42", outputs=[new_output("stream", name="stderr", text="SECRET WARNING"),
                                              new_output("stream", name="stdout", text="fine\n")]),
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def external(html: str) -> list[str]:
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", html, flags=re.I)
    return [t for t in tags if re.search(r"(?:src|href)\s*=\s*[\"']?\s*(?:https?:)?//", t) or 'src=""' in t]


def test_external_finds_what_it_should():
    assert external('<script src="https://cdn.x/y.js"></script>') and external("<link href=//cdn.x/y.css>")
    assert not external('<a href="https://arxiv.org">x</a><img src="data:image/png;base64,AA">')


def test_site_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("ILM_REPORTS_DIR", str(tmp_path / "reports"))
    monkeypatch.chdir(tmp_path)
    assert report.main(["toy"]) == 1 and "make study PROFILE=toy" in capsys.readouterr().err
    notebook(tmp_path / "runs" / "toy" / "notebooks" / "01_data.ipynb")
    out = tmp_path / "reports" / "toy"
    write_results(out / "results.csv", synthetic())
    write_claims(out / "claims.csv", [claim("Claim <one>")])
    style.save_figure(figures.plot_long_tail([3, 2, 1]), out / "figures" / "long_tail.png")
    assert report.main(["toy"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == "reports/toy/index.html"

    index, page = (out / "index.html").read_text(), (out / "01_data.html").read_text()
    assert not external(index) and not external(page)
    assert str(tmp_path) not in index + page
    for text in ('href="01_data.html">01 · Data &amp; splits<', 'href="results.csv"', 'href="claims.csv"',
                 "Claim &lt;one&gt;", 'class="ilm-v good"', 'src="figures/long_tail.png"', "<figcaption>long tail<",
                 "Table 3: OpenP5 recommendation, ML1M, history kept", "0.1064"):  # fmt: skip
        assert text in index, text
    assert "SECRET WARNING" not in page and "fine" in page and "42" in page and "In&nbsp;" not in page
    assert 'href="notebook.css"' in page and max(map(len, re.findall(r"<style[^>]*>(.*?)</style>", page, re.S))) < 5000
    assert ".jp-" in (out / "notebook.css").read_text()
    assert len(re.findall(r"<img [^>]*data:image/svg\+xml", page)) == 2
    assert "<code>\\begin{cases}a\\end{cases}</code>" in page
    assert "cdnjs" not in page and "window.MathJax" not in page
    assert "<code>$5</code>" in page and 'href="index.html"' in page


def test_a_wide_table_goes_on_below_between_groups():
    heads = pd.MultiIndex.from_tuples([(g, m) for g in ("one", "two", "three") for m in ("HR@5", "HR@10")])
    cells = [[f"0.{j}{i}11 ± 0.0011 and more" for j in range(6)] for i in range(3)]
    df = pd.DataFrame(cells, index=pd.Index(list("abc"), name="method"), columns=heads)
    html = site.html_table(df, "A caption", frozenset({(0, 1), (2, 4)}))
    tables = html.split("<table")[1:]
    assert [re.findall(r'<th colspan="2"[^>]*>(\w+)', t) for t in tables] == [["one", "two"], ["three"]]
    assert html.count("A caption") == 1 and all(">method<" in t and t.count("<tr>") == 5 for t in tables)
    assert re.findall(r"<b>([^<]+)</b>", tables[0]) == [cells[0][1]]
    assert re.findall(r"<b>([^<]+)</b>", tables[1]) == [cells[2][4]]
    assert site.html_table(df.iloc[:, :2]).count("<table") == 1 == site.html_table(df["one"]).count("<table")


def test_pages_of_a_folder_share_their_style_sheet(tmp_path):
    sheet, html = tmp_path / "notebook.css", "<style>{}</style><style>p{{}}</style><p>{}</p>"
    for name, css in (("a", "a{}" * 2000), ("b", "a{}" * 2000), ("c", "b{}" * 2000)):  # c: another version's
        before = sheet.stat().st_ino if sheet.exists() else None
        site.write_page(tmp_path / f"{name}.html", html.format(css, name))
        page = (tmp_path / f"{name}.html").read_text()
        assert page == f'<link rel="stylesheet" href="notebook.css"><style>p{{}}</style><p>{name}</p>'
        assert sheet.read_text() == css and (sheet.stat().st_ino == before) == (name == "b")


def test_what_an_earlier_run_left_is_removed(tmp_path):
    path, out = tmp_path / "01_data.ipynb", tmp_path / "out"
    notebook(path)
    run = nbformat.read(path, as_version=4)
    run.metadata["papermill"] = {"start_time": "2030-01-01T00:00:00+00:00"}
    nbformat.write(run, path)
    (out / "figures").mkdir(parents=True)
    at = datetime.fromisoformat("2030-01-01T00:00:00+00:00").timestamp()
    for name, age in (("01 made now", 5), ("01 made before", -5), ("02 of no notebook", 5), ("own drawing", -5)):
        (out / "figures" / f"{name}.png").write_bytes(b"")
        os.utime(out / "figures" / f"{name}.png", (at + age, at + age))
    (out / "04_phase2-gone-seed1.html").write_text("")
    report.render_site("new", notebooks=[path], results=tmp_path / "results.csv", out=out, card={})
    assert sorted(f.stem for f in out.glob("figures/*.png")) == ["01 made now", "own drawing"]
    assert sorted(f.stem for f in out.glob("*.html")) == ["01_data", "index"]


def test_empty_profile_still_renders(tmp_path):
    index = report.render_site("new", notebooks=[], results=tmp_path / "results.csv", out=tmp_path / "o", card={})
    assert "No results yet" in index.read_text() and "No claims tested yet" in index.read_text()


def test_usage():
    assert report.main([]) == 2 and report.main(["--help"]) == 2


def test_speed_has_a_point_and_a_target_for_every_case():
    rows = pd.DataFrame({"case": ["a one", "b two"], "ratio": [20.0, 0.9], "target": [10.0, 0.85], "device": "CPU"})
    (ax,) = result_figures.plot_speed(rows).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["b two", "a one"]
    points, targets = ax.lines
    assert points.get_xdata().tolist() == [20, 0.9] and targets.get_xdata().tolist() == [10, 0.85]
    assert points.get_ydata().tolist() == targets.get_ydata().tolist() == [1, 0]


def test_a_ranking_measure_is_not_labelled_as_a_loss():
    history = pd.DataFrame({"step": [1, 2, 1, 2], "name": ["loss", "loss", "dev NDCG@10", "dev NDCG@10"],
                            "value": [2.0, 1.0, 0.1, 0.2], "split": ["train"] * 2 + ["heldout"] * 2})
    assert [ax.get_ylabel() for ax in figures.plot_losses(history).axes] == ["Loss (nats)", "Mean over held-out cases"]
