"""The report of one profile: `runs/PROFILE/report`, made of its executed notebooks, results, claims and figures.

A report shows what its run made and nothing else. It is rendered into a fresh folder aside, which then takes the place
of the old one.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ilm_lib.files import replace_folder, write_text
from ilm_lib.methods import TRAINED
from ilm_lib.paper import PAPER, PUBLISHED_ML100K
from ilm_lib.profiles import profile_path, report_dir, runs_dir
from ilm_lib.report.card import commit
from ilm_lib.report.guide import guide, rules
from ilm_lib.report.html import html_table, page, verdict_badge, write_page
from ilm_lib.report.notebook_pages import notebook_page
from ilm_lib.report.results import read_claims, read_results
from ilm_lib.report.style import alt_text
from ilm_lib.report.tables import best_cells, claims_table, table_beside_paper
from ilm_lib.report.verdicts import VERDICTS

_CAPTIONS = {
    "table1": "Table 1: ELM tasks", "table3": "Table 3: OpenP5 recommendation", "table4": "Table 4: losses of phase 1",
    "table6": "Table 6: ELM tasks, mean over seeds", "table7": "Table 7: OpenP5, mean over seeds",
    "figure3": "Figure 3: number of query tokens", "prompts read": "Over LLMs frozen earlier or later",
}  # fmt: skip


def build(profile: str) -> Path:
    """Render the report of a profile from its executed notebooks and results; returns the path of its first page.

    Raises:
        FileNotFoundError: the profile has no executed notebooks.
        ValueError: its results are of an earlier version.
    """
    folder, out = runs_dir() / profile / "notebooks", report_dir(profile)
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        where = os.path.relpath(folder)
        raise FileNotFoundError(f"no executed notebooks in {where}; make them: make study PROFILE={profile}")
    card = {"profile": profile, "commit": commit(), "rendered": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    return render_site(profile, notebooks=notebooks, results=runs_dir() / profile / "results.csv", out=out, card=card)


def render_site(profile: str, *, notebooks: Sequence[Path], results: Path, out: Path, card: dict[str, str]) -> Path:
    """Write the report of a profile to `out`, in place of what was there; returns the path of its index.html.

    Args:
        notebooks: executed ones; those that are not of the last run are left out.
        results: a results.csv, with a claims.csv beside it; either may be missing.
        card: facts about the report, name -> value.
    """
    run = Run.of(notebooks)
    fresh = out.with_name(f".{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    (fresh / "figures").mkdir(parents=True)
    for figure in sorted((out / "figures").glob("*.png")):
        if run.made(figure):
            shutil.copy2(figure, fresh / "figures")
    pages = []
    for path in run.notebooks:
        title, html = notebook_page(path)
        write_page(fresh / f"{path.stem}.html", html)
        pages.append(f'<li><a href="{quote(path.stem)}.html">{escape(title)}</a></li>')
    rows = claims = None
    if results.exists():
        rows = run.rows(read_results(results))
        write_text(fresh / "results.csv", rows.to_csv(index=False, lineterminator="\n"))
    if (source := results.with_name("claims.csv")).exists():
        claims = read_claims(source)
        shutil.copyfile(source, fresh / "claims.csv")
    body = _first_page(profile, rows, claims, fresh, pages, card)
    write_page(fresh / "index.html", page(f"ILM study: {profile}", body))
    replace_folder(fresh, out)
    return out / "index.html"


@dataclass(frozen=True)
class Run:
    """Which of the files in a profile's folder its last run made.

    Attributes:
        notebooks: the executed notebooks, in order.
        methods, seeds: what the last run covered; None: no notebook says so.
        query_tokens: the numbers of tokens in its figure 3; None: no notebook says so.
        started: when the notebooks of each number, "04", began to run.
    """

    notebooks: tuple[Path, ...]
    methods: frozenset[str] | None
    seeds: frozenset[int] | None
    query_tokens: frozenset[int] | None
    started: dict[str, float]

    @classmethod
    def of(cls, notebooks: Sequence[Path]) -> Run:
        """Read off the notebooks: those that look at all seeds (05 to 09) know methods and seeds of the run."""
        facts = {p: json.loads(p.read_text(encoding="utf-8"))["metadata"].get("papermill", {}) for p in notebooks}
        start = {
            p: datetime.fromisoformat(f["start_time"]).timestamp() if f.get("start_time") else 0.0
            for p, f in facts.items()
        }
        overall = [p for p in notebooks if "seeds" in facts[p].get("parameters", {})]
        settings = facts[max(overall, key=start.__getitem__)]["parameters"] if overall else {}
        methods = frozenset(settings["methods"]) if settings.get("methods") else None
        seeds = frozenset(settings["seeds"]) if settings.get("seeds") else None
        tokens = settings.get("ablations", {}).get("query_tokens")

        def counts(path: Path) -> bool:
            name = re.fullmatch(r"\d\d_[^-]+-(?:(?P<method>.+)-)?seed(?P<seed>\d+)", path.stem)
            if name is None:
                return True
            alien = methods is not None and name["method"] is not None and name["method"] not in methods
            return not alien and (seeds is None or int(name["seed"]) in seeds)

        kept = tuple(sorted(p for p in notebooks if counts(p)))
        started: dict[str, float] = {}
        for p in kept:
            started[p.name[:2]] = min(start[p], started.get(p.name[:2], math.inf))
        return cls(kept, methods, seeds, None if tokens is None else frozenset(tokens), started)

    def made(self, figure: Path) -> bool:
        """Whether this run made a figure: its notebook and its method are in the run, and it is not older than they."""
        gone = set() if self.methods is None else set(TRAINED) - self.methods
        if any(figure.stem.endswith(f" {method}") for method in gone):
            return False
        numbered = re.match(r"\d\d ", figure.stem) is not None
        begin = self.started.get(figure.name[:2], math.inf) if numbered else min(self.started.values(), default=0.0)
        return figure.stat().st_mtime >= begin

    def rows(self, results: pd.DataFrame) -> pd.DataFrame:
        """The results without methods, seeds and numbers of tokens that are no longer in the run (ablations have seeds
        of their own)."""
        keep = pd.Series(True, index=results.index)
        if self.methods is not None:
            keep &= ~results["method"].isin(set(TRAINED) - self.methods)
        if self.seeds is not None:
            main = results["table"].str.startswith("table")
            keep &= ~main | results["seed"].isna() | results["seed"].isin(self.seeds)
        if self.query_tokens is not None:
            wanted = {f"query_tokens={n}" for n in self.query_tokens}
            keep &= (results["table"] != "figure3") | results["variant"].isin(wanted)
        return results[keep].reset_index(drop=True)


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
        "<h2>Claims of the paper</h2>",
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


def _result_tables(results: pd.DataFrame) -> str:
    """Key tables open (both tasks together), the rest folded."""
    key: list[str] = []
    more: list[str] = []
    for (table, dataset, history), part in results.groupby(["table", "dataset", "history"], sort=True):
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
            main = task == summary and not curve and history != "excluded"
            (key if main else more).append(html_table(df, caption, best_cells(df)))
    folded = f"<details><summary>{len(more)} more tables</summary>{''.join(more)}</details>" if more else ""
    return "".join(key) + folded
