"""Executed notebooks as pages: mathematics drawn, setup folded, figures with alt texts."""

from __future__ import annotations

import ast
import base64
import io
import re
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from ilm_lib.profiles import ROOT
from ilm_lib.report.html import SCROLL_HINT, page

# nbconvert's plainest template. Cells that set things up are folded, neighbours together, under one title.
_TEMPLATE = """{%- extends 'basic/index.html.j2' -%}
{%- block codecell -%}
{%- if cell.metadata.get('fold') -%}
<details class="setup"><summary>{{ cell.metadata.fold | escape }}</summary>{%- endif -%}
{{ super() }}
{%- if cell.metadata.get('unfold') -%}</details>{%- endif -%}
{%- endblock codecell -%}"""
_FOLDED = {"parameters": "parameters", "injected-parameters": "those of this run"}


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
    width, height = (float(re.findall(rb'\b%s="([\d.]+)pt"' % side, svg)[0]) / 11 for side in (b"width", b"height"))
    style = f"width:{width:.2f}em;height:{height:.2f}em;vertical-align:{-depth / 11:.2f}em"
    data = base64.b64encode(svg).decode()
    return f'<img class="math" alt="{escape(tex.strip())}" style="{style}" src="data:image/svg+xml;base64,{data}">'


_CODE = re.compile(r"(```.*?```|~~~.*?~~~|`[^`\n]+`)", re.S)


def _math_block(match: re.Match) -> str:
    return f'\n<div class="equation">{math_image(match[1])}</div>\n'


def draw_math(markdown: str) -> str:
    """Replace $...$ and $$...$$ outside of code by images, since MathJax would come from the network."""
    parts = _CODE.split(markdown)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\$\$(.+?)\$\$", _math_block, parts[i], flags=re.S)
        parts[i] = re.sub(r"(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", lambda m: math_image(m[1]), parts[i])
    return "".join(parts)


def notebook_page(path: Path, back: Sequence[tuple[str, str]] = (("Report", "index.html"),)) -> tuple[str, str]:
    """(title, HTML) of an executed notebook: code without prompts, setup folded, no stderr, links to the pages above.

    Args:
        back: (text, address) of the pages above this one.

    Raises:
        FileNotFoundError: there is no such notebook.
    """
    import nbformat
    from jinja2 import DictLoader
    from nbconvert import HTMLExporter

    notebook = nbformat.read(path, as_version=4)
    title = heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+\s+(.+?)\s*$", cell.source, re.M)
            title = title or (headings[0] if headings else "")
            heading = headings[-1] if headings else heading
            cell.source = draw_math(cell.source)
        elif cell.cell_type == "code":
            cell.outputs = [_shown(o, plain_title(heading)) for o in cell.outputs if o.get("name") != "stderr"]
    _fold(notebook.cells)
    notebook.metadata.pop("widgets", None)
    title = plain_title(title) or path.stem
    if run := re.search(r"^[^-]*-(?:(.+)-)?seed(\d+)$", path.stem):  # 04_phase2-ILM-rand-seed0: which run this page is
        title += f" ({run[1] + ', ' if run[1] else ''}seed {run[2]})"
    exporter = HTMLExporter(
        template_name="basic", template_file="page", extra_loaders=[DictLoader({"page": _TEMPLATE})],
        exclude_input_prompt=True, exclude_output_prompt=True, exclude_anchor_links=True, embed_images=True,
    )  # fmt: skip
    # Pictures lie beside the notebooks, not beside their executed copies.
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"path": str(ROOT / "notebooks")}})
    body = re.sub(r"<table>.*?</table>", _scrolling, body, flags=re.S)
    return title, page(title, body, back)


def _scrolling(table: re.Match) -> str:
    """A table of a markdown cell, which `html_table` has not made: on a phone it scrolls, and not the page."""
    return f'<div class="ilm-scroll" tabindex="0" role="group">{SCROLL_HINT}{table[0]}</div>'


def plain_title(heading: str) -> str:
    """A heading without Markdown's signs."""
    return re.sub(r"[*`_$]", "", heading)


def _fold(cells: Sequence[Any]) -> None:
    """Mark where a run of cells that set things up begins, with its title, and where it ends."""
    for folded, run in groupby(cells, key=lambda cell: bool(_setup(cell))):
        if folded:
            setup = list(run)
            setup[0].metadata["fold"] = f"Setup: {', '.join(dict.fromkeys(map(_setup, setup)))}"
            setup[-1].metadata["unfold"] = True


def _setup(cell: Any) -> str:
    """What a cell sets up: parameters or imports; else ""."""
    if cell.cell_type != "code":
        return ""
    for tag in cell.metadata.get("tags", ()):
        if tag in _FOLDED:
            return _FOLDED[tag]
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError:  # magics
        return ""
    return "imports" if statements and isinstance(statements[0], (ast.Import, ast.ImportFrom)) else ""


def _shown(output: Any, heading: str) -> Any:
    """An output as the page shows it: no widgets, no style sheets of its own, an image with a text in its place."""
    data = output.get("data", {})
    data.pop("application/vnd.jupyter.widget-view+json", None)
    if "text/html" in data:
        data["text/html"] = re.sub(r"<style\b.*?</style>", "", data["text/html"], flags=re.S)
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            output.metadata.setdefault(kind, {}).setdefault("alt", f"Figure of the section “{heading}”")
    return output
