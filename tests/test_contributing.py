"""The worked examples of CONTRIBUTING.md, run as they stand, on a tiny model."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {
    section.partition("\n")[0]: "\n".join(re.findall(r"```python\n(.*?)```", section, re.S))
    for section in TEXT.split("\n## ")[1:]
}


def test_data_set_encoder_and_task_have_an_example_that_checks_itself():
    assert list(EXAMPLES) == ["Add a data set", "Add an item encoder", "Add a task"]
    for code in EXAMPLES.values():
        assert any(isinstance(node, ast.Assert) for node in ast.parse(code).body)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(new_ilm, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    new_ilm("mlp").save_pretrained(tmp_path / "runs/toy/models/ilm-seed0")
    exec(compile(EXAMPLES[name], f"CONTRIBUTING.md, {name}", "exec"), {"__name__": "example"})
