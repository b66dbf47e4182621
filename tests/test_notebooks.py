"""The form of the committed notebooks: cells, prose, mathematics, pictures and outputs. `test_study` runs them."""

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest

from ilm_lib.report.notebook_pages import math_image, notebook_page
from ilm_lib.settings import Params

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [*NOTEBOOKS, ROOT / "README.md", ROOT / "reports" / "README.md"]
WIDGET = "application/vnd.jupyter.widget-view+json"
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def cells(path: Path, kind: str = "code"):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == kind]


def tagged(path: Path, tag: str):
    return [c for c in cells(path) if tag in c.metadata.get("tags", [])]


def prose(path: Path) -> str:
    """The Markdown of a page."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n\n".join(c.source for c in cells(path, "markdown"))


def without_code(markdown: str) -> str:
    return re.sub(r"```.*?```|`[^`\n]+`", "", markdown, flags=re.S)


FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", re.S)


def formulas(markdown: str) -> tuple[list[str], str]:
    """The TeX of $...$ and $$...$$ outside of code, and what is left without it."""
    text = without_code(markdown)
    return [block or inline for block, inline in FORMULA.findall(text)], FORMULA.sub("", text)


# ------------------------------------------------------------ code


@each_notebook
def test_notebook_form(path):
    """15 to 35 cells, one parameters cell of plain literals, claims and run card at the end, short code."""
    all_cells = nbformat.read(path, 4).cells
    assert 15 <= len(all_cells) <= 35
    assert "parameters" in all_cells[1].metadata["tags"]
    assert len(tagged(path, "claims")) == len(tagged(path, "run-card")) == 1
    assert "run-card" in all_cells[-1].metadata["tags"]
    assert sum(c.source.count("\n") + 1 for c in cells(path)) <= 160
    for cell in cells(path)[3:]:  # parameters, settings and imports are as long as they are
        assert cell.source.count("\n") < 12, cell.source
        for function in ast.walk(ast.parse(cell.source)):
            if isinstance(function, ast.FunctionDef):
                assert len(function.body) <= 5, f"{function.name} belongs into ilm_lib"


@each_notebook
def test_parameters_are_plain_literals(path):
    assignments = ast.parse(tagged(path, "parameters")[0].source).body
    assert all(isinstance(a, ast.Assign) and len(a.targets) == 1 for a in assignments)
    names = {a.targets[0].id: ast.literal_eval(a.value) for a in assignments}
    assert {"profile", "seed", "overrides"} <= set(names) <= {*Params.model_fields, "overrides"}


@pytest.mark.parametrize("stem", ["02_embeddings", "03_phase1", "04_phase2", "05_elm24_eval", "06_openp5_eval"])
def test_equations_are_computed_by_hand(stem):
    """Equations are computed once in cells and held against the library, or against the objective they solve."""
    path = next(p for p in NOTEBOOKS if p.stem == stem)
    assert "by hand" in prose(path)
    assert any(isinstance(node, ast.Assert) for c in cells(path) for node in ast.walk(ast.parse(c.source)))


# ------------------------------------------------------------ prose


@pytest.mark.parametrize(
    "text, found, lone",
    [
        ("over users $u$ and items $i$", ["u", "i"], 0),
        ("$$ a\n+ b $$ with `$HOME` and\n```\n$x\n```", [" a\n+ b "], 0),
        ("over users $ and items $,", [], 2),
        ("with $ the observed interactions", [], 1),
        ("split $a\n+ b$ over lines", [], 2),
    ],
)
def test_formulas_are_found(text, found, lone):
    tex, rest = formulas(text)
    assert tex == found and rest.count("$") == lone


@each_page
def test_mathematics_is_whole(path):
    """No dollar stands alone, and the report can draw every formula without a network."""
    tex, rest = formulas(prose(path))
    lone = [line for line in rest.splitlines() if re.search(r"(?<!\\)\$", line)]
    assert not lone
    undrawn = [formula for formula in tex if not math_image(formula).startswith("<img")]
    assert not undrawn


@each_page
def test_references_lead_somewhere(path):
    """Pages name what is in the repository: settings, notebooks and files that exist."""
    text = prose(path)
    assert not re.search(r"\bthe design\b", text)
    for section, key in re.findall(r"`(\w+)\.(\w+)`", text):
        if section in Params.model_fields and key != "py":
            assert key in Params.model_fields[section].annotation.model_fields, f"no setting {section}.{key}"
    for number in re.findall(r"\bnotebook (\d\d)\b", text):
        assert any(p.stem.startswith(number) for p in NOTEBOOKS), f"no notebook {number}"
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)\s#]+)", text):
        assert (path.parent / target.replace("%20", " ")).exists(), target


@each_page
def test_pictures_say_what_they_show(path):
    for alt, _ in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", prose(path)):
        assert len(alt.split()) >= 3, "a picture needs a text for those who cannot see it"


def test_the_diagram_is_legible_anywhere():
    """One file for GitHub, JupyterLab and the report: described, light and dark, nothing fetched."""
    picture = ROOT / "notebooks" / "architecture.svg"
    assert picture.name in prose(ROOT / "notebooks" / "04_phase2.ipynb")
    svg = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)  # noqa: S314 (our own file)
    named = {e.tag.rpartition("}")[2]: e for e in root}
    assert root.get("aria-labelledby").split() == [named["title"].get("id"), named["desc"].get("id")]
    assert named["title"].text and len(named["desc"].text.split()) > 20
    assert "prefers-color-scheme: dark" in svg
    assert not re.search(r"\b(?:href|src)\s*=|url\((?!#)|@import", svg)


def test_a_page_of_the_report_carries_its_pictures(tmp_path):
    """An executed notebook lies elsewhere, and its page is opened without the checkout."""
    executed = tmp_path / "04_phase2-ILM-seed0.ipynb"
    executed.write_bytes((ROOT / "notebooks" / "04_phase2.ipynb").read_bytes())
    _, html = notebook_page(executed)
    picture = re.search(r'<img[^>]*alt="Interactions are factorised[^>]*>', html)
    assert picture and 'src="data:image/svg+xml;base64,' in picture[0]


# ------------------------------------------------------------ outputs


@each_notebook
def test_committed_outputs(path):
    """Committed notebooks are executed, without errors, warnings, dead progress bars or paths of anybody's machine."""
    for cell in cells(path):
        assert cell.execution_count is not None
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", cell.source
            assert WIDGET not in output.get("data", {}), cell.source
    text = path.read_text(encoding="utf-8")
    assert str(Path.home()) not in text and str(ROOT) not in text


@each_notebook
def test_no_table_is_made_and_not_shown(path):
    """A cell shows its last value alone: a table made before it, or within `if` or `for`, has to be displayed."""
    for cell in cells(path):
        lines = ast.parse(cell.source).body
        inner = [node for line in lines for node in ast.walk(line) if node not in lines]
        made = [node.value for node in [*lines[:-1], *inner] if isinstance(node, ast.Expr)]
        called = {getattr(value.func, "id", "") for value in made if isinstance(value, ast.Call)}
        assert "show" not in called, f"{path.name}, cell {cell.id}"
