"""Tables beside the paper's numbers, run cards and the HTML report.

`python -m ilm_lib.report PROFILE` renders `reports/PROFILE/index.html` from the executed
notebooks and the results in `runs/PROFILE`, so that a report never mixes two runs. What notebooks
need of the files beside this one (`ledger`: results and claims; `figures`, `result_figures`: plots;
`style`: their look) can be imported from here as well.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from IPython.display import HTML

from ilm_lib.artifacts import peak_memory_gib
from ilm_lib.figures import (  # noqa: F401 (public here too)
    plot_item_map, plot_long_tail, plot_loss_gap, plot_losses, plot_query_similarity, plot_sequence_lengths,
)  # fmt: skip
from ilm_lib.ledger import (  # noqa: F401
    CLAIM_COLUMNS, VERDICTS, Claim, check_results, read_claims, read_results, verdict, write_claims, write_results,
    write_text,
)  # fmt: skip
from ilm_lib.metrics import mean_se  # noqa: F401
from ilm_lib.paper import LOWER_IS_BETTER, METHODS, METRICS, PAPER, PAPER_SE, PUBLISHED_ML100K, RESULT_COLUMNS
from ilm_lib.profiles import ROOT, reports_dir, runs_dir
from ilm_lib.result_figures import (  # noqa: F401
    order_tasks, plot_elm_tasks, plot_metric_by_method, plot_prompts_read, plot_query_tokens, plot_readings, plot_speed,
    select, summarise,
)  # fmt: skip
from ilm_lib.site import TABLE_CSS, html_table, notebook_page, page, verdict_badge, write_page
from ilm_lib.style import MARKERS, PALETTE, save_figure, use_style  # noqa: F401

_SAME = [c for c in RESULT_COLUMNS if c not in ("seed", "value", "n")]
_CAPTIONS = {
    "table1": "Table 1: ELM tasks", "table3": "Table 3: OpenP5 recommendation", "table4": "Table 4: losses of phase 1",
    "table6": "Table 6: ELM tasks, mean over seeds", "table7": "Table 7: OpenP5, mean over seeds",
    "figure3": "Figure 3: number of query tokens", "prompts read": "Over LLMs frozen earlier or later",
}  # fmt: skip


def _cell(mean: float, se: float, binomial: bool = False) -> str:
    return f"{mean:.4f}" + ("" if math.isnan(se) else f" ± {se:.4f}") + ("†" if binomial else "")


def table_beside_paper(
    results: pd.DataFrame, table: str, dataset: str, paper_dataset: str | None = None, *, history: str,
    task: str | None = None, metrics: Sequence[str] = METRICS, rows: str = "method",
    paper: pd.DataFrame = PAPER, paper_table: str | None = None, paper_label: str = "paper",
) -> pd.DataFrame:  # fmt: skip
    """Our means over seeds beside the published ones, as text cells "0.1234 ± 0.0012".

    The error is the standard error over seeds; with one seed that of a binomial for hit rates,
    marked †, and none for the rest. Published numbers show only for the same history rule.

    Args:
        paper_dataset: whose published columns to show; by default those of `dataset`, if any.
        history: "kept", "excluded", or "" for text tasks; never mixed in one table.
        task: one task only; by default every task has its columns.
        rows: "method" (columns: task and prompt, metric, source) or "task" (columns: method, ...).

    Raises:
        ValueError: no such table, data set, history rule or task in `results`.
    """
    theirs = paper[(paper["table"] == (paper_table or table)) & (paper["history"] == history)]
    theirs = theirs[theirs["dataset"].str.casefold() == (paper_dataset or dataset).casefold()]
    theirs = theirs.merge(PAPER_SE, on=_SAME, how="left", suffixes=("", "_se")).assign(source=paper_label)
    if task is not None:
        theirs = theirs[theirs["task"] == task]
    only = {"task": task} if task is not None else {}
    ours = summarise(select(results, table=table, dataset=dataset, history=history, **only)).assign(source="ours")
    theirs = theirs.rename(columns={"value": "mean", "value_se": "se"}).assign(binomial=False, seeds=0)
    theirs = theirs.merge(ours[["task", "prompt", "metric"]].drop_duplicates())  # no column without ours
    both = pd.concat([part for part in (ours, theirs) if len(part)])
    both = both[both["metric"].isin(metrics)]
    tasks = order_tasks(both["task"])
    sources = ["ours", paper_label] if len(theirs) else ["ours"]

    def place(r: dict) -> tuple[tuple, tuple, tuple]:
        names = {"both": "both tasks", "all": "all tasks"}
        prompt = f"{r['prompt']} prompt" if r["prompt"] else ""
        group = [r["method"] if rows == "task" else names.get(r["task"], r["task"]), prompt]
        column = ", ".join(g for g in group if g), r["metric"], r["source"]
        method, at = METHODS.index(r["method"]), tasks.index(r["task"])
        outer = method if rows == "task" else at
        rank = outer, r["prompt"], METRICS.index(r["metric"]), sources.index(r["source"])
        return (at, r["task"]) if rows == "task" else (method, r["method"]), rank, column[: len(sources) + 1]

    cells = {place(r): _cell(r["mean"], r["se"], r["binomial"]) for r in both.to_dict("records")}
    index = [label for _, label in sorted({row for row, _, _ in cells})]
    columns = [c for _, c in sorted({(rank, c) for _, rank, c in cells})]
    heads = pd.MultiIndex.from_tuples(columns)
    out = pd.DataFrame("–", index=pd.Index(index, name=rows), columns=heads, dtype=object)
    for ((_, label), _, column), text in cells.items():
        out.at[label, column] = text
    most = int(ours["seeds"].max())
    stay = {"kept": "stay in", "excluded": "leave"}
    rule = f"Items of the history {stay[history]} the ranking. " if history else ""
    count = f"{most}" if ours["seeds"].min() == most else f"up to {most}"
    error = f"± standard error over {count} seeds. " if most > 1 else ""
    dagger = "† one seed: binomial standard error. " if ours["binomial"].any() else ""
    out.attrs["note"] = (rule + error + dagger).strip() or "One seed, no error known."
    return out


def best_cells(df: pd.DataFrame) -> frozenset[tuple[int, int]]:
    """Positions (row, column) of the best value of each column that holds a metric; ties all count.

    In a table with a row a task, the best method of each row instead. "Oracle" is a bound
    that has seen the answer, so it never counts.
    """
    by_row = df.index.name == "task"
    groups: dict[tuple, list[tuple[float, int, int]]] = {}
    for j, column in enumerate(df.columns):
        names = column if isinstance(column, tuple) else (column,)
        metric = next((n for n in names if n in METRICS), None)
        for i, label in enumerate(df.index):
            number = re.match(r"-?\d*\.?\d+", str(df.iat[i, j]))
            if metric and number and "Oracle" not in (label, names[0]):
                sign = -1 if metric in LOWER_IS_BETTER else 1
                groups.setdefault((i, *names[1:]) if by_row else (j,), []).append((sign * float(number[0]), i, j))
    return frozenset((i, j) for g in groups.values() if len(g) > 1 for v, i, j in g if v == max(g)[0])


def show(df: pd.DataFrame, caption: str = "") -> HTML:
    """A table for a notebook: numbers to the right, best value of each metric bold, scrolls when wide."""
    return HTML(f"<style>{TABLE_CSS}</style>{html_table(df, caption, best_cells(df))}")


def claims_table(claims: Iterable[Claim] | pd.DataFrame) -> pd.DataFrame:
    """Claims as text cells for `show`: verdict first, interval and p-value in reading form."""
    rows = claims if isinstance(claims, pd.DataFrame) else pd.DataFrame([asdict(c) for c in claims])

    def number(v: object) -> str:
        return f"{v:.4g}" if isinstance(v, float) else str(v)

    def p(v: float) -> str:
        return "–" if math.isnan(v) else "< 0.001" if v < 0.001 else f"{v:.3f}"

    cells = [
        (r["verdict"], r["claim"], number(r["paper"]), number(r["ours"]),
         "–" if math.isnan(r["ci_low"]) else f"[{r['ci_low']:+.4f}, {r['ci_high']:+.4f}]",
         p(r["p_value"]), str(r["seeds"]), r["evidence"])
        for r in rows.to_dict("records")
    ]  # fmt: skip
    return pd.DataFrame(cells, columns=["verdict", "claim", "paper", "ours", "95% interval", "p", "seeds", "evidence"])


# --- run card ---

_PACKAGES = ("torch", "transformers", "accelerate", "numpy", "scipy", "pandas", "implicit", "irspack")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Short hash of the checkout this package runs from, "+changes" if it was edited; else "unknown"."""

    def git(*words: str) -> str:
        done = subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside someone else's repository, whose commit says nothing.
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve().relative_to(ROOT)))
        # Reports are what a run writes, so they do not make the code another one.
        changed = git("status", "--porcelain", "--", ".", ":(exclude)reports")
        return git("rev-parse", "--short", "HEAD") + ("+changes" if changed else "")
    except (OSError, ValueError, subprocess.SubprocessError):
        return "unknown"


