"""Markdown as HTML in the look of our pages: headings one can link to, tables that scroll, numbers to the right."""

from __future__ import annotations

import re
from html import unescape

import mistune

from ilm_lib.report.html import SCROLL_HINT, is_number


class _Pages(mistune.HTMLRenderer):
    def heading(self, text: str, level: int, **attributes: object) -> str:
        return f'<h{level} id="{slug(text)}">{text}</h{level}>\n'

    def table(self, text: str) -> str:
        rows = [re.findall(r"<(t[hd])>(.*?)</t[hd]>", row, re.S) for row in text.split("<tr>")[1:]]
        plain = [[unescape(re.sub(r"<[^>]+>", "", cell)) for _, cell in row] for row in rows]
        # A column is to the right if everything in it is a number; the first row is the head.
        textual = [not all(is_number(cell) for cell in column) for column in zip(*plain[1:])] or [True] * len(plain[0])

        def cell(tag: str, html: str, length: int, left: bool) -> str:
            css = ["text"] * left + ["wrap"] * (length > 16) + ["long"] * (length > 34)
            return f'<{tag} class="{" ".join(css)}">{html}</{tag}>'

        head, *body = (
            f"<tr>{''.join(cell(tag, c, len(t), left) for (tag, c), t, left in zip(row, texts, textual))}</tr>"
            for row, texts in zip(rows, plain)
        )
        table = f'<table class="ilm-table"><thead>{head}</thead><tbody>{"".join(body)}</tbody></table>'
        return f'<div class="ilm-scroll" tabindex="0" role="group">{SCROLL_HINT}{table}</div>\n'

    def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
        return f"<th>{text}</th>" if head else f"<td>{text}</td>"


def render_markdown(text: str) -> str:
    """Markdown, with tables, as HTML."""
    return str(mistune.create_markdown(renderer=_Pages(escape=False), plugins=["table"])(text))


def slug(heading: str) -> str:
    """The id of a heading: "The 24 ELM tasks" -> "the-24-elm-tasks"."""
    plain = unescape(re.sub(r"<[^>]+>", "", heading)).lower()
    return re.sub(r"[^\w]+", "-", plain).strip("-")
