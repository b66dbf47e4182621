"""Reports as pages: notebooks, the first page of a profile, the pages above all reports, and what checks them."""

import json
import os
import re
import shutil
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import frame, row
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from rough.plain import plain

from ilm_lib import executed as executed_notebooks
from ilm_lib.executed import read_executed, study_lock, write_executed, write_plan
from ilm_lib.methods import METHODS
from ilm_lib.report import browser, check, data_plots, site, style
from ilm_lib.report.__main__ import main
from ilm_lib.report.guide import guide, rules
from ilm_lib.report.html import html_table, page, style_sheet, table_css, write_page
from ilm_lib.report.landing import landing, publish
from ilm_lib.report.markdown import render_markdown, slug
from ilm_lib.report.notebook_pages import notebook_page
from ilm_lib.report.results import Claim, read_claims, read_results, write_claims, write_results
from ilm_lib.report.site import about, build, render_site

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII="


def notebook(path, *, rows=(), claims=(), figures=()) -> None:
    """An executed notebook with what its run made, as the grid leaves it."""
    shown = {"text/html": "<style>b{color:red}</style><b>table</b>"}
    image = {"output_type": "display_data", "data": {"image/png": PNG}}
    cells = [
        new_markdown_cell("# 01 · Data & *splits*\n\nFor $h_{cls}$ it costs `$5`.\n\n$$e = m^2$$"),
        new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        new_code_cell("import os\n\nprint(os.name)"),
        new_markdown_cell("## Losses\n\n$$\\begin{cases}a\\end{cases}$$\n\n| wide | table |\n| --- | --- |\n| a | b |"),
        new_code_cell("answer = 42", outputs=[new_output("stream", name="stderr", text="SECRET WARNING"),
                                              new_output("stream", name="stdout", text="fine\n"),
                                              new_output("display_data", data=shown),
                                              new_output(**image, metadata={"image/png": {"alt": "A curve."}}),
                                              new_output(**image)]),
    ]  # fmt: skip
    made = new_notebook(cells=cells)
    with TemporaryDirectory() as name:
        folder = Path(name)
        if rows:
            write_results(folder / "results.csv", frame(*rows))
        if claims:
            write_claims(folder / "claims.csv", claims)
        for figure in figures:
            style.save_figure(data_plots.plot_long_tail([3, 2, 1]), folder / "figures" / f"{figure}.png")
        write_executed(json.loads(nbformat.writes(made)), folder, path, made_of="this and that")


