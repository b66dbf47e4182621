"""Prompt templates: ours and files in the form of OpenP5's prompt.txt."""

import os
from collections import Counter
from pathlib import Path

import pytest

from ilm_lib.data import DataError
from ilm_lib.data.templates import OUR_TEMPLATES, load_templates, select

REAL = Path(os.environ.get("ILM_DATA_DIR") or Path(__file__).resolve().parents[2] / "shared" / "data")
GOOD = "sequential; seen; {dataset} user_{user_id} {history}; {dataset} {target}"


def test_our_templates():
    counts = Counter((t.task, t.wording) for t in OUR_TEMPLATES)
    assert counts == {
        (task, wording): n for task in ("sequential", "straightforward") for wording, n in (("seen", 10), ("unseen", 1))
    }
    assert len({t.source for t in OUR_TEMPLATES}) == 22
    for t in OUR_TEMPLATES:
        assert 6 <= len(t.source.split()) <= 14, t.source
        fields = {"dataset": "Toy", "user_id": 5}
        if t.task == "sequential":
            fields["history"] = "item_1001 , item_1002"
        source = t.source.format(**fields)  # a placeholder too many is a KeyError
        assert "Toy user_5" in source
        assert ("Toy items item_1001 , item_1002" in source) == (t.task == "sequential")
        assert t.target.format(dataset="Toy", target="item_1003") == "Toy item_1003"


def test_our_templates_survive_the_file_form(tmp_path):
    path = tmp_path / "prompt.txt"
    rows = ["; ".join((t.task, t.wording, t.source, t.target)) for t in OUR_TEMPLATES]
    path.write_text("\n".join(rows))  # no newline at the end, as in OpenP5's file
    assert tuple(load_templates(path)) == OUR_TEMPLATES
    path.write_text("\n".join(rows) + "\n")
    assert tuple(load_templates(path)) == OUR_TEMPLATES


def test_select():
    (unseen,) = select(OUR_TEMPLATES, "straightforward", "unseen")
    assert unseen is OUR_TEMPLATES[-1]
    assert select(OUR_TEMPLATES, "sequential", "seen") == list(OUR_TEMPLATES[:10])
    with pytest.raises(ValueError, match="no unseen template"):
        select(OUR_TEMPLATES[:10], "sequential", "unseen")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sequential; seen; {dataset} user_{user_id} {history}", "3 fields"),
        (GOOD + "; more; text", "6 fields"),
        (GOOD.replace("sequential", "direct"), "unknown task 'direct'"),
        (GOOD.replace("seen", "maybe"), "'maybe' is neither seen nor unseen"),
        (GOOD.replace("{history}", ""), "placeholders of the source"),
        (GOOD.replace("sequential", "straightforward"), "placeholders of the source"),
        (GOOD.replace("{user_id}", "{user}"), "placeholders of the source"),
        (GOOD.replace("{target}", "it"), "placeholders of the target"),
        (GOOD.replace("{history}", "{history"), "bad braces in the source"),
    ],
)
def test_malformed(tmp_path, line, message):
    path = tmp_path / "prompt.txt"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(DataError, match=rf"prompt\.txt:3: .*{message}"):
        load_templates(path)


def test_missing_and_empty(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_templates(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="is empty"):
        load_templates(tmp_path / "empty.txt")


def test_the_file_of_openp5():
    path = REAL / "openp5" / "prompt.txt"
    if not path.exists():
        pytest.skip("no openp5/prompt.txt under ILM_DATA_DIR or ../shared/data")
    templates = load_templates(path)
    for task in ("sequential", "straightforward"):
        assert len(select(templates, task, "seen")) == 10
        assert len(select(templates, task, "unseen")) == 1
    assert not {t.source for t in templates} & {t.source for t in OUR_TEMPLATES}
