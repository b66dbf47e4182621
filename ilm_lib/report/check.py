"""Look at finished pages as readers do: links, alt texts, console, overflow and contrast, wide, narrow, dark, on paper.

`python -m ilm_lib.report check FOLDER` prints a line a problem. Links, alt texts and outside resources are read off the
files; the rest needs Chromium. Pages that an earlier version made are followed as targets of links and no further.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ilm_lib.report.browser import NoBrowser, chromium
from ilm_lib.report.html import GENERATOR

__all__ = ["NoBrowser", "check_files", "check_folder"]

# (what it is called, pixels, dark, on paper); A4 less its margins has about 695 CSS pixels
_LOOKS = (
    ("paper", 695, False, True), ("1,280 px light", 1280, False, False), ("1,280 px dark", 1280, True, False),
    ("390 px light", 390, False, False), ("390 px dark", 390, True, False),
)  # fmt: skip


def check_folder(folder: Path) -> list[str]:
    """Every problem of the pages in a folder, a line each.

    Raises:
        FileNotFoundError: no page of this version is there.
        NoBrowser: no Chromium.
    """
    pages = [p for p in sorted(folder.rglob("*.html")) if GENERATOR in p.read_text(encoding="utf-8")[:1000]]
    if not pages:
        raise FileNotFoundError(f"no pages of this version in {folder}; make them: make study, make publish")
    return check_files(pages, folder) + _check_in_browser(pages, folder)


# --- what the files say ---


@dataclass
class Page(HTMLParser):
    """What a page holds: ids, links, images, and everything it fetches."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    images: list[tuple[str, str | None]] = field(default_factory=list)  # (src, alt)
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(str(values["id"]))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        elif tag == "img":
            self.images.append((values.get("src") or "", values.get("alt")))
        source = values.get("href") if tag == "link" else values.get("src")
        if source and tag != "a":
            self.fetched.append(source)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


@lru_cache(256)
def _read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def check_files(pages: Iterable[Path], folder: Path) -> list[str]:
    """Dead links, missing or useless alt texts, resources from outside, and ways back that are missing."""
    _read.cache_clear()
    problems = []
    for path in pages:
        page, name = _read(path), path.relative_to(folder)
        said = [f"dead link: {link}" for link in dict.fromkeys(page.links) if _is_dead(path, link)]
        said += [f"image without a useful alt text: {src[:60]}" for src, alt in page.images if _is_useless(src, alt)]
        said += [f"fetched from outside: {url[:80]}" for url in page.fetched if _is_outside(url)]
        said += [f"missing file: {url[:80]}" for url in page.fetched if not _is_outside(url) and _is_dead(path, url)]
        problems += [f"{name}: {problem}" for problem in said]
    return problems


def _is_outside(url: str) -> bool:
    return url.startswith("//") or urlsplit(url).scheme in ("http", "https", "ftp")


def _is_dead(page: Path, link: str) -> bool:
    """Whether a link within these files leads nowhere; those to the outside are not followed."""
    parts = urlsplit(link)
    if parts.scheme or link.startswith("//"):
        return False
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.exists():
        return True
    if not parts.fragment or target.suffix != ".html":
        return False
    return unquote(parts.fragment) not in _read(target).ids


def _is_useless(src: str, alt: str | None) -> bool:
    """No alt text, or one that merely repeats a file's name."""
    if alt is None or not alt.strip():
        return True
    words = lambda text: re.sub(r"[\W_]+", " ", text).strip().lower()
    name = "" if src.startswith("data:") else words(Path(unquote(urlsplit(src).path)).stem)
    filelike = re.search(r"\.(png|jpe?g|svg|gif)$", alt.strip(), re.I) is not None
    return filelike or words(alt) == name or "no description has been provided" in alt.lower()


# --- what a browser says ---


def _check_in_browser(pages: Iterable[Path], folder: Path) -> list[str]:
    probe, problems = (Path(__file__).parent / "probe.js").read_text(encoding="utf-8"), []
    with chromium() as tab:
        for path in pages:
            name = path.relative_to(folder)
            tab.look(1280)
            tab.open(path.resolve().as_uri())
            for look, width, dark, paper in _LOOKS:
                tab.look(width, dark=dark, paper=paper)
                problems += [f"{name}: {look}: {problem}" for problem in tab.evaluate(probe)]
                if paper:  # there the style sheet opens what is folded; on screens the reader does
                    tab.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
            tab.look(1280)
            if not tab.send("Page.printToPDF", transferMode="ReturnAsStream")["stream"]:
                problems.append(f"{name}: cannot be printed")
            problems += [f"{name}: console: {message}" for message in _console(tab.events)]
    return problems


def _console(events: list[dict]) -> list[str]:
    """Errors and warnings that a page left in the console."""
    said = []
    for event in events:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            said.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            said.append(f"{params['entry']['text']} {params['entry'].get('url', '')}".strip())
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            said.append(" ".join(str(a.get("value", a.get("description", ""))) for a in params["args"]))
    return [message.splitlines()[0] for message in dict.fromkeys(said)]