def claim(sentence: str, verdict: str = "reproduced") -> Claim:
    return Claim(sentence, "0.2", "0.3", 0.1, 0.2, 0.01, 3, verdict, "06, Table 3", "p = .010")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run of a profile, as notebooks leave it: its folder."""
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "toy"
    rows = row(), row(seed=1, value=0.2), row(method="iALS", value=0.3)
    shown = {"rows": rows, "claims": [claim("Claim <one>")], "figures": ["01 long tail"]}
    notebook(folder / "notebooks" / "01_data.ipynb", **shown)
    write_plan("toy", ["01_data"])
    return folder


# --- notebooks ---


def test_a_notebook_becomes_a_page_in_our_frame(tmp_path):
    notebook(tmp_path / "04_phase2-ILM-rand-seed0.ipynb")
    title, html = notebook_page(tmp_path / "04_phase2-ILM-rand-seed0.ipynb")
    assert title == "01 · Data & splits (ILM-rand, seed 0)"
    assert '<nav class="back"><a href="index.html">← Report</a></nav>' in html
    assert "SECRET WARNING" not in html and "fine" in html and "42" in html and "In&nbsp;" not in html
    assert html.count(' class="math"') == 2 and "<code>\\begin{cases}a\\end{cases}</code>" in html
    assert "<code>$5</code>" in html and "MathJax" not in html and "<style" not in html and len(html) < 20_000
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["Setup: parameters, imports"]
    assert re.search(r'class="ilm-scroll"[^>]*>\s*<p[^>]*>[^<]*</p>\s*<table', html)  # on a phone the page stays put
    assert 'alt="A curve."' in html and 'alt="Figure of the section “Losses”"' in html


# --- pieces ---


def test_a_wide_table_goes_on_below_between_groups():
    heads = pd.MultiIndex.from_tuples([(g, m) for g in ("one", "two", "three") for m in ("HR@5", "HR@10")])
    cells = [[f"0.{j}{i}11 ± 0.0011 and more" for j in range(6)] for i in range(3)]
    df = pd.DataFrame(cells, index=pd.Index(list("abc"), name="method"), columns=heads)
    html = html_table(df, "A caption", frozenset({(0, 1), (2, 4)}))
    tables = html.split("<table")[1:]
    assert [re.findall(r'<th colspan="2"[^>]*>(\w+)', t) for t in tables] == [["one", "two"], ["three"]]
    assert html.count("<caption>") == 1 and all(">method<" in t and t.count("<tr>") == 5 for t in tables)
    assert re.findall(r"<b>([^<]+)</b>", tables[0]) == [cells[0][1]]
    assert re.findall(r"<b>([^<]+)</b>", tables[1]) == [cells[2][4]]
    assert html_table(df.iloc[:, :2]).count("<table") == 1 == html_table(df["one"]).count("<table")


def test_pages_of_a_folder_share_their_style_sheet(tmp_path):
    for name in ("a", "b"):
        write_page(tmp_path / f"{name}.html", page(name, "<p>text</p>"))
    assert (tmp_path / "style.css").read_text() == style_sheet()
    assert (tmp_path / "a.html").read_text().count('<link rel="stylesheet" href="style.css">') == 1
    assert table_css() in style_sheet() and ".ilm-v.good" in table_css() and "font:16px" not in table_css()


def test_markdown_has_headings_to_link_to_and_tables_that_scroll():
    html = render_markdown(
        "## The 24 *ELM* tasks\n\n| a | b | c |\n| - | - | - |\n| x | .5 ± .1 | 3 |\n| y | – | none |\n"
    )
    assert '<h2 id="the-24-elm-tasks">' in html and slug("R &amp; D, <b>now</b>") == "r-d-now"
    assert 'class="ilm-scroll"' in html and re.findall(r'<t[hd] class="(\w*)"', html) == ["text", "", "text"] * 3


def test_rankings_by_score_stand_first_where_their_history_rule_is_judged_and_changes_for_themselves():
    scored = dict(table="scoring", dataset="ML1M", task="sequential", prompt="", readout="score", metric="HR@10")
    rows = [
        row(**scored | {"method": method, "history": history, "variant": variant, "value": value})
        for method, variant, value in (("MLP", "", 0.31), ("ILM", "", 0.32), ("ILM", "context=last", 0.33))
        for history in ("kept", "excluded")
    ]
    baseline = row(table="table3", dataset="ML1M", task="both", method="SASRec", metric="HR@10", value=0.34, readout="")
    html = site._result_tables(frame(*rows, baseline))
    key, more = html.split("<details>")
    assert key.count("<table") == 1 and "history excluded" in key and "0.3100" in key and "0.3300" not in key
    changed = re.findall(r"<table.*?</table>", more, re.S)[0]
    assert "0.3300" in changed and "MLP" not in changed
    assert "0.3400" in more  # nothing was spelled: table 3 has baselines alone


def test_the_guide_explains_what_is_in_the_tables_and_nothing_else():
    html = guide(["ILM", "MLP"], ["HR@10"])
    for word in ("HR@10", "NDCG@10", "seen, unseen", "kept, excluded", "straightforward", "read-out"):
        assert f"<dt>{word}</dt>" in html, word
    assert escape(METHODS["ILM"].sentence) in html and "Facts-in-text" not in html and "log perplexity" not in html
    assert "<dt>SC</dt>" in guide(["ILM"], ["SC"]) and "HR@10" not in guide(["ILM"], ["SC"])
    assert guide((), ()) == "" and "Holm" in rules()


# --- the report of a profile ---


def test_a_report_from_the_command_line(run, capsys):
    assert main(["build", "other"]) == 1 and "make study PROFILE=other" in capsys.readouterr().err
    assert main(["build", "toy"]) == 0
    assert capsys.readouterr().out == "runs/toy/report/index.html\n"
    out = run / "report"
    index, data = (out / "index.html").read_text(), (out / "01_data.html").read_text()
    for text in ('href="01_data.html">01 · Data &amp; splits<', 'href="results.csv"', 'href="claims.csv"',
                 "Claim &lt;one&gt;", "How to read this", "What the verdicts mean", 'class="ilm-v good"', about("toy"),
                 'src="figures/01%20long%20tail.png" alt="Few items get most interactions. Vertical',
                 "Table 3: OpenP5 recommendation, ML1M, history kept", "0.1064"):  # fmt: skip
        assert text in index, text
    assert str(run) not in index + data
    assert check.check_files([out / "index.html", out / "01_data.html"], out) == []
    assert [p for p in run.iterdir() if p.name.startswith(".")] == [run / ".lock"]


def test_old_results_stop_the_report_with_one_line(run, capsys):
    assert main(["build", "toy"]) == 0
    path = run / "notebooks" / "01_data.ipynb"
    older = run.parent / "older"
    older.mkdir()
    older.joinpath("results.csv").write_text(read_executed(path).results.replace("method,variant,seed", "method,seed"))
    write_executed(json.loads(path.read_text()), older, path, made_of="an earlier version")
    assert main(["build", "toy"]) == 1 and "no column variant" in capsys.readouterr().err
    assert (run / "report" / "index.html").is_file()  # what was there stays


def test_a_report_is_rendered_only_where_it_does_not_show_what_is_there(run, capsys, monkeypatch):
    """Each change makes it anew; nothing changed, nothing done; a notebook that is missing or half written stops it."""
    rendered = []
    monkeypatch.setattr(site, "notebook_page", lambda path: ("A title", "<p>text</p>"))  # the real one is slow
    monkeypatch.setattr(site, "render_site", lambda *a, **k: rendered.append(1) or render_site(*a, **k))
    executed, report = run / "notebooks" / "01_data.ipynb", run / "report"
    whole = executed.read_text()
    changes = [
        lambda: None,
        lambda: notebook(executed, rows=[row(value=0.7)], figures=["01 long tail"]),
        lambda: (report / "01_data.html").unlink(),
        lambda: (report / "results.csv").write_text("changed"),
        lambda: (report / "figures" / "own.png").write_bytes(b"left behind"),
        lambda: shutil.rmtree(report),
        lambda: (run / "report.json").unlink(),
        lambda: monkeypatch.setattr(executed_notebooks, "library_digest", lambda: "another"),
    ]
    for n, change in enumerate(changes, 1):
        change()
        assert main(["build", "toy"]) == 0 and len(rendered) == n
        assert main(["build", "toy"]) == 0 and len(rendered) == n
        assert sorted(p.name for p in report.rglob("*.png")) == ["01 long tail.png"]
    for text in (None, "", whole[:2000], whole.replace('"ilm"', '"papermill"')):
        executed.unlink() if text is None else executed.write_text(text)
        assert main(["build", "toy"]) == 1
        plain(capsys.readouterr().err.strip().splitlines()[-1], "01_data.ipynb", "make study PROFILE=toy")
        assert (report / "01_data.html").is_file()


def test_a_report_waits_for_no_study_and_says_which(run, capsys):
    with study_lock("toy"):
        assert main(["build", "toy"]) == 1 and main(["publish", "toy"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and len({plain(line, f"process {os.getpid()} on", "ILM_RUNS_DIR") for line in said}) == 1
    assert main(["build", "toy"]) == 0


def test_a_report_shows_what_its_notebooks_made_and_nothing_else(run):
    """Left behind: notebooks of methods and seeds that left, and what a reader's own notebook wrote beside the runs."""
    kept = {"01_data": {}, "04_phase2-ILM-seed0": {"figures": ["04 phase 2 ILM"]}}
    kept["06_openp5_eval"] = {"rows": [row(), row(method="iALS")], "claims": [claim("One")], "figures": ["06 HR10"]}
    kept["07_ablations"] = {"rows": [row(table="figure3", variant="query_tokens=4")], "claims": [claim("Two")]}
    gone = {"04_phase2-MLP-seed0": {"figures": ["04 phase 2 MLP"]}, "04_phase2-ILM-seed1": {}}
    gone["09_readings"] = {"rows": [row(table="prompts read", variant="prompts_read=4")], "claims": [claim("Three")]}
    for name, made in (kept | gone).items():
        notebook(run / "notebooks" / f"{name}.ipynb", **made)
    write_results(run / "results.csv", frame(row(dataset="Other"), row(seed=5)))
    write_claims(run / "claims.csv", [claim("By a reader")])
    style.save_figure(data_plots.plot_long_tail([3, 2, 1]), run / "report" / "figures" / "06 gone.png")
    write_plan("toy", [*kept])
    report = build("toy").parent
    assert sorted(f.stem for f in report.glob("*.html")) == [*kept, "index"]
    assert sorted(f.stem for f in report.glob("figures/*.png")) == ["04 phase 2 ILM", "06 HR10"]
    left = read_results(report / "results.csv")
    assert list(zip(left["table"], left["dataset"], left["method"], left["variant"])) == [
        ("figure3", "ML1M", "ILM", "query_tokens=4"), ("table3", "ML1M", "iALS", ""), ("table3", "ML1M", "ILM", ""),
    ]  # fmt: skip
    assert read_claims(report / "claims.csv")["claim"].tolist() == ["One", "Two"]


