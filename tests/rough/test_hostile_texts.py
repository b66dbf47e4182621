"""Hostile titles in every place where a page, a card or a command shows a text of the data."""

import nbformat
import numpy as np
import pandas as pd
import pytest
from markup import HOSTILE, Page

from ilm_lib.report.data_plots import plot_item_map
from ilm_lib.report.html import html_table, page
from ilm_lib.report.notebook_pages import notebook_page
from ilm_lib.report.style import alt_text, save_figure
from ilm_lib.report.tables import show

OURS = {script for script in Page.of_text(page("t", "")).scripts}


def in_a_table(text: str, folder) -> str:
    frame = pd.DataFrame({text: [text], "title": [text]}, index=pd.Index([text], name=text))
    frame.attrs["note"] = text
    return page("t", html_table(frame, text))


def in_claims(text: str, folder) -> str:
    return page("t", html_table(pd.DataFrame({"claim": [text], "verdict": [text], "reason": [text]})))


def in_a_title(text: str, folder) -> str:
    return page(text, "", [(text, "index.html")])


def in_a_notebook(text: str, folder) -> str:
    """Printed, shown as a table, and returned by a cell."""
    output = lambda kind, **rest: nbformat.v4.new_output(kind, **rest)
    cell = nbformat.v4.new_code_cell(f"print({text!r})")
    cell.outputs = [
        output("stream", name="stdout", text=text),
        output("execute_result", data={"text/plain": text}, execution_count=1),
        output("display_data", data={"text/html": show(pd.DataFrame({"title": [text]}), text).data}),
    ]
    path = folder / "01_data.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Data"), cell]), path)
    return notebook_page(path)[1]


@pytest.mark.parametrize("text", HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
@pytest.mark.parametrize("place", [in_a_table, in_claims, in_a_title, in_a_notebook])
def test_no_text_acts_in_a_page(place, text, tmp_path):
    found = Page.of_text(place(text, tmp_path))
    assert not found.wrong(OURS)
    if text.isascii() and place is not in_a_title:
        shown = " ".join("".join(found.words).split())
        assert " ".join(text.split()) in shown  # as it is, and not what it would have become


@pytest.mark.parametrize(
    "bad", ["<script>x</script>", "<img src=x onerror=y>", '<a href="javascript:x">', "<td>", "<base>"]
)
def test_what_acts_is_found(bad):
    assert Page.of_text(page("t", bad)).wrong(OURS)


@pytest.mark.parametrize("text", HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_every_genre_can_be_drawn(text, tmp_path):
    figure = plot_item_map(np.eye(4)[:, :2], [text, text, "Drama", "$"], text[:80])
    save_figure(figure, tmp_path / "map.png")
    assert alt_text(tmp_path / "map.png").startswith(" ".join(text.split())[:20])
