"""The report of one profile: `runs/PROFILE/report`, made of its executed notebooks, results, claims and figures.

A report shows what the notebooks of its study carry and nothing else. It is rendered into a fresh folder aside, which
then takes the place of the old one.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ilm_lib.executed import NoRun, note_report, read_executed, read_plan, report_key, stands
from ilm_lib.files import replace_folder, write_text
from ilm_lib.paper import PAPER, PUBLISHED_ML100K
from ilm_lib.profiles import profile_path, report_dir
from ilm_lib.report.card import commit
from ilm_lib.report.guide import guide, rules
from ilm_lib.report.html import html_table, page, verdict_badge, write_page
from ilm_lib.report.notebook_pages import notebook_page
from ilm_lib.report.results import join_claims, join_results
from ilm_lib.report.style import alt_text
from ilm_lib.report.tables import best_cells, claims_table, table_beside_paper
from ilm_lib.report.verdicts import VERDICTS

_CAPTIONS = {
    "table1": "Table 1: ELM tasks", "table3": "Table 3: OpenP5 recommendation", "table4": "Table 4: losses of phase 1",
    "table6": "Table 6: ELM tasks, mean over seeds", "table7": "Table 7: OpenP5, mean over seeds",
    "figure3": "Figure 3: number of query tokens", "prompts read": "Over LLMs frozen earlier or later",
    "scoring": "Every item scored",
}  # fmt: skip


def build(profile: str) -> Path:
    """Render the report of a profile, unless the one that stands shows what is there; returns its first page.

    Raises:
        NoRun: a notebook of the study has not been executed.
        ValueError: results are of an earlier version.
    """
    notebooks = read_plan(profile)
    key = report_key(profile, notebooks)
    if not stands(profile, key):
        card = {"profile": profile, "commit": commit(), "rendered": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
        render_site(profile, notebooks=notebooks, out=report_dir(profile), card=card)
        note_report(profile, key)
    return report_dir(profile) / "index.html"


def render_site(profile: str, *, notebooks: Sequence[Path], out: Path, card: dict[str, str]) -> Path:
    """Write the report of a profile to `out`, in place of what was there; returns the path of its index.html.

    Args:
        notebooks: executed by the grid, in the order of the report; rows, claims and figures are those they carry.
        card: facts about the report, name -> value.

    Raises:
        NoRun: a notebook was not executed by the grid.
    """
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "figures").mkdir(parents=True)
    pages, carried = [], []
    for path in notebooks:
        if (executed := read_executed(path)) is None:
            raise NoRun(f"{path} was not executed by the grid; make study PROFILE={profile} makes it anew")
        carried.append(executed)
        for name, png in executed.figures.items():
            if not (figure := fresh / "figures" / f"{name}.png").exists():  # of the first seed
                figure.write_bytes(png)
        title, html = notebook_page(path)
        write_page(fresh / f"{path.stem}.html", html)
        pages.append(f'<li><a href="{quote(path.stem)}.html">{escape(title)}</a></li>')
    rows = join_results({e.path: e.results for e in carried if e.results})
    claims = join_claims({e.path: e.claims for e in carried if e.claims})
    for name, table in (("results.csv", rows), ("claims.csv", claims)):
        if table is not None:
            write_text(fresh / name, table.to_csv(index=False, lineterminator="\n"))
    body = _first_page(profile, rows, claims, fresh, pages, card)
    write_page(fresh / "index.html", page(f"ILM study: {profile}", body))
    replace_folder(fresh, out)
    return out / "index.html"


def about(profile: str) -> str:
    """What a profile is: the first sentence of the comment that its file begins with, or "" if it has none."""
    path = profile_path(profile)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    sentence = re.match(r".+?\.(?=\s|$)", " ".join(comment))
    return sentence[0] if sentence else " ".join(comment)


# --- the first page ---


def _first_page(
    profile: str,
    rows: pd.DataFrame | None,
    claims: pd.DataFrame | None,
    out: Path,
    pages: list[str],
    card: dict[str, str],
) -> str:
    body = [
        f"<h1>Item-Language Model study: {escape(profile)}</h1>",
        _lead(profile, rows),
        guide(*((), ()) if rows is None else (rows["method"], rows["metric"])),
        "<h2>Claims</h2>",
        _claims(claims),
        "<h2>Results</h2>",
        _result_tables(rows) if rows is not None and len(rows) else "<p>No results yet.</p>",
        _figures(out),
        f'<h2>Notebooks</h2><ol class="pages">{"".join(pages)}</ol>' if pages else "",
        "<h2>Data of this report</h2>",
    ]
    files = [f'<a href="{n}">{n}</a>' for n in ("results.csv", "claims.csv") if (out / n).exists()]
    facts = pd.DataFrame({"what": list(map(str, card)), "value": list(map(str, card.values()))})
    body.append((f"<p>{' · '.join(files)}</p>" if files else "") + (html_table(facts) if len(facts) else ""))
    return "\n".join(part for part in body if part)


def _lead(profile: str, rows: pd.DataFrame | None) -> str:
    published = rows is not None and rows["dataset"].str.casefold().isin(PAPER["dataset"].str.casefold()).any()
    beside = (
        "Our numbers stand beside the paper's in grey."
        if published
        else "The paper has no such data set, so numbers compare within a table only; the claims say what carries over."
    )
    return (
        '<p class="lead">The Item-Language Model (<a href="https://arxiv.org/abs/2406.02844">arXiv 2406.02844</a>) '
        "feeds collaborative filtering embeddings of items to a frozen language model through an item encoder that "
        "was first aligned with text. This is a re-implementation, run on one profile: every number comes from an "
        f"executed notebook below, which ends with the card of its run. {beside}</p>"
        + (f"<p>{escape(text)}</p>" if (text := about(profile)) else "")
    )


def _claims(claims: pd.DataFrame | None) -> str:
    if claims is None or claims.empty:
        return "<p>No claims tested yet.</p>"
    counts = claims["verdict"].value_counts()
    badges = " ".join(verdict_badge(v, f"{counts[v]} {v}") for v in VERDICTS if v in counts)
    return f"<p>{badges}</p>{rules()}{html_table(claims_table(claims))}"


def _figures(out: Path) -> str:
    cells = []
    for path in sorted((out / "figures").glob("*.png")):
        url, name = quote(path.name), re.sub(r"[_-]+", " ", re.sub(r"^\d\d ", "", path.stem))
        alt = escape(alt_text(path) or f"Figure: {name}")
        number = f"Notebook {path.name[:2]}: " if path.name[:2].isdigit() else ""
        cells.append(
            f'<figure><a href="figures/{url}"><img src="figures/{url}" alt="{alt}"></a>'
            f"<figcaption>{number}{escape(name)}</figcaption></figure>"
        )
    return f'<h2>Figures</h2><div class="figures">{"".join(cells)}</div>' if cells else ""


def _scored_tables(results: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Key tables and others of the score read-out; what was changed was changed for few methods, which stand alone."""
    key: list[str] = []
    more: list[str] = []
    for (dataset, history, changed), part in results.groupby(["dataset", "history", results["variant"] != ""]):
        df = table_beside_paper(part, "scoring", dataset, history=history)
        caption = f"{_CAPTIONS['scoring']}, {dataset}, history {history}" + (
            ", with one thing changed" if changed else ""
        )
        (more if changed or history == "kept" else key).append(html_table(df, caption, best_cells(df)))
    return key, more