def test_an_empty_profile_still_renders(tmp_path):
    index = render_site("new", notebooks=[], out=tmp_path / "o", card={})
    assert "No results yet" in index.read_text() and "No claims tested yet" in index.read_text()
    assert about("new") == "" and "toy world" in about("toy")


# --- the pages above all reports ---


def test_publishing_replaces_a_report_and_links_it(run, tmp_path, capsys):
    reports = tmp_path / "reports"
    with pytest.raises(FileNotFoundError, match="make study PROFILE=toy"):
        publish("toy", reports)
    assert not reports.exists()
    assert main(["build", "toy"]) == 0
    (reports / "toy").mkdir(parents=True)
    (reports / "toy" / "old.html").write_text("")
    (reports / "README.md").write_text(
        "# What we found\n\n## In short\n\n- **It holds.**\n\n## More\n\n[toy](toy/index.html)\n"
    )
    assert publish("toy", reports) == reports / "toy" / "index.html"
    assert not (reports / "toy" / "old.html").exists() and (reports / "toy" / "figures" / "01 long tail.png").exists()
    assert '<a href="../index.html">← All reports</a>' in (reports / "toy" / "index.html").read_text()
    index = (reports / "index.html").read_text()
    assert '<a href="#in-short">In short</a>' in (reports / "findings.html").read_text()
    for text in ('href="toy/index.html"', about("toy"), "2 seeds", "1 reproduced", "Made by version", "It holds."):
        assert text in index, text
    assert "[toy]" not in (reports / "findings.html").read_text() and "More" not in index
    pages = sorted(reports.rglob("*.html"))
    assert len(pages) == 4 and check.check_files(pages, reports) == []