def _flat(values: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        yield from _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]


def run_card(
    params: dict, *, seed: int, device: object, precision: str, checksums: dict[str, str], started: float
) -> pd.DataFrame:
    """What a number needs beside it to be believed: two columns, what and value.

    Args:
        params: the run's parameters, nested or flat.
        checksums: SHA-256 of each input, by a short name; the first 16 digits are shown.
        started: `time.time()` at the start; gives the wall time in seconds.

    Raises:
        ValueError: `started` is not a wall clock time of the past.
    """
    wall = time.time() - started
    if not 0 <= wall < 1e8:
        raise ValueError("run_card: started must be time.time() at the start of the run")
    rows: list[tuple[str, object]] = [("commit", commit()), ("python", platform.python_version())]
    rows += [(name, _version(name)) for name in ("ilm-study", *_PACKAGES)]
    rows += [("seed", seed), ("device", device), ("precision", precision)]
    rows += [(f"sha256 {name}", digest[:16]) for name, digest in checksums.items()]
    rows += [("wall time", f"{wall:.1f} s"), ("peak memory", f"{peak_memory_gib():.2f} GiB")]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        rows.append(("peak GPU memory", f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB"))
    rows += [(f"params.{name}", value) for name, value in _flat(params)]
    # Reports are published: where things lie on one machine is nobody's business.
    places = [(str(ROOT) + os.sep, ""), (str(ROOT), "."), (str(Path.home()), "~")]
    text = [str(value) for _, value in rows]
    for place, short in places:
        text = [value.replace(place, short) if len(place) > 2 else value for value in text]
    return pd.DataFrame({"what": [name for name, _ in rows], "value": text})


# --- the site ---


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
