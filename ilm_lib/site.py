"""Pieces of HTML: tables, executed notebooks as pages, the frame of the report's first page.

A report is self-contained: no script, style sheet or font is fetched from elsewhere, so one
opened from a disk or an archive years later still looks the same.
"""

from __future__ import annotations

import base64
import io
import re
from html import escape
from pathlib import Path

import pandas as pd

from ilm_lib.ledger import write_text

VERDICT_CLASS = {
    "reproduced": "good", "not reproduced": "bad", "inconclusive": "open", "not tested": "none",
}  # fmt: skip

TABLE_CSS = """
.ilm-scroll{overflow-x:auto;margin:1em 0 1.6em}
.ilm-table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;line-height:1.4}
.ilm-table caption{text-align:left;padding:0 0 .5em;font-size:.92rem;font-weight:600;white-space:nowrap}
.ilm-table th,.ilm-table td{padding:.3em .7em;border:0;border-bottom:1px solid #8883;text-align:right;
 white-space:nowrap;background:none;vertical-align:top}
.ilm-table+.ilm-table{margin-top:1em}
.ilm-table thead th{font-weight:600;vertical-align:bottom}
.ilm-table thead th[colspan]{text-align:center;border-left:1px solid #8883}
.ilm-table .text,.ilm-table tbody th{text-align:left!important}
.ilm-table .wrap{white-space:normal;min-width:7em}.ilm-table .wrap.long{min-width:8em}
.ilm-table tbody th{font-weight:500}
.ilm-table td.paper{opacity:.68}
.ilm-table td b{font-weight:700}
.ilm-note{font-size:.8rem;opacity:.75;margin:-1.1em 0 1.6em;max-width:52rem}
.ilm-v{padding:.1em .6em;border-radius:1em;font-weight:600;font-size:.8rem;white-space:nowrap}
.ilm-v.good{background:#d7f0e3;color:#0b5b3b}.ilm-v.bad{background:#fbdfd3;color:#8a2d04}
.ilm-v.open{background:#fdf0c8;color:#6b4e00}.ilm-v.none{background:#e8eaed;color:#45505b}
"""

PAGE_CSS = """
*{box-sizing:border-box}
body{margin:0;background:#f5f6f8;color:#1d2733;font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
 "Liberation Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2.4rem 1.4rem 4rem;background:#fff;min-height:100vh}
h1{font-size:1.75rem;line-height:1.25;margin:0 0 .4em}h2{font-size:1.25rem;margin:2.4em 0 .5em;
 padding-bottom:.3em;border-bottom:2px solid #0072b2}
p{max-width:46rem}a{color:#005a8e}code{font-size:.9em;background:#eef1f4;padding:.1em .35em;border-radius:3px}
.lead{font-size:1.04rem}.count{margin-right:.6em}
ol.pages{padding-left:1.3em}ol.pages li{margin:.25em 0}
.figures{display:grid;align-items:start;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.4rem}
figure{margin:0;border:1px solid #e1e5ea;border-radius:6px;padding:.8rem;background:#fff}
figure img{max-width:100%;height:auto;display:block;margin:auto}
figcaption{font-size:.85rem;color:#4a5662;margin-top:.5em}
details{margin:.6em 0}summary{cursor:pointer;color:#005a8e}
footer{margin-top:3rem;font-size:.82rem;color:#5b6773}
@media(max-width:40rem){main{padding:1.3rem .9rem 3rem}h1{font-size:1.4rem}}
"""


