"""Prompt templates of the recommendation tasks, in the form of OpenP5's prompt.txt.

One template a line, four fields separated by ";": task; seen or unseen; source; target.
`{history}` takes items rendered as `item_1001`, joined by a separator, and `{target}` one
of them, so OpenP5's file and OUR_TEMPLATES can stand in for each other. "unseen" templates
are kept out of training (Table 3 of arXiv 2406.02844).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Literal, get_args

from ilm_lib.data.lines import DataError, read_lines
from ilm_lib.settings import Wording

Task = Literal["sequential", "straightforward"]

SOURCE_FIELDS = {"sequential": {"dataset", "user_id", "history"}, "straightforward": {"dataset", "user_id"}}
TARGET_FIELDS = {"dataset", "target"}


@dataclass(frozen=True)
class Template:
    """`source.format(dataset=, user_id=, history=)` asks, `target.format(dataset=, target=)`
    is the answer; straightforward sources have no history."""

    task: Task
    wording: Wording
    source: str
    target: str


def load_templates(path: Path) -> list[Template]:
    """Templates of a file in file order.

    Raises DataError naming the line for a malformed one and for one that is both seen and unseen; and where a task has
    no seen template, from which a model could learn it.
    """
    path, found, first = Path(path), [], {}
    for n, line in read_lines(path)[0]:
        template = _parse(path, n, line)
        wording, before = first.setdefault((template.task, template.source), (template.wording, n))
        if wording != template.wording:
            wrong = f"is {template.wording} here and {wording} in line {before}, which tests what was trained"
            raise DataError(path, n, wrong, "Keep one of the two")
        found.append(template)
    if lacking := SOURCE_FIELDS.keys() - {t.task for t in found if t.wording == "seen"}:
        raise DataError(path, None, f"has no seen {min(lacking)} template", "Write at least one of each task")
    return found


def select(templates: Iterable[Template], task: Task, wording: Wording) -> list[Template]:
    """Those of the task and wording, in order; ValueError if there are none."""
    found = [t for t in templates if (t.task, t.wording) == (task, wording)]
    if not found:
        raise ValueError(f"no {wording} template for the task {task!r}")
    return found


def _parse(path: Path, n: int, line: str) -> Template:
    fields = [field.strip() for field in line.split(";")]
    if fields[-1] == "" and len(fields) == 5:
        fields.pop()
    if len(fields) != 4:
        wrong = f"{len(fields)} fields separated by ';' instead of 4"
        raise DataError(path, n, wrong, "Write: task; seen or unseen; source; target")
    task, wording, source, target = fields
    if task not in SOURCE_FIELDS:
        raise DataError(path, n, f"unknown task {task!r}", f"Use one of {', '.join(SOURCE_FIELDS)}")
    if wording not in get_args(Wording):
        raise DataError(path, n, f"{wording!r} is neither seen nor unseen", "Write one of the two")
    for name, text, wanted in (("source", source, SOURCE_FIELDS[task]), ("target", target, TARGET_FIELDS)):
        try:
            parts = [part for part in Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            raise DataError(path, n, f"bad braces in the {name} ({error})", "Close them") from None
        present = {field for _, field, _, _ in parts}
        if any(spec or conversion for _, _, spec, conversion in parts):
            wrong = f"a placeholder of the {name} has a ':' or '!' within its braces"
            raise DataError(path, n, wrong, "Write its name alone")
        if present != wanted:
            wrong = f"placeholders of the {name} are {sorted(present)}"
            raise DataError(path, n, wrong, f"A {task} {name} has {sorted(wanted)}")
    return Template(task, wording, source, target)


_SEQUENTIAL = (
    "{dataset} user_{user_id} chose {dataset} items {history} . What follows ?",
    "So far {dataset} user_{user_id} picked {dataset} items {history} . Name the next .",
    "Given {dataset} items {history} , which one comes next for {dataset} user_{user_id} ?",
    "Continue the list of {dataset} user_{user_id} : {dataset} items {history} ,",
    "The past of {dataset} user_{user_id} is {dataset} items {history} . Guess the next .",
    "{dataset} items {history} led {dataset} user_{user_id} to which further item ?",
    "In order , {dataset} user_{user_id} took {dataset} items {history} . And then ?",
    "Having had {dataset} items {history} , {dataset} user_{user_id} now wants which item ?",
    "Extend by one item the record {dataset} items {history} of {dataset} user_{user_id} .",
    "Record of {dataset} user_{user_id} : {dataset} items {history} . Most likely next item ?",
    "After {dataset} items {history} , where does {dataset} user_{user_id} go next ?",
)
_STRAIGHTFORWARD = (
    "Pick one item for {dataset} user_{user_id} .",
    "Which item fits {dataset} user_{user_id} best ?",
    "Name something that {dataset} user_{user_id} will enjoy .",
    "{dataset} user_{user_id} asks for a good item . Which one ?",
    "Choose the next item to show {dataset} user_{user_id} .",
    "Knowing {dataset} user_{user_id} , which item would please most ?",
    "Find an item to the taste of {dataset} user_{user_id} .",
    "One suggestion for {dataset} user_{user_id} , please .",
    "What will {dataset} user_{user_id} most likely choose ?",
    "Complete this : {dataset} user_{user_id} would love the item",
    "Select a fitting item on behalf of {dataset} user_{user_id} .",
)

# The last of each task is the unseen one, as in OpenP5's file.
OUR_TEMPLATES: tuple[Template, ...] = tuple(
    Template(task, "unseen" if i == len(sources) - 1 else "seen", source, "{dataset} {target}")
    for task, sources in (("sequential", _SEQUENTIAL), ("straightforward", _STRAIGHTFORWARD))
    for i, source in enumerate(sources)
)
