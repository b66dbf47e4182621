"""Pieces of HTML: the frame of every page, tables, badges.

A report is self-contained: no script, style sheet or font is fetched from elsewhere, so one opened from a disk or an
archive years later still looks the same. All pages share `style.css`, which is written beside them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

import pandas as pd

from ilm_lib.files import write_text

VERDICT_CLASS = {
    "reproduced": "good", "not reproduced": "bad", "inconclusive": "open", "not tested": "none",
}  # fmt: skip

#: Who made a page: `check` looks at pages that carry it.
GENERATOR = '<meta name="generator" content="ilm_lib.report">'

SCROLL_HINT = '<p class="ilm-hint">scrolls sideways →</p>'

# Tables wider than their place get a hint; what is folded opens in print.
_SCRIPT = """<script>
const all=s=>[...document.querySelectorAll(s)];
const fit=()=>all('.ilm-scroll').forEach(e=>e.classList.toggle('wide',e.scrollWidth>e.clientWidth+1));
addEventListener('resize',fit);fit();
all('details').forEach(e=>e.addEventListener('toggle',fit));
let shut=[];
addEventListener('beforeprint',()=>{shut=all('details:not([open])');shut.forEach(e=>e.open=true)});
addEventListener('afterprint',()=>shut.forEach(e=>e.open=false));
</script>"""


@lru_cache(1)
def style_sheet() -> str:
    """The style sheet of all pages."""
    return (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def table_css() -> str:
    """The part of the style sheet that a table needs in a notebook."""
    return style_sheet().partition("/* --- tables")[2].partition("*/")[2].partition("/* --- end of tables")[0].strip()


def page(title: str, body: str, back: Sequence[tuple[str, str]] = ()) -> str:
    """A whole HTML document around `body`.

    Args:
        back: (text, address) of the pages above this one.
    """
    links = back_links(back)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{GENERATOR}'
        f'<title>{escape(title)}</title><link rel="stylesheet" href="style.css"></head>\n<body><main>\n'
        f'<nav class="back">{links}</nav>\n{body}\n</main>{_SCRIPT}</body></html>\n'
    )


def back_links(back: Sequence[tuple[str, str]]) -> str:
    """Links to the pages above one: (text, address) each."""
    return "".join(f'<a href="{escape(to)}">← {escape(text)}</a>' for text, to in back)


def write_page(path: Path, html: str) -> None:
    """Write a page, and the style sheet beside it."""
    sheet = path.with_name("style.css")
    if not sheet.exists() or sheet.read_text(encoding="utf-8") != style_sheet():
        write_text(sheet, style_sheet())
    write_text(path, html)


def verdict_badge(verdict: str, text: str = "") -> str:
    """A verdict (or `text` about it) in its colour."""
    return f'<span class="ilm-v {VERDICT_CLASS.get(verdict, "none")}">{escape(text or verdict)}</span>'


def is_number(text: str) -> bool:
    return re.fullmatch(r"[\d\s.,±†%+−–<>\[\]()e-]*", text) is not None


def html_table(df: pd.DataFrame, caption: str = "", bold: frozenset[tuple[int, int]] = frozenset()) -> str:
    """`df` as HTML: merged column heads, numbers to the right, `bold` cells by (row, column) position.

    The index is shown only if it says something (it is not a plain count). `df.attrs["note"]`
    follows the table in small print. A table with a column "verdict" is one of claims: coloured, and a card a row on a
    phone. A table too wide for a page goes on below it, between two groups of its merged heads.
    """
    tables = "".join(
        _table(df.iloc[:, start:end], "" if start else caption, {(i, j - start) for i, j in bold if start <= j < end})
        for start, end in _blocks(df)
    )
    note = f'<p class="ilm-note">{escape(df.attrs["note"])}</p>' if df.attrs.get("note") else ""
    named = f' aria-label="{escape(caption)}"' if caption else ""
    return f'<div class="ilm-scroll" tabindex="0" role="group"{named}>{SCROLL_HINT}{tables}</div>{note}'


def _blocks(df: pd.DataFrame, room: int = 118) -> list[tuple[int, int]]:
    """Where to break the columns (start, end), so that a block has about `room` characters and no group is torn."""
    if not isinstance(df.columns, pd.MultiIndex):
        return [(0, df.shape[1])]
    groups = df.columns.get_level_values(0)
    starts = [j for j in range(len(groups)) if j == 0 or groups[j] != groups[j - 1]]
    width = [3 + max(len(str(v)) for v in (df.columns[j][-1], *df.iloc[:, j])) for j in range(len(groups))]
    blocks = [[0, 0]]
    used = first = 3 + max(len(str(label)) for label in (df.index.name, *df.index))
    for start, end in zip(starts, [*starts[1:], len(groups)]):
        if blocks[-1][1] > blocks[-1][0] and used + sum(width[start:end]) > room:
            blocks.append([start, start])
            used = first
        blocks[-1][1] = end
        used += sum(width[start:end])
    return [(start, end) for start, end in blocks]


def _cells(column: pd.Series) -> list[str]:
    """The text of a column's cells: nothing for nothing, all fractions with as many decimals as the longest has."""
    text = ["" if v is None or v is pd.NA or v != v else str(v) for v in column.astype(object)]
    plain = [isinstance(v, float) and re.fullmatch(r"-?\d+\.\d+", t) is not None for v, t in zip(column, text)]
    decimals = max((len(t.partition(".")[2]) for t, p in zip(text, plain) if p), default=0)
    return [f"{float(t):.{decimals}f}" if p else t for t, p in zip(text, plain)]


