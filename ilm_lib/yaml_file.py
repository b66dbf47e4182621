"""A YAML file of settings, read strictly: what YAML would take in silence for something else is refused with its line.

Two equal keys, where the last would win; 010, which is eight; keys that are no text; tags that make objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from ilm_lib.explain import shown
from ilm_lib.settings import ParamsError

LARGEST, MOST_VALUES, DEEPEST = 250_000, 20_000, 10  # bytes; values, with those of anchors; levels: a profile has four
_TAG = "tag:yaml.org,2002:"
_KNOWN = {f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "timestamp", "seq", "map")}
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The mapping in a file, and the line of every key by its path, e.g. {("phase1", "steps"): 4}.

    Raises:
        ParamsError: naming the file and, where there is one, the line.
    """
    text = _text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise ParamsError(f"{path.name} is empty; copy params/toy.yaml and change what differs")
        if not isinstance(node, yaml.MappingNode):
            wrong = f"is a {'list' if isinstance(node, yaml.SequenceNode) else 'single value'}, and no settings"
            raise ParamsError(f"{_at(path, node)} {wrong}; write a key and its value a line, e.g. seed: 0")
        lines = dict(_Check(path).keys(node, ()))
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ParamsError(f"{path.name} is not valid YAML: {where}{_problem(error)}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        if isinstance(error, ParamsError):
            raise
        raise ParamsError(f"{path.name} is not valid YAML: {str(error)[:100]}; write plain keys and values") from None


class _Loader(yaml.SafeLoader):
    """Says where a file is too deep, before Python's own limit on recursion does."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ComposerError(
                None, None, "nested too deeply; settings have three levels", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _text(path: Path) -> str:
    try:
        if path.is_dir():
            raise ParamsError(f"{path} is a folder; give the .yaml file in it")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        named = path if len(path.name) <= 100 else f"{path.name[:100]}..."
        raise ParamsError(f"{named} cannot be read ({error.strerror}); look at its place and its permissions") from None
    if len(data) > LARGEST:
        raise ParamsError(f"{path.name} has more than {LARGEST:,} bytes, and is no profile; give a file of settings")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ParamsError(f"{path.name}:{line}: not UTF-8 text; save the file as UTF-8") from None
    if odd := _UNPRINTABLE.search(text):
        line = text[: odd.start()].count("\n") + 1
        raise ParamsError(f"{path.name}:{line}: holds the character U+{ord(odd[0]):04X}; remove it")
    return text


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return "a tab; indent with blanks"
    if "single document" in str(error.context):
        return "a second document begins; keep one and remove the line ---"
    if "nested too deeply" in problem:
        return problem
    if "undefined alias" in problem:
        return f"{problem}; a word that begins with * stands in quotes"
    return f"{problem[:120]}; look there for a bracket, a quote, a colon or the indentation"


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path.name}:{node.start_mark.line + 1}:"


class _Check:
    """Looks at every node of a file before any of them becomes a value."""

    def __init__(self, path: Path):
        self.path, self.above, self.seen = path, set[int](), 0

    def keys(self, node: yaml.Node, at: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], int]]:
        """The paths below a node with their lines."""
        self.seen += 1
        where = _at(self.path, node)
        if id(node) in self.above:
            raise ParamsError(f"{where} an anchor holds itself; write the value out")
        if self.seen > MOST_VALUES:
            raise ParamsError(f"{where} more than {MOST_VALUES:,} values, with those of anchors; settings are fewer")
        if node.tag not in _KNOWN:
            raise ParamsError(f"{where} the tag {shown(node.tag.removeprefix(_TAG))} is not allowed; remove it")
        if node.tag == f"{_TAG}int" and not _DECIMAL.fullmatch(node.value):
            raise ParamsError(f"{where} YAML reads {shown(node.value)} as another number; write a decimal, or quotes")
        self.above.add(id(node))
        if isinstance(node, yaml.MappingNode):
            first: dict[str, int] = {}
            for key, value in node.value:
                name, line = self._name(key), key.start_mark.line + 1
                if name in first:
                    raise ParamsError(
                        f"{self.path.name}:{line}: the key {shown('.'.join((*at, name)))} is there already, in line "
                        f"{first[name]}; keep one of them"
                    )
                first[name] = line
                inner = (*at, name) if key.tag != f"{_TAG}merge" else at
                yield inner, line
                yield from self.keys(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for value in node.value:
                yield from self.keys(value, at)
        self.above.discard(id(node))

    def _name(self, key: yaml.Node) -> str:
        if key.tag not in {f"{_TAG}str", f"{_TAG}merge"}:
            what = shown(key.value) if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            raise ParamsError(
                f"{_at(self.path, key)} the key {what} is no text; keys are names, a number is put in quotes"
            )
        return str(key.value)
