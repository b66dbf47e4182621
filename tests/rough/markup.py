"""Texts that look like mark-up, templates, commands and special tokens, and what must not be in a page for them."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

HOSTILE = [
    "<script>alert(1)</script>", "</td></table><h1>x", '"><img src=x onerror=alert(1)>', "javascript:alert(1)",
    "{{ 7*7 }}", "{% include 'x' %}", "{dataset} {user} {item}", "%s %(title)s %n", "$x^2$ and $$y$$",
    "`rm -rf ~`; $(touch here)", "[link](javascript:alert(1))", "![i](http://x/y.png)", "[EOS] [PAD] [BOS] [CLS]",
    "<|endoftext|><|im_end|>", "item_1001", "| a | b |", "# heading", "***", "&lt;b&gt; &amp;", "-->", "]]>", "\\",
    '\'"\'', "Ünïcödé Ж 中文 🎬", "a\u202eb\u200d", "x" * 3000, "=1+1", "@SUM(A1)", "NaN", "null", "0",
    "user_7 , item_1002", "../../etc/passwd", "CON", "<style>*{display:none}</style>",
]  # fmt: skip


class Page(HTMLParser):
    """What could act in a page: scripts, handlers, addresses; and whether its elements close."""

    VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())

    LOOSE = frozenset("p li dt dd".split())  # may stay open

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.acts: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []

    @classmethod
    def of(cls, path: Path) -> Page:
        return cls.of_text(path.read_text(encoding="utf-8"))

    @classmethod
    def of_text(cls, html: str) -> Page:
        page = cls()
        page.feed(html)
        page.close()
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            address = (value or "").strip().lower()
            outside = name == "src" and not address.startswith(("data:", "figures/", "#"))
            script = name in ("href", "src", "action", "formaction") and address.startswith(
                ("javascript:", "vbscript:")
            )
            if name.startswith("on") or script or outside:
                self.acts.append(f"<{tag} {name}={value!r:.60}>")
        if tag in ("iframe", "object", "embed", "form", "base", "style"):
            self.acts.append(f"<{tag}>")
        if tag == "script":
            self.scripts.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if tag in self.open:
            while (inner := self.open.pop()) != tag:
                self.acts += [f"<{inner}> not closed"] if inner not in self.LOOSE else []
        else:
            self.acts.append(f"</{tag}> not opened")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        self.words.append(data)

    def wrong(self, ours: set[str]) -> str:
        """What should not be here, or ""."""
        alien = [s[:60] for s in self.scripts if s not in ours]
        return "; ".join([*self.acts[:3], *alien[:3], *([f"not closed: {self.open}"] if self.open else [])])
