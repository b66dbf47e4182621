"""The HTML report of a profile.

`python -m ilm_lib.report PROFILE` renders `reports/PROFILE/index.html` from the executed notebooks and the results in
`runs/PROFILE`, so that a report never mixes two runs. What notebooks show can be imported from here as well: tables
(`tables`), plots (`figures`, `result_figures`, `style`), results and claims (`ledger`).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from ilm_lib.card import commit
from ilm_lib.figures import (  # noqa: F401 (public here too)
    plot_item_map, plot_long_tail, plot_loss_gap, plot_losses, plot_query_similarity, plot_sequence_lengths,
)  # fmt: skip
from ilm_lib.ledger import VERDICTS, read_claims, read_results, write_claims, write_results, write_text  # noqa: F401
from ilm_lib.paper import PAPER, PUBLISHED_ML100K
from ilm_lib.profiles import reports_dir, runs_dir
from ilm_lib.result_figures import (  # noqa: F401
    plot_elm_tasks, plot_metric_by_method, plot_prompts_read, plot_query_tokens, plot_readings, plot_speed,
)  # fmt: skip
from ilm_lib.site import html_table, notebook_page, page, verdict_badge, write_page
from ilm_lib.style import save_figure, use_style  # noqa: F401
from ilm_lib.tables import best_cells, claims_table, show, table_beside_paper  # noqa: F401

_CAPTIONS = {
    "table1": "Table 1: ELM tasks", "table3": "Table 3: OpenP5 recommendation", "table4": "Table 4: losses of phase 1",
    "table6": "Table 6: ELM tasks, mean over seeds", "table7": "Table 7: OpenP5, mean over seeds",
    "figure3": "Figure 3: number of query tokens", "prompts read": "Over LLMs frozen earlier or later",
}  # fmt: skip


def _result_tables(results: pd.DataFrame) -> str:
    """Key tables open (both tasks together), the rest folded."""
    key, more = [], []
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
    return "".join(key) + folded or "<p>No results yet.</p>"


def _drop_stale(out: Path, notebooks: Iterable[Path]) -> None:
    """Remove numbered pages and figures that none of these notebooks made: they are of another run."""
    made = {Path(path).stem for path in notebooks}
    started: dict[str, float] = {}
    for path in notebooks:
        run = json.loads(Path(path).read_text(encoding="utf-8"))["metadata"].get("papermill", {})
        start = datetime.fromisoformat(run["start_time"]).timestamp() if run else 0.0
        number = Path(path).stem[:2]
        started[number] = min(start, started.get(number, math.inf))
    for file in out.glob("[0-9][0-9]_*.html"):
        if file.stem not in made:
            file.unlink()
    for file in out.glob("figures/[0-9][0-9] *.png"):
        if file.stat().st_mtime < started.get(file.name[:2], math.inf):
            file.unlink()


def render_site(profile: str, *, notebooks: list[Path], results: Path, out: Path, card: dict) -> Path:
    """Write the report of a profile to `out` and return the path of its index.html.

    Each executed notebook becomes a page; the first page holds the tables of `results`
    beside the paper's, the claims of the `claims.csv` next to `results`, the figures found
    in `out/figures/*.png` and the facts of `card` (name -> value). Nothing is fetched from
    the network when the pages are read. Pages and figures of earlier runs are removed.
    """
    out, results = Path(out), Path(results)
    out.mkdir(parents=True, exist_ok=True)
    pages = []
    for path in sorted(map(Path, notebooks)):
        title, html = notebook_page(path)
        write_page(out / f"{path.stem}.html", html)
        pages.append(f'<li><a href="{quote(path.stem)}.html">{escape(title)}</a></li>')
    _drop_stale(out, notebooks)
    for source in (results, results.with_name("claims.csv")):
        if source.exists() and source.resolve() != (out / source.name).resolve():
            shutil.copyfile(source, out / source.name)
    rows = read_results(out / "results.csv") if (out / "results.csv").exists() else None
    claims = read_claims(out / "claims.csv") if (out / "claims.csv").exists() else None

    published = rows is not None and rows["dataset"].str.casefold().isin(PAPER["dataset"].str.casefold()).any()
    beside = (
        "Our numbers stand beside the paper's in grey."
        if published
        else "The paper has no such data set, so numbers compare within a table only; the claims say what carries over."
    )
    body = [
        f"<h1>Item-Language Model study: {escape(profile)}</h1>",
        '<p class="lead">The Item-Language Model (<a href="https://arxiv.org/abs/2406.02844">arXiv 2406.02844</a>) '
        "feeds collaborative filtering embeddings of items to a frozen language model through an item encoder that "
        "was first aligned with text. This is a re-implementation, run on one profile: every number comes from an "
        f"executed notebook below, which ends with the card of its run. {beside}</p>",
        "<h2>Claims of the paper</h2>",
    ]
    if claims is None or claims.empty:
        body.append("<p>No claims tested yet.</p>")
    else:
        counts = claims["verdict"].value_counts()
        body.append(f"<p>{''.join(verdict_badge(v, f'{counts[v]} {v}') for v in VERDICTS if v in counts)}</p>")
        body.append(html_table(claims_table(claims)))
    body += ["<h2>Results</h2>", "<p>No results yet.</p>" if rows is None else _result_tables(rows)]
    figures = sorted((out / "figures").glob("*.png"))
    if figures:
        cells = (
            f'<figure><a href="figures/{url}"><img src="figures/{url}" alt="{name}" loading="lazy"></a>'
            f"<figcaption>{name}</figcaption></figure>"
            for url, name in ((quote(f.name), escape(re.sub(r"[_-]+", " ", f.stem))) for f in figures)
        )
        body.append(f'<h2>Figures</h2><div class="figures">{"".join(cells)}</div>')
    body.append(f"<h2>Notebooks</h2><ol class='pages'>{''.join(pages)}</ol>" if pages else "")
    files = [f'<a href="{n}">{n}</a>' for n in ("results.csv", "claims.csv") if (out / n).exists()]
    facts = pd.DataFrame({"what": list(map(str, card)), "value": list(map(str, card.values()))})
    body.append(f"<h2>Data of this report</h2><p>{' · '.join(files)}</p>{html_table(facts) if len(facts) else ''}")
    write_text(out / "index.html", page(f"ILM study: {profile}", "\n".join(body)))
    return out / "index.html"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: render the report of one profile from its executed notebooks."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) != 1 or argv[0].startswith("-"):
        print("usage: python -m ilm_lib.report PROFILE", file=sys.stderr)
        return 2
    profile = argv[0]
    folder, out = runs_dir() / profile / "notebooks", reports_dir() / profile
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        where = os.path.relpath(folder)
        print(f"no executed notebooks in {where}; make them: make study PROFILE={profile}", file=sys.stderr)
        return 1
    card = {"profile": profile, "commit": commit(), "rendered": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    index = render_site(profile, notebooks=notebooks, results=runs_dir() / profile / "results.csv", out=out,
                        card=card)
    print(os.path.relpath(index))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