def page(title: str, body: str) -> str:
    """A whole HTML document around `body`."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PAGE_CSS}{TABLE_CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def verdict_badge(verdict: str, text: str = "") -> str:
    """A verdict (or `text` about it) in its colour."""
    return f'<span class="ilm-v {VERDICT_CLASS.get(verdict, "none")}">{escape(text or verdict)}</span> '


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[\d\s.,±†%+−–<>\[\]()e-]*", text) is not None


def html_table(df: pd.DataFrame, caption: str = "", bold: frozenset[tuple[int, int]] = frozenset()) -> str:
    """`df` as HTML: merged column heads, numbers to the right, `bold` cells by (row, column) position.

    The index is shown only if it says something (it is not a plain count). `df.attrs["note"]`
    follows the table in small print. Cells of a column "verdict" are coloured. A table too wide
    for a page goes on below it, between two groups of its merged heads.
    """
    tables = "".join(
        _table(df.iloc[:, start:end], "" if start else caption, {(i, j - start) for i, j in bold if start <= j < end})
        for start, end in _blocks(df)
    )
    note = f'<p class="ilm-note">{escape(df.attrs["note"])}</p>' if df.attrs.get("note") else ""
    return f'<div class="ilm-scroll">{tables}</div>{note}'


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
    textual = [not all(_is_number(row[j]) for row in text) for j in range(len(heads))]

    def cell(i: int, j: int) -> str:
        value, name = escape(text[i][j]), str(heads[j][-1])
        css = ["text"] if textual[j] else []
        css += ["wrap"] * (textual[j] and len(value) > 16) + ["long"] * (len(value) > 34)
        css += ["paper"] if len(heads[j]) > 2 and name != "ours" else []
        if name == "verdict":
            value = verdict_badge(text[i][j])
        value = f"<b>{value}</b>" if (i, j) in bold else value
        return f'<td class="{" ".join(css)}">{value}</td>'

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
    caption = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<table class="ilm-table">{caption}<thead>{head}</thead><tbody>{body}</tbody></table>'


# --- executed notebooks ---


def math_image(tex: str) -> str:
    """TeX as an inline SVG image, drawn by matplotlib; what it cannot draw stays as TeX code."""
    from matplotlib import rc_context
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    out = io.BytesIO()
    try:
        with rc_context({"mathtext.fontset": "cm", "svg.hashsalt": "ilm"}):
            depth = math_to_image(f"${' '.join(tex.split())}$", out, FontProperties(size=12), dpi=72, format="svg")
    except (ValueError, RuntimeError):
        return f"<code>{escape(tex.strip())}</code>"
    svg = re.sub(rb"<metadata>.*?</metadata>", b"", out.getvalue(), flags=re.S)  # holds the date of today
    width, height = (float(x) / 12 for x in re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', svg).groups())
    style = f"width:{width:.2f}em;height:{height:.2f}em;max-width:none;display:inline"
    style += f";vertical-align:{-depth / 12:.2f}em"
    data = base64.b64encode(svg).decode()
    return f'<img alt="{escape(tex.strip())}" style="{style}" src="data:image/svg+xml;base64,{data}">'


_CODE = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]+`)", re.S)


def draw_math(markdown: str) -> str:
    """Replace $...$ and $$...$$ outside of code by images, since MathJax would come from the network."""
    parts = _CODE.split(markdown)
    for i in range(0, len(parts), 2):
        block = r'\n<div style="text-align:center;margin:.8em 0">{}</div>\n'.replace(r"\n", "\n")
        parts[i] = re.sub(r"\$\$(.+?)\$\$", lambda m: block.format(math_image(m[1])), parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", lambda m: math_image(m[1]), parts[i])
    return "".join(parts)


def without_network(html: str) -> str:
    """Drop scripts and style sheets that would be fetched, and the set-up of those libraries."""
    html = re.sub(r"<script\b[^>]*\bsrc\s*=[^>]*>.*?</script>", "", html, flags=re.S | re.I)
    html = re.sub(r"<link\b[^>]*\bhref\s*=\s*[\"']?\s*(?:https?:)?//[^>]*>", "", html, flags=re.I)
    html = re.sub(r"<script type=\"text/x-mathjax-config\">.*?</script>", "", html, flags=re.S)
    return re.sub(r"<script type=\"module\">(?:(?!</script>).)*mermaid.*?</script>", "", html, flags=re.S)


def shared_style(html: str, name: str = "notebook.css") -> tuple[str, str]:
    """A page with a link in place of its long style sheets, and those: they are the same for every notebook."""
    sheets: list[str] = []

    def link(match: re.Match) -> str:
        if len(match[1]) < 5000:
            return match[0]
        sheets.append(match[1])
        return f'<link rel="stylesheet" href="{name}">' if len(sheets) == 1 else ""

    return re.sub(r"<style[^>]*>(.*?)</style>", link, html, flags=re.S), "\n".join(sheets)


def write_page(path: Path, html: str) -> None:
    """Write the page of a notebook to `path`, its long style sheets to notebook.css beside it, once a folder."""
    html, css = shared_style(html)
    sheet = path.with_name("notebook.css")
    if not sheet.exists() or sheet.read_text(encoding="utf-8") != css:
        write_text(sheet, css)
    write_text(path, html)


def notebook_page(path: Path) -> tuple[str, str]:
    """(title, HTML) of an executed notebook: code without prompts, no stderr, a link to the report.

    Raises:
        FileNotFoundError: there is no such notebook.
    """
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    title = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = re.search(r"^#+\s+(.+?)\s*$", cell.source, re.M)
            title = title or (heading[1] if heading else "")
            cell.source = draw_math(cell.source)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata.pop("widgets", None)
    title = re.sub(r"[*`_$]", "", title) or path.stem
    if run := re.search(r"^[^-]*-(?:(.+)-)?seed(\d+)$", path.stem):  # 04_phase2-ILM-rand-seed0: which run this page is
        title += f" ({run[1] + ', ' if run[1] else ''}seed {run[2]})"
    notebook.metadata["title"] = title
    exporter = HTMLExporter(
        template_name="lab", exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True
    )
    html, _ = exporter.from_notebook_node(notebook)
    html = without_network(html)
    back = '<p style="max-width:60rem;margin:1rem auto;font:15px sans-serif"><a href="index.html">← Report</a></p>'
    width = "<style>body>main{max-width:60rem;margin:0 auto}</style>"
    return title, re.sub(r"(<body\b[^>]*>)", lambda m: m[1] + width + back, html, count=1)
