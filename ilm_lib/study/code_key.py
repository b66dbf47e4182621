"""What code a result depends on: everything that the function that makes it can reach within the library.

The digest covers definitions, not files. It starts from one function and follows every name it uses to the function,
class or constant of the library that the name stands for, and so on from there. Comments, docstrings, layout and the
places of files do not enter: a definition that moves to another module, or whose module is renamed, stays what it was.
Of a class, only those methods count that anything reached may call.

Settings (`settings`, `sections`, `profiles`) enter a stage's key by their values, so the code that declares them is
left out here.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

LIBRARY = Path(__file__).resolve().parents[1]
SETTINGS = {"settings", "sections", "profiles"}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
SCOPES = (*FUNCTIONS, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
IMPORTS = (ast.Import, ast.ImportFrom)
_WITHOUT_MEANING = {"ctx", "type_comment", "kind", "type_ignores"}


class Definition(NamedTuple):
    """A name of a module of the library ("model.ilm"), and of a class one of its methods."""

    module: str
    name: str
    method: str = ""


class Module:
    """A parsed file of the library.

    Attributes:
        definitions: statements that give a name its meaning, in their order; under "" those that run on import without
            defining anything, which count as soon as anything of the module does.
        imports: name -> (module of the library, name there or None for the module itself).
    """

    def __init__(self, name: str, path: Path):
        self.name, self.is_package = name, path.name == "__init__.py"
        self.definitions: dict[str, list[ast.stmt]] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        for statement in _without_docstring(ast.parse(path.read_text(encoding="utf-8")).body):
            self._take(statement)

    def _take(self, statement: ast.stmt) -> None:
        if isinstance(statement, IMPORTS):
            self.imports |= self.imported(statement)
            return
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "__name__ == '__main__'":
            return
        for inner in ast.walk(statement):
            if isinstance(inner, IMPORTS) and not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                self.imports |= self.imported(inner)
        names = _bound([statement])
        for name in names:
            self.definitions.setdefault(name, []).append(statement)
        defines = bool(names) and isinstance(statement, (*FUNCTIONS, ast.ClassDef, ast.Assign, ast.AnnAssign))
        imports_only = isinstance(statement, ast.If) and all(isinstance(s, IMPORTS) for s in statement.body)
        if not defines and not imports_only:
            self.definitions.setdefault("", []).append(statement)

    def imported(self, statement: ast.stmt) -> dict[str, tuple[str, str | None]]:
        """What a statement imports from the library, by the name it gets here."""
        names: dict[str, tuple[str, str | None]] = {}
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if (module := _of_library(alias.name)) is not None:
                    names[alias.asname or alias.name.split(".")[0]] = (module if alias.asname else "", None)
        elif isinstance(statement, ast.ImportFrom):
            source = statement.module or ""
            if statement.level:  # relative: from the package that this module is in
                parts = [LIBRARY.name, *self.name.split(".")] if self.name else [LIBRARY.name]
                parts = parts[: len(parts) - statement.level + self.is_package]
                source = ".".join([*parts, *([statement.module] if statement.module else [])])
            if (module := _of_library(source)) is not None:
                if statement.names[0].name == "*":
                    raise LookupError(f"{self.name}: 'from {source} import *' hides what is imported: name it")
                for alias in statement.names:
                    names[alias.asname or alias.name] = (module, alias.name)
        return names


@lru_cache(None)
def code_digest(function: Callable[..., Any]) -> str:
    """Digest of all code of the library that a function of one of its modules can reach.

    Raises:
        LookupError: a name is imported from the library that cannot be found there.
    """
    return _closure(function).digest()


def reached(function: Callable[..., Any]) -> set[str]:
    """The definitions that `code_digest` covers, as "module.name" or "module.Class.method"."""
    closure = _closure(function)
    closure.digest()
    return {".".join(filter(None, definition)) for definition in closure.number}


def _closure(function: Callable[..., Any]) -> _Closure:
    module = _of_library(function.__module__)
    if module is None or "." in function.__qualname__:
        raise LookupError(f"{function.__module__}.{function.__qualname__} is no function of a module of the library")
    return _Closure(Definition(module, function.__name__))


class Written(NamedTuple):
    """A definition without names and places of others.

    Attributes:
        text: its statements, each definition they refer to as a number, counted from their first one.
        references: those definitions.
        attributes: names that it may look up on an object.
    """

    text: str
    references: tuple[Definition, ...]
    attributes: frozenset[str]


class _Closure:
    """Definitions in the order in which they are reached."""

    def __init__(self, start: Definition):
        self.number: dict[Definition, int] = {start: 0}
        self.attributes: set[str] = set()
        self.parts: list[tuple[str, list[int]]] = []

    def digest(self) -> str:
        while len(self.parts) < len(self.number):
            for definition in list(self.number)[len(self.parts) :]:
                text, references, attributes = written(definition)
                self.parts.append((text, [self.refer(reference) for reference in references]))
                self.attributes |= attributes
            for definition in list(self.number):
                if "" in parsed(definition.module).definitions:
                    self.refer(Definition(definition.module, ""))
                for method in self._callable_methods(definition):
                    self.refer(Definition(definition.module, definition.name, method))
        return hashlib.sha256(json.dumps(self.parts).encode()).hexdigest()[:16]

    def refer(self, definition: Definition) -> int:
        return self.number.setdefault(definition, len(self.number))

    def _callable_methods(self, definition: Definition) -> list[str]:
        """Of a class, the methods that something reached may call."""
        if definition.method:
            return []
        return [name for name, overrides in methods(definition).items() if overrides or name in self.attributes]


@lru_cache(None)
def written(definition: Definition) -> Written:
    """A definition as it enters a digest."""
    statements = parsed(definition.module).definitions[definition.name]
    if definition.method:
        inside = statements[0].body  # type: ignore[attr-defined]
        statements = [s for s in inside if isinstance(s, FUNCTIONS) and s.name == definition.method]
    writer = _Writer(definition)
    text = json.dumps([writer.write(s) for s in statements])
    return Written(text, tuple(writer.references), frozenset(writer.attributes))


@lru_cache(None)
def methods(definition: Definition) -> dict[str, bool]:
    """The methods of a class by name, and whether a base class outside the library may call them; {} for no class."""
    statement = parsed(definition.module).definitions[definition.name][0]
    if not isinstance(statement, ast.ClassDef):
        return {}
    names = sorted({s.name for s in statement.body if isinstance(s, FUNCTIONS) and not _always_called(s)})
    return {name: _overrides(definition, name) for name in names}


class _Writer:
    """Writes the statements of one definition as nested lists, and notes what they refer to."""

    def __init__(self, definition: Definition):
        self.definition, self.module = definition, parsed(definition.module)
        self.references: dict[Definition, int] = {}
        self.attributes: set[str] = set()
        self.local: list[set[str]] = []  # names bound in the scopes around the node that is being written
        self.imports: list[dict[str, tuple[str, str | None]]] = [self.module.imports]

    def write(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.write(n) for n in node if not isinstance(n, IMPORTS) or not self.module.imported(n)]
        if not isinstance(node, ast.AST):
            return _constant(node)
        if isinstance(node, (ast.Name, ast.Attribute)) and (found := self._reference(node)) is not None:
            return found
        if isinstance(node, ast.Attribute):
            self.attributes.add(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            self.attributes.add(node.value)  # for getattr
        if isinstance(node, SCOPES):
            return self._scope(node)
        return [type(node).__name__, *(self.write(value) for _, value in _fields(node))]

    def _scope(self, node: Any) -> Any:
        """A node whose body has names of its own; what stands outside it (defaults, annotations, bases) has not."""
        is_class, is_function = isinstance(node, ast.ClassDef), isinstance(node, FUNCTIONS)
        body = _without_docstring(node.body) if is_class or is_function else [node]
        if is_class and not self.local and not self.definition.method:  # other methods count where they are called
            body = [s for s in body if not isinstance(s, FUNCTIONS) or _always_called(s)]
        outside = [self.write(value) for name, value in _fields(node) if _evaluated_outside(node, name)]
        imported = {
            name: target
            for statement in body
            for inner in ast.walk(statement)
            if isinstance(inner, IMPORTS)
            for name, target in self.module.imported(inner).items()
        }
        self.local.append(set() if is_class else (_bound(body) | _arguments(node)) - set(imported))
        self.imports.append(imported)
        inside = [
            self.write(body if name == "body" and body != [node] else value)
            for name, value in _fields(node)
            if not _evaluated_outside(node, name)
        ]
        self.imports.pop()
        self.local.pop()
        return [type(node).__name__, outside, inside]

    def _reference(self, node: ast.Name | ast.Attribute) -> Any:
        """A name, or names with dots between them, as a number if they lead to a definition of the library."""
        names: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            names.insert(0, base.attr)
            base = base.value
        if not isinstance(base, ast.Name) or not isinstance(base.ctx, ast.Load):
            return None
        if any(base.id in names_here for names_here in self.local):
            return None
        target = self._lookup(base.id)
        while isinstance(target, str) and names:  # a module: go on with what is asked of it
            target = resolve(target, names.pop(0))
        if target is None:
            return None
        if isinstance(target, str):
            raise LookupError(f"{self.module.name}: module {target or LIBRARY.name!r} is used as a value")
        if target.module in SETTINGS:
            return ["Settings", target.name, *names]
        self.attributes.update(names)
        return ["Reference", self.references.setdefault(target, len(self.references)), *names]

    def _lookup(self, name: str) -> Definition | str | None:
        for imports in reversed(self.imports):
            if name in imports:
                module, attribute = imports[name]
                return module if attribute is None else resolve(module, attribute)
        return Definition(self.module.name, name) if name in self.module.definitions else None


def resolve(module: str, name: str) -> Definition | str:
    """What a name of a module of the library stands for: a definition, or a module ("model.ilm")."""
    path = f"{module}.{name}" if module else name
    if module in SETTINGS:
        return Definition(module, name)
    here = parsed(module)
    if name in here.definitions:
        return Definition(module, name)
    if name in here.imports:
        source, attribute = here.imports[name]
        return source if attribute is None else resolve(source, attribute)
    if _file(path) is not None:
        return path
    raise LookupError(f"{LIBRARY.name}.{module} has no {name!r} that can be followed")


@lru_cache(None)
def parsed(module: str) -> Module:
    """A module of the library, by its name without the library's."""
    path = _file(module)
    if path is None:
        raise LookupError(f"{LIBRARY.name} has no module {module!r}")
    return Module(module, path)


