"""The pages above all reports, `reports/index.html` and `reports/findings.html`, and the way of a report there."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path

import pandas as pd

from ilm_lib.files import replace_folder
from ilm_lib.profiles import ROOT, report_dir
from ilm_lib.report.html import back_links, page, verdict_badge, write_page
from ilm_lib.report.markdown import render_markdown
from ilm_lib.report.site import about
from ilm_lib.report.verdicts import VERDICTS

REPORTS = ROOT / "reports"
_FIRST = ("toy", "ml100k", "ml1m", "beauty", "clothing")
_ABOUT = {"speed": "What each step costs, beside the way it is usually written."}


def publish(profile: str, reports: Path = REPORTS) -> Path:
    """Copy the finished report of a profile's run to `reports`, in place of the old one; make the pages above it anew.

    Raises:
        FileNotFoundError: the profile has no finished report.
    """
    source, target = report_dir(profile), reports / profile
    if not (source / "index.html").is_file():
        raise FileNotFoundError(f"no finished report of {profile}; make it: make study PROFILE={profile}")
    fresh = reports / f".{profile}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh)
    index = fresh / "index.html"
    html = index.read_text(encoding="utf-8")
    up = back_links([("All reports", "../index.html"), ("What we found", "../findings.html")])
    index.write_text(html.replace('<nav class="back"></nav>', f'<nav class="back">{up}</nav>', 1), encoding="utf-8")
    replace_folder(fresh, target)
    landing(reports)
    return target / "index.html"


def landing(reports: Path = REPORTS) -> Path:
    """Write `index.html` (every report, with the version that made it) and `findings.html` (README.md as a page)."""
    readme = reports / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else "# What we found\n"
    html = render_markdown(text)
    contents = "".join(f'<li><a href="#{i}">{t}</a></li>' for i, t in re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', html))
    found = html.replace("</h1>", f'</h1>\n<nav class="contents"><ul>{contents}</ul></nav>', 1)
    write_page(reports / "findings.html", page("What we found", found, [("All reports", "index.html")]))
    short = re.search(r"^## In short\n(.+?)(?=^## |\Z)", text, re.M | re.S)
    profiles = [p.parent.name for p in reports.glob("*/index.html")]
    rank = {name: i for i, name in enumerate(_FIRST)} | {"speed": len(_FIRST) + len(profiles)}
    profiles.sort(key=lambda name: (rank.get(name.removesuffix("-scored"), len(_FIRST)), name))
    body = f"""<h1>An open study of the Item-Language Model</h1>
<p class="lead">Can a language model that is never changed understand what people watch and buy, when it is given an
item's place among all others as a few tokens? The paper
(<a href="https://arxiv.org/abs/2406.02844">arXiv 2406.02844</a>) says yes. Its claims, tested on open data.</p>
<h2>In short</h2>
{render_markdown(short[1]) if short else ""}
<p><a href="findings.html">All findings, with tables and reasons →</a></p>
<h2>Reports</h2>
<p>One for each profile, that is a data set and the size of the models on it. Every number in a report comes from an
executed notebook in it.</p>
<ul class="cards">{"".join(_card(reports / name) for name in profiles)}</ul>
<h2>Make them yourself</h2>
<pre><code>make study PROFILE=toy      # run it: the report is in runs/toy/report
make publish PROFILE=toy    # put that report here, and make this page anew</code></pre>"""
    write_page(reports / "index.html", page("Item-Language Model: reports", body))
    return reports / "index.html"


def _card(folder: Path) -> str:
    name = folder.name
    sentence = about(name) or _ABOUT.get(name, "")
    lines = [_scale(folder), _verdicts(folder), _version(folder)]
    said = "".join(f'<p class="soft">{line}</p>' for line in lines if line)
    return f'<li><h3><a href="{name}/index.html">{escape(name)}</a></h3><p>{escape(sentence)}</p>{said}</li>'


def _table(path: Path) -> pd.DataFrame:
    """A CSV file of any version of the study, as text; empty where there is none."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else pd.DataFrame()


def _scale(folder: Path) -> str:
    """How much was tested: users or texts, and seeds."""
    rows = _table(folder / "results.csv")
    if "table" not in rows:
        return f"{len(rows)} measurements" if len(rows) else ""
    tests = []
    ranked = "table3" if (rows["table"] == "table3").any() else "scoring"
    for table, task, what in ((ranked, "sequential", "test users"), ("table1", "all", "texts of films")):
        n = rows.loc[(rows["table"] == table) & (rows["task"] == task), "n"]
        tests += [f"{int(n.astype(int).max()):,} {what}"] if len(n) else []
    main = rows[rows["table"].isin(("table1", ranked))]
    seeds = len(set(main["seed"]) - {""})
    return ", ".join([*tests, f"{seeds} seed{'s' if seeds > 1 else ''}"] if seeds else tests)


def _verdicts(folder: Path) -> str:
    claims = _table(folder / "claims.csv")
    counts = claims["verdict"].value_counts() if len(claims) else {}
    return " ".join(verdict_badge(v, f"{counts[v]} {v}") for v in VERDICTS if v in counts)


def _version(folder: Path) -> str:
    """Which commit made a report, and when, as its own first page says."""
    html = (folder / "index.html").read_text(encoding="utf-8")
    found = {
        name: unescape(m[1])
        for name in ("commit", "rendered")
        if (m := re.search(rf"<td[^>]*>{name}</td>\s*<td[^>]*>(.*?)</td>", html))
    }
    if "commit" not in found:
        return "version not recorded"
    when = found.get("rendered", "")[:10] or _date(found["commit"])
    return f"Made by version {escape(found['commit'])}" + (f", {escape(when)}" if when else "")


def _date(commit: str) -> str:
    """The day of a commit; "" where git does not know it."""
    commit = commit.partition("+")[0]
    if not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        return ""
    try:
        done = subprocess.run(  # noqa: S603 (the commit is hexadecimal)
            ("git", "show", "-s", "--format=%cs", commit),  # noqa: S607 (whichever git is first)
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