def test_the_landing_page_reads_reports_of_any_version(tmp_path):
    (tmp_path / "ml1m").mkdir()
    (tmp_path / "ml1m" / "index.html").write_text(
        '<td class="text">commit</td><td class="text">702b54b</td><td>rendered</td><td>2026-11-22 09:32 UTC</td>'
    )
    header = "table,dataset,task,prompt,history,method,seed,metric,value,n\n"
    (tmp_path / "ml1m" / "results.csv").write_text(header + "table3,ML1M,sequential,seen,kept,ILM,0,HR@10,.1,6040\n")
    (tmp_path / "ml1m" / "claims.csv").write_text("claim,verdict\nA,not reproduced\nB,not reproduced\n")
    index = landing(tmp_path).read_text()
    for text in ("6,040 test users, 1 seed", "2 not reproduced", "Made by version 702b54b, 2026-11-22<"):
        assert text in index, text


def test_the_committed_pages_above_the_reports_are_up_to_date(tmp_path):
    """`make publish` makes them; a report, or README.md, that changed by hand leaves them behind."""
    from ilm_lib.report.landing import REPORTS

    committed = {name: (REPORTS / name).read_text() for name in ("index.html", "findings.html")}
    for name in committed:
        assert check.check_files([REPORTS / name], REPORTS) == []
    assert committed["findings.html"].count("<h2") == len(re.findall("^## ", (REPORTS / "README.md").read_text(), re.M))
    reports = [p.parent.name for p in REPORTS.glob("*/index.html")]
    assert reports and all(f'href="{name}/index.html"' in committed["index.html"] for name in reports)


