"""The project around the code: what is installed, which way imports run, how long things are, what the papers say."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ilm_lib
from ilm_lib.files import open_to_others

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "ilm_lib"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]


def python(code: str, *, cwd: Path, timeout: int = 300, **env: str) -> str:
    """What a fresh Python prints that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


# ------------------------------------------------------------ what is installed


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(m[1]): m[2] for line in lines if (m := re.match(r"([\w.-]+)==([\w.]+)$", line))}


def test_lock_pins_everything_once():
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    assert len(lines) == len(pins())
    assert not any(re.search(r"https?:|file:|@|/", line) for line in lines)


@pytest.mark.parametrize("part", ["dependencies", *EXTRAS])
def test_pyproject_and_lock_agree(part):
    for requirement in map(Requirement, PROJECT["dependencies"] if part == "dependencies" else EXTRAS[part]):
        name = canonicalize_name(requirement.name)
        assert name in pins(), f"{name} is not in requirements.lock"
        assert pins()[name] in requirement.specifier, f"the lock's {name} {pins()[name]} does not meet {requirement}"


@pytest.mark.parametrize("code, extras", [("ilm_lib", ["study", "serve"]), ("bench", ["bench"])])
def test_what_is_imported_is_declared(code, extras):
    """Every package that is named in an import, in functions too, is one that pyproject.toml names."""
    names = importlib.metadata.packages_distributions()
    declared = {
        canonicalize_name(Requirement(r).name) for r in chain(PROJECT["dependencies"], *(EXTRAS[e] for e in extras))
    }
    found: dict[str, str] = {}
    for path in (ROOT / code).rglob("*.py"):
        if path.name in ("rectools_side.py", "spark_als.py"):  # they run in environments of their own, and say which
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0]: path.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.partition(".")[0]] = path.name
    others = {m: at for m, at in found.items() if m not in sys.stdlib_module_names and m not in ("ilm_lib", "bench")}
    assert "torch" in others
    assert not {m: at for m, at in others.items() if not declared & {canonicalize_name(n) for n in names.get(m, [m])}}