def _result_tables(results: pd.DataFrame) -> str:
    """Key tables open (both tasks together; of rankings those whose history rule is judged), the rest folded."""
    key, more = _scored_tables(results[results["table"] == "scoring"])
    spelled = (results["readout"] == "beam").any()  # else table 3 is of baselines alone
    others = results[results["table"] != "scoring"]
    for (table, dataset, history), part in others.groupby(["table", "dataset", "history"], sort=True):
        tasks = list(dict.fromkeys(part["task"]))
        texts, curve = table in ("table1", "table6"), table in ("figure3", "prompts read")
        source = {"paper": PUBLISHED_ML100K, "paper_table": "openp5", "paper_label": "OpenP5"}
        source = source if (table, dataset.casefold()) == ("table3", "ml100k") else {}
        caption = f"{_CAPTIONS.get(table, table)}, {dataset}" + (f", history {history}" if history else "")
        summary = next((t for t in ("both", "all") if t in tasks), None if texts else tasks[0])
        alone = [t for t in tasks if t != summary]
        for task in [None] if curve else [summary, *([None] if texts and summary else alone)]:
            rows = "task" if texts and task is None else "method"
            df = table_beside_paper(results, table, dataset, history=history, task=task, rows=rows, **source)
            main = task == summary and not curve and history != "excluded" and (table != "table3" or spelled)
            (key if main else more).append(html_table(df, caption, best_cells(df)))
    folded = f"<details><summary>{len(more)} more tables</summary>{''.join(more)}</details>" if more else ""
    return "".join(key) + folded