def _table(df: pd.DataFrame, caption: str, bold: set[tuple[int, int]]) -> str:
    labelled = not isinstance(df.index, pd.RangeIndex)
    text = list(zip(*(_cells(df.iloc[:, j]) for j in range(df.shape[1]))))
    heads = [c if isinstance(c, tuple) else (c,) for c in df.columns]
    cards = any(names[-1] == "verdict" for names in heads)
    textual = [not all(is_number(row[j]) for row in text) for j in range(len(heads))]

    def cell(i: int, j: int) -> str:
        value, name = escape(text[i][j]), str(heads[j][-1])
        css = ["text"] if textual[j] else []
        css += ["wrap"] * (textual[j] and len(value) > 16) + ["long"] * (len(value) > 34)
        css += ["paper"] if len(heads[j]) > 2 and name != "ours" else []
        css += ["nothing"] * (value in ("", "–"))
        if name == "verdict":
            value = verdict_badge(text[i][j])
        value = f"<b>{value}</b>" if (i, j) in bold else value
        label = f' data-label="{escape(name)}"' if cards else ""
        return f'<td class="{" ".join(css)}"{label}>{value}</td>'

    head = ""
    depth = len(heads[0])
    for level in range(depth):
        row, j = "", 0
        while j < len(heads):
            end = j + 1
            while level < depth - 1 and end < len(heads) and heads[end][: level + 1] == heads[j][: level + 1]:
                end += 1
            span = f' colspan="{end - j}"' if depth > 1 and level < depth - 1 else ""
            row += f'<th{span} class="{"text" if textual[j] and not span else ""}">{escape(str(heads[j][level]))}</th>'
            j = end
        corner = f'<th class="text">{escape(str(df.index.name or "")) if level == depth - 1 else ""}</th>'
        head += f"<tr>{corner if labelled else ''}{row}</tr>"
    body = ""
    for i, label in enumerate(df.index):
        first = f"<th>{escape(str(label))}</th>" if labelled else ""
        body += f"<tr>{first}{''.join(cell(i, j) for j in range(len(heads)))}</tr>"
    size = ' class="long"' if len(caption) > 80 else ""
    caption = f"<caption{size}>{escape(caption)}</caption>" if caption else ""
    css = "ilm-table ilm-cards" if cards else "ilm-table"
    return f'<table class="{css}">{caption}<thead>{head}</thead><tbody>{body}</tbody></table>'