# --- the check ---


def test_the_check_of_files_finds_what_is_wrong(tmp_path):
    body = """<h2 id="here">x</h2><a href="#here">fine</a><a href="#gone">x</a><a href="b.html#top">x</a>
    <a href="no.html">x</a><a href="https://arxiv.org">fine</a><img src="figures/01 tail.png" alt="01 tail">
    <img src="data:image/png;base64,AA" alt=""><img src="https://cdn.x/a.png" alt="A curve, falling">
    <script src="//cdn.x/y.js"></script>"""
    write_page(tmp_path / "a.html", page("a", body))
    (tmp_path / "b.html").write_text("<p>an older page</p>")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "01 tail.png").write_bytes(b"")
    assert check.check_files([tmp_path / "a.html"], tmp_path) == [
        "a.html: dead link: #gone",
        "a.html: dead link: b.html#top",
        "a.html: dead link: no.html",
        "a.html: image without a useful alt text: figures/01 tail.png",
        "a.html: image without a useful alt text: data:image/png;base64,AA",
        "a.html: fetched from outside: https://cdn.x/a.png",
        "a.html: fetched from outside: //cdn.x/y.js",
    ]
    (tmp_path / "style.css").unlink()
    assert "a.html: missing file: style.css" in check.check_files([tmp_path / "a.html"], tmp_path)


def test_no_pages_and_no_browser_are_one_line_each(tmp_path, monkeypatch, capsys):
    assert main(["check", str(tmp_path)]) == 1 and "no pages of this version" in capsys.readouterr().err
    write_page(tmp_path / "a.html", page("a", "<p>text</p>"))
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    assert main(["check", str(tmp_path)]) == 1 and capsys.readouterr().err.startswith("no Chromium found")


@pytest.mark.slow
@pytest.mark.skipif(browser.find_chromium() is None, reason="needs Chromium")
def test_the_check_in_a_browser_finds_what_is_wrong(tmp_path, capsys):
    wide = pd.DataFrame([np.arange(60) + 1000], columns=[f"column {i}" for i in range(60)])
    write_page(tmp_path / "good.html", page("good", f"<h1>Good</h1>{html_table(wide.iloc[:, :8])}{rules()}<p>text</p>"))
    bad = f"""{html_table(wide)}<div style="width:700px">wide</div><p style="color:#222;background:#111">dark</p>
    <style>details::details-content{{content-visibility:hidden!important}} tr{{break-inside:auto!important}}</style>
    <details><summary>more</summary><p>folded</p></details><script>console.error("it broke")</script>"""
    write_page(tmp_path / "bad.html", page("bad", bad))
    assert main(["check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    for problem in ("390 px light: page scrolls sideways, because of div", "paper: table 1 loses columns",
                    "paper: rows of tables may be split", "paper: what is folded is lost",
                    "1,280 px dark: text hard to read: p", "console: it broke"):  # fmt: skip
        assert f"bad.html: {problem}" in said, said
    assert "1,280 px light: page scrolls" not in said and "good.html" not in said
    (tmp_path / "bad.html").unlink()
    assert main(["check", str(tmp_path)]) == 0 and capsys.readouterr().out == ""