def _file(module: str) -> Path | None:
    stem = LIBRARY.joinpath(*module.split(".")) if module else LIBRARY
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _of_library(name: str) -> str | None:
    """ "ilm_lib.model.ilm" -> "model.ilm"; None for what is no module of the library."""
    top, _, rest = name.partition(".")
    return rest if top == LIBRARY.name else None


def _overrides(definition: Definition, method: str) -> bool:
    """Whether a method replaces one of a base class outside the library, which may then call it."""
    cls = getattr(importlib.import_module(f"{LIBRARY.name}.{definition.module}"), definition.name)
    outside = [base for base in cls.__mro__[1:] if _of_library(base.__module__) is None]
    return any(hasattr(base, method) for base in outside)


def _evaluated_outside(node: ast.AST, field: str) -> bool:
    """Whether a field of a scope is evaluated in the scope around it. Comprehensions count as one piece."""
    if isinstance(node, ast.Lambda):
        return field == "args"
    return field != "body" and isinstance(node, (*FUNCTIONS, ast.ClassDef))


def forget() -> None:
    """Read the library again: its files have changed."""
    for cached in (code_digest, written, methods, parsed):
        cached.cache_clear()


def _always_called(function: Any) -> bool:
    return function.name.startswith("__") and function.name.endswith("__")


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    return ((name, value) for name, value in ast.iter_fields(node) if name not in _WITHOUT_MEANING)


def _constant(value: Any) -> Any:
    return value if value is None or isinstance(value, (str, int, float, bool)) else [type(value).__name__, repr(value)]


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    match body:
        case [ast.Expr(value=ast.Constant(value=str())), *rest]:
            return rest
    return body


def _bound(statements: list[Any]) -> set[str]:
    """Names that statements bind in their own scope, imports left out."""
    names: set[str] = set()
    open_nodes = list(statements)
    while open_nodes:
        node = open_nodes.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, (ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
        has_own_names = isinstance(node, SCOPES) and node not in statements
        if not has_own_names and not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            open_nodes += ast.iter_child_nodes(node)
    return names


def _arguments(node: Any) -> set[str]:
    arguments = getattr(node, "args", None)
    if not isinstance(arguments, ast.arguments):
        return set()
    return {a.arg for a in ast.walk(arguments) if isinstance(a, ast.arg)}