def test_environment_yml_installs_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    pip = next(d["pip"] for d in conda["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "--editable ."]
    wanted = next(d for d in conda["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert wanted == "python=" + PROJECT["requires-python"].removeprefix(">=")


def test_pre_commit_has_the_locks_ruff():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert next(h["rev"] for h in hooks if "ruff" in h["repo"]) == "v" + pins()["ruff"]


def test_the_version_is_one():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert PROJECT["version"] == ilm_lib.__version__
    assert citation["version"] == newest[1] == PROJECT["version"].partition(".dev")[0]
    assert (".dev" in PROJECT["version"]) == ("unreleased" in newest[2])
    assert {"cff-version", "message", "title", "authors", "license", "references"} <= set(citation)


def test_every_folder_of_code_is_packaged():
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in LIBRARY.rglob("__init__.py")}
    assert {*PYPROJECT["tool"]["setuptools"]["packages"]} == folders | {"ilm_lib._profiles"}


def required(requirements: list[str]) -> set[str]:
    """The distributions that requirements bring in, all the way down, as far as they are installed here."""
    todo, found = [*map(Requirement, requirements)], set()
    while todo:
        requirement = todo.pop()
        if (key := (canonicalize_name(requirement.name), *sorted(requirement.extras))) in found:
            continue
        found.add(key)
        try:
            below = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        extras = requirement.extras or {""}
        todo += [
            r for r in map(Requirement, below) if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
        ]
    return {name for name, *_ in found}


WITHOUT = """
import sys

class Without:
    "A finder that does not find what `pip install ilm-study` would not have installed."
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, *more)
    def __getattr__(self, name): return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""
TINY = """
import importlib, pkgutil
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM

import ilm_lib
from ilm_lib import ILM, Item, User
from ilm_lib.data import Dataset
from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.model.encoders import MLPEncoder
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.tasks.openp5 import RecommendationTasks

items, users = 8, 4
sequences = np.concatenate([np.random.default_rng(u).permutation(items)[:5] for u in range(users)]).astype(np.int32)
data = Dataset("Toy", [f"u{i}" for i in range(users)], [f"i{i}" for i in range(items)], sequences,
               np.arange(users + 1) * 5, np.arange(users) + 1, np.arange(items) + 1001,
               [{"title": f"Film {i}"} for i in range(items)], {}, {})
tasks = RecommendationTasks(data, OUR_TEMPLATES, Indexing("Toy", data.user_index, data.item_index), history_max=4)
tokenizer = train_tokenizer(tasks.corpus(50), 400)
llm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, intermediate_size=32,
    num_attention_heads=2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
ilm = ILM(llm, tokenizer, MLPEncoder(6, 32), torch.randn(items + users, 6), items, tasks.catalogue()).eval()
before = ilm.recommend(user=User(1), history=[Item(3), Item(0)], k=5)
again = ILM.from_pretrained(ilm.save_pretrained("model"))
assert [r.item for r in again.recommend(user=User(1), history=[Item(3), Item(0)], k=5)] == [r.item for r in before]
prompt = ["Describe ", Item(2), ": "]
assert again.generate(prompt, max_new_tokens=3) == ilm.generate(prompt, max_new_tokens=3)
print(len(before), before[0].title)
"""


@pytest.mark.slow
def test_the_core_needs_no_extras(tmp_path):
    """Everything an extra brings is hidden; a model is built, asked, saved and read again all the same."""
    core, all_of_it = required(PROJECT["dependencies"]), required([*PROJECT["dependencies"], *chain(*EXTRAS.values())])
    modules = importlib.metadata.packages_distributions()
    kept = {m for m, names in modules.items() if core & {canonicalize_name(n) for n in names}}
    hidden = {m for m, names in modules.items() if (all_of_it - core) & {canonicalize_name(n) for n in names}} - kept
    assert {"implicit", "irspack", "sklearn", "matplotlib", "IPython", "pytest", "snakemake"} <= hidden
    rooms = "".join(
        f"for m in pkgutil.iter_modules(importlib.import_module('ilm_lib.{room}').__path__):\n"
        f"    importlib.import_module('ilm_lib.{room}.' + m.name)\n"
        for room in ("model", "train", "tasks", "baselines")
    )
    said = python(f"BLOCKED = {hidden!r}\n{WITHOUT}{TINY}{rooms}", cwd=tmp_path)
    assert re.match(r"5 Film \d", said)


@pytest.mark.slow
def test_an_installed_copy_needs_no_checkout(tmp_path):
    """A wheel, built from what git would see, installed in a path with a space, makes a dataset and its embeddings."""
    pytest.importorskip("setuptools", "77", reason="a wheel is built by setuptools, without network")
    source, site, work = (tmp_path / name for name in ("source", "a site", "a workspace"))
    for name in ("ilm_lib", "params"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    done = subprocess.run([*pip, "--target", str(site), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (site / "ilm_lib/py.typed").is_file()
    files = lambda at: {p.relative_to(at) for kind in ("css", "html", "js", "svg") for p in at.rglob(f"*.{kind}")}
    assert files(LIBRARY) == files(site / "ilm_lib") and Path("talk/page/page.html") in files(LIBRARY)

    work.mkdir()
    (work / "params").mkdir()
    (work / "params/a-mine.yaml").write_text(
        "data: {num_items: 90, num_users: 60}\nembeddings: {dim: 8, iterations: 2}\n"
    )
    code = """
import ilm_lib
from pathlib import Path
from ilm_lib.data import data_dir
from ilm_lib.study import inputs
assert "a site" in ilm_lib.__file__
assert ilm_lib.load_params("toy").profile == "toy" and data_dir() == Path.cwd() / "data"
try: ilm_lib.load_params("tpy")
except ValueError as error: assert "Known: a-mine, beauty" in str(error), error
params = ilm_lib.load_params("a-mine")
inputs.data(params, build=True)
inputs.embeddings(params, 0, build=True)
print(inputs.dataset(params).num_items)
"""
    env = {"PYTHONPATH": str(site), "ILM_RUNS_DIR": "", "ILM_DATA_DIR": ""}
    assert python(code, cwd=work, **env).split() == ["90"]
    assert {p.name for p in (work / "runs").iterdir()} == {"a-mine"} and not (site / "runs").exists()


def test_settings_are_read_without_torch_and_a_wrong_name_is_answered():
    said = python("import sys, ilm_lib; ilm_lib.load_params(); print('torch' in sys.modules, *dir(ilm_lib))", cwd=ROOT)
    assert said.split() == ["False", *sorted(["ILM", "Item", "Params", "User", "__version__", "load_params"])]
    assert all(getattr(ilm_lib, name) for name in ilm_lib.__all__)
    with pytest.raises(AttributeError, match=r"'IML'.*exports ILM, Item, Params, User"):
        ilm_lib.IML


# ------------------------------------------------------------ which way imports run, how long things are


def sources() -> dict[str, Path]:
    """Module name to file, of all of ilm_lib."""
    name = lambda p: ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return {name(p): p for p in LIBRARY.rglob("*.py")}


def imports(module: str, path: Path, known: set[str], *, typing: bool) -> set[str]:
    """The modules of ilm_lib that a module imports, in functions too, as the syntax tree has it.

    Args:
        typing: with the imports under `if TYPE_CHECKING`, which never run.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if not typing and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            skipped.update(n for child in node.body for n in ast.walk(child))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            found |= {inner if (inner := f"{source}.{alias.name}") in known else source for alias in node.names}
    return {name for name in found if name in known} - {module}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of imports, as a list of modules that ends where it starts; [] where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(graph[node]):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


def forbidden(graph: dict[str, set[str]]) -> list[str]:
    """Imports that lead out of a room where none may."""
    room = lambda module: module.split(".")[1] if "." in module else ""
    # The modules beside the rooms are for all of them, so they may know none of the last two either.
    barred = {room(m): {"study", "report"} for m in graph} | {"report": {"study"}, "study": set()}
    # A model is used without a terminal and a server.
    barred |= {name: {"study", "report", "talk"} for name in ("model", "train", "tasks", "baselines", "data")}
    return [
        f"{a} imports {b}"
        for a, found in sorted(graph.items())
        for b in sorted(found)
        if room(b) in barred.get(room(a), ())
    ]


def test_imports_run_one_way():
    files = sources()
    assert len(files) > 40
    assert not (found := circle({m: imports(m, p, {*files}, typing=False) for m, p in files.items()})), " → ".join(
        found
    )
    assert not forbidden({m: imports(m, p, {*files}, typing=True) for m, p in files.items()})


@pytest.mark.parametrize(
    "line",
    [
        "from ilm_lib.study.stages import card",
        "from ..study.stages import card",
        "from ..study import stages",
        "from .. import study",
        "def f():\n    import ilm_lib.study.stages as s",
        "if TYPE_CHECKING:\n    from ilm_lib.study import stages",
    ],
)
def test_no_way_of_writing_an_import_is_missed(tmp_path, line):
    path = tmp_path / "loop.py"
    path.write_text(line + "\n", encoding="utf-8")
    files = {*sources(), "ilm_lib.study.stages", "ilm_lib.train.loop"}
    found = imports("ilm_lib.train.loop", path, files, typing=True)
    assert found & {"ilm_lib.study", "ilm_lib.study.stages"}
    assert forbidden({"ilm_lib.train.loop": found})
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": set()}) == ["a", "b", "c", "a"]


MAX_LINES, MAX_FUNCTION = 350, 70  # a docstring does not make a function long
LONG = {  # what is longer, and what one idea it holds all the same
    "ilm_lib/data/elm24_words.py": "the wordings of the 24 tasks",
    "ilm_lib/data/toy_words.py": "word lists",
    "ilm_lib/study/code_key.py": "one walk over syntax trees",
}


def test_files_and_functions_are_short():
    long = {}
    for path in sources().values():
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if (lines := text.count("\n")) > MAX_LINES:
            long[name] = f"{lines} lines, {MAX_LINES} are allowed"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                words = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1 - (words.end_lineno - words.lineno + 1 if words else 0)
                if lines > MAX_FUNCTION:
                    long[f"{name}:{node.name}"] = f"{lines} lines, {MAX_FUNCTION} are allowed"
    assert {k: v for k, v in long.items() if k not in LONG} == {}
    assert set(LONG) <= set(long), "these are short now: take them off the list"


# ------------------------------------------------------------ commands


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    said = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert targets == set(re.findall(r"^  ([a-z-]+) +\S", said, re.M))
    assert {"study", "test", "check", "publish", "check-reports", "help"} <= targets
    assert ".DEFAULT_GOAL := study" in makefile


@pytest.mark.parametrize("target", ["study", "publish", "chat"])
@pytest.mark.parametrize("name", ["x; touch y", "x$(shell touch y)", "x`touch y`", "x' ; touch y; '", 'x"; touch y; "'])
def test_nothing_in_a_profiles_name_is_run(tmp_path, target, name):
    """With a `.venv` that only says what it was asked for."""
    bin_ = tmp_path / ".venv/bin"
    bin_.mkdir(parents=True)
    (tmp_path / ".venv/.installed").touch()
    for tool in ("snakemake", "python"):
        (bin_ / tool).write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n')
        (bin_ / tool).chmod(0o755)
    command = ["make", "-s", "-f", str(ROOT / "Makefile"), "-o", ".venv/.installed", target, f"PROFILE={name}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "y").exists()
    assert f"[profile={name}]" in done.stdout or f"[{name}]" in done.stdout


# ------------------------------------------------------------ what is written


def test_files_that_tensors_are_saved_in_are_open_to_the_group(tmp_path):
    """safetensors makes them 0600; a folder that is handed on has the modes of the umask."""
    (tmp_path / "a/b").mkdir(parents=True)
    for path in (tmp_path / "a/one", tmp_path / "a/b/two"):
        path.touch(0o600)
    for mask, mode in ((0o022, 0o644), (0o027, 0o640), (0o002, 0o664)):
        before = os.umask(mask)
        try:
            open_to_others(tmp_path / "a")
        finally:
            os.umask(before)
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").rglob("*") if p.is_file()} == {mode}
    assert len([*(tmp_path / "a").rglob("*")]) == 3


@pytest.mark.parametrize("encoder", ["qformer", "mlp", "none"])
def test_a_saved_model_has_a_card_and_is_open_to_the_group(new_ilm, tmp_path, encoder):
    from huggingface_hub import ModelCard

    ilm = new_ilm(encoder)
    folder = ilm.save_pretrained(tmp_path / "model", metrics={"dev HR@10": 0.125})
    mode = (folder / "ilm.json").stat().st_mode & 0o777
    assert {p.stat().st_mode & 0o777 for p in folder.rglob("*") if p.is_file()} == {mode}

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "ilm_lib" and card.data.license == "other" and card.data.datasets == ["Toy"]
    assert "item-language-model" in card.data.tags and (encoder == "none" or encoder in card.data.tags)
    assert card.data.metrics == ["dev HR@10"] and "| dev HR@10 | 0.1250 |" in card.text
    assert card.data.base_model is None  # this LLM has no name
    assert "Vectors of all 9 users are inside" in card.text and "Interactions of Toy." in card.text

    example = re.search(r"```python\n(.*?)```", card.text, re.S)[1].replace("this folder", str(folder))
    example += "assert len(ilm.recommend(user=User(0), history=[Item(0), Item(1)], k=10)) == 10\n"
    exec(compile(example, "model card", "exec"), {})


def test_a_card_names_the_llm_it_refers_to_but_no_folder(new_ilm, tmp_path):
    from huggingface_hub import ModelCard

    ilm = new_ilm("mlp")
    for name, shown in (("HuggingFaceTB/SmolLM2-135M-Instruct", True), (str(tmp_path / "llm"), False)):
        folder = ilm.save_pretrained(tmp_path / "model", backbone=name)
        card = ModelCard.load(folder / "README.md")
        assert (card.data.base_model == name) == shown and (name in card.text) == shown
        assert json.loads((folder / "ilm.json").read_text())["backbone"] == name


# ------------------------------------------------------------ what is said


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_and_files_that_are_named_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [link for link in links if not link.startswith("http") and not (ROOT / unquote(link)).exists()]
    named = re.findall(r"`((?:ilm_lib|tests|bench|params|notebooks)/[\w./*-]+)`", text)
    made = {"params/mine.yaml", "params/plays.yaml"}  # by the reader of these pages
    missing += [path for path in named if path not in made and not any(ROOT.glob(path.rstrip("/")))]
    assert not missing
