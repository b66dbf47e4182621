"""Keys follow the code: what counts, what does not, and exactly what a change makes anew."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ilm_lib.study import code_key, elm, elm_inputs, inputs, openp5, stages
from ilm_lib.study.code_key import code_digest, forget, reached

LIBRARY = Path(code_key.LIBRARY)
MAKERS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": function
    for module in (inputs, stages, openp5, elm_inputs, elm)
    for name, function in vars(module).items()
    if name.startswith("make_") and function.__module__ == module.__name__
}


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the library's sources that `code_key` reads in place of the real ones."""
    folder = tmp_path / "ilm_lib"
    shutil.copytree(LIBRARY, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_key, "LIBRARY", folder)
    forget()
    yield folder
    forget()


@pytest.fixture(scope="module")
def before() -> dict[str, str]:
    """The digests of the library as it is."""
    return digests()


def edit(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(old) >= 1, f"{file} no longer has {old!r}: change this test with it"
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    forget()


def digests() -> dict[str, str]:
    return {name: code_digest(make) for name, make in MAKERS.items()}


def test_every_stage_has_a_digest_of_its_own_code(copy):
    assert len(MAKERS) > 15 and len(set(digests().values())) == len(MAKERS)


@pytest.mark.parametrize(
    "file, old, new",
    [
        ("metrics.py", "CUTOFFS = (5, 10)", "# why these\nCUTOFFS = (5,  10)  # best first"),
        ("baselines/cf.py", '"""Factorise a (U, I) matrix', '"""Factorise, as one should, a (U, I) matrix'),
        ("train/loop.py", '"""One training loop for everything', '"""A training loop for everything'),
        ("tasks/openp5.py", '    """The items a model generates', '    """Items that a model generates'),
        ("methods.py", "#0072B2", "#0072B3"),
        ("report/tables.py", "import pandas as pd", "import pandas as pd\n\nUNUSED = 3"),
        ("baselines/cf.py", "import numpy as np\n", "import numpy as np\n\n\ndef unused():\n    return 3\n"),
    ],
    ids=["comment", "docstring", "module-docstring", "docstring-of-rank", "colour", "report", "unused-function"],
)
def test_what_changes_no_result_changes_no_key(copy, before, file, old, new):
    edit(copy, file, old, new)
    assert digests() == before


LLM_RANKING = {"openp5.make_llm_ranking", "openp5.make_beam_recall"}
WITH_VECTORS = {"stages.make_phase1", "stages.make_phase2", "elm.make_phase1", "elm.make_trained", "elm.make_reading"}


@pytest.mark.parametrize(
    "file, old, new, anew",
    [
        ("metrics.py", "CUTOFFS = (5, 10)", "CUTOFFS = (5, 10, 20)", {"stages.make_phase2", "openp5.make_sasrec"}),
        ("metrics.py", "np.log2(2 +", "np.log2(3 +", {"stages.make_phase2", "openp5.make_sasrec"}),
        ("baselines/cf.py", "np.sqrt(np.mean(table**2))", "np.sqrt(np.median(table**2))", WITH_VECTORS | LLM_RANKING),
        ("study/inputs.py", "np.array([loaded.num_items, 0]", "np.array([loaded.num_items, 1]", {"stages.make_phase1"}),
        ("baselines/sasrec.py", "- params.max_length - 1) + 1)", "- params.max_length - 1))", {"openp5.make_sasrec"}),
        ("baselines/popularity.py", "np.float32)", "np.float64)", {"openp5.make_popularity_ranking"}),
        ("baselines/cf.py", '"irspack": 0.01', '"irspack": 0.02', {"inputs.make_embeddings"}),
        ("data/toy.py", "def make_toy_world(", "PLACEHOLDER = 3\n\n\ndef make_toy_world(", set()),
        ("train/losses.py", "(F.cross_entropy(logits, target) + ", "(2 * F.cross_entropy(logits, target) + ",
         {"stages.make_phase1", "elm.make_phase1"}),
    ],
    ids=["cutoffs", "discount", "cf-scaling", "phase-1-pairs", "sasrec", "popularity", "regularisation", "new-constant",
         "contrast"],
)  # fmt: skip
def test_a_change_makes_anew_exactly_what_follows_from_it(copy, before, file, old, new, anew):
    edit(copy, file, old, new)
    assert {name for name, digest in digests().items() if digest != before[name]} == anew


def test_a_method_counts_where_it_may_be_called_and_only_there(copy):
    training = reached(stages.make_phase2)
    assert "model.ilm.ILM.forward" in training and "train.loop.fit" in training  # the framework calls forward
    assert "model.ilm.ILM.save_pretrained" not in training and "model.ilm.ILM.generate" not in training
    assert "model.ilm.ILM.generate" in reached(elm.make_trained)


def test_no_stage_depends_on_how_a_method_is_drawn_or_named():
    for name, make in MAKERS.items():
        assert "methods.METHODS" not in reached(make), name


def test_what_cannot_be_followed_is_refused(copy):
    edit(
        copy,
        "study/inputs.py",
        "from ilm_lib.baselines.cf import CFEmbeddings, fit_cf",
        "from ilm_lib.baselines.cf import CFEmbeddings, fit_of",
    )
    edit(copy, "study/inputs.py", "cf = fit_cf(", "cf = fit_of(")
    with pytest.raises(LookupError, match="fit_of"):
        code_digest(inputs.make_embeddings)
    edit(copy, "baselines/cf.py", "from ilm_lib.data import DataError", "from ilm_lib.data import *")
    with pytest.raises(LookupError, match="hides what is imported"):
        code_digest(stages.make_phase1)
    with pytest.raises(LookupError, match="no function of a module"):
        code_digest(lambda folder: None)


def test_a_parameter_hides_a_function_of_its_name_and_a_default_does_not(copy):
    (copy / "thing.py").write_text(
        "def size(x):\n    return 1\n\n\ndef hidden(size):\n    return size\n\n\ndef seen(x=size):\n    return x\n"
        "\n\ndef inner():\n    return [size for size in range(3)]\n"
    )
    names = {}
    for name in ("hidden", "seen", "inner"):
        function = lambda: None
        function.__module__, function.__qualname__, function.__name__ = "ilm_lib.thing", name, name
        names[name] = "thing.size" in reached(function)
    assert names == {"hidden": False, "seen": True, "inner": False}


def test_statements_that_run_on_import_count(copy, before):
    edit(
        copy,
        "baselines/cf.py",
        "@dataclass(frozen=True, eq=False)",
        'REGULARIZATION["irspack"] = 0.5\n\n\n@dataclass(frozen=True, eq=False)',
    )
    changed = {name for name, digest in digests().items() if digest != before[name]}
    assert "inputs.make_embeddings" in changed and "inputs.make_toy_data" not in changed


STUDY = """
import sys
from ilm_lib import load_params
from ilm_lib.study import inputs
params = load_params("toy", **{"data.num_items": 80, "data.num_users": 60, "embeddings.dim": 4})
build = sys.argv[1] == "build"
data, cf = inputs.data(params, build=build), inputs.embeddings(params, 0, build=build)
print("keys", data.key, cf.key)
"""


@pytest.mark.slow
def test_moved_and_renamed_modules_leave_artifacts_valid(tmp_path):
    """A real artifact of a real copy of the library, whose files then move."""
    library = tmp_path / "ilm_lib"
    shutil.copytree(LIBRARY, library, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(LIBRARY.parent / "params", tmp_path / "params")
    (tmp_path / "pyproject.toml").touch()

    def study(word: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "PYTHONPATH": str(tmp_path), "ILM_RUNS_DIR": str(tmp_path / "runs")}
        return subprocess.run(
            [sys.executable, "-c", STUDY, word], cwd=tmp_path, env=env, capture_output=True, text=True
        )

    made = study("build")
    assert made.returncode == 0, made.stderr
    # baselines/cf.py becomes factors.py; fit_cf moves to a module of its own; data/openp5.py becomes data/reading.py.
    for old, new in (("baselines/cf", "baselines/factors"), ("data/openp5", "data/reading")):
        (library / f"{old}.py").rename(library / f"{new}.py")
        for path in library.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            dotted = [name.replace("/", ".") for name in (old, new)]
            path.write_text(
                re.sub(rf"\bilm_lib\.{re.escape(dotted[0])}\b", f"ilm_lib.{dotted[1]}", text), encoding="utf-8"
            )
    _move_function(library / "baselines/factors.py", "load_cf", library / "baselines/reading.py")
    found = study("ask")
    assert found.returncode == 0, found.stderr
    assert found.stdout == made.stdout
    text = (library / "baselines/factors.py").read_text(encoding="utf-8")
    (library / "baselines/factors.py").write_text(text.replace('"irspack": 0.01', '"irspack": 0.03'), encoding="utf-8")
    stale = study("ask")
    assert stale.returncode == 1 and "embeddings" in stale.stderr and "02_embeddings" in stale.stderr


def _move_function(source: Path, name: str, target: Path) -> None:
    """Carry a function, with the imports of its module, to a new module, and leave an import in its place."""
    text = source.read_text(encoding="utf-8")
    body = re.search(rf"^def {name}\(.*?(?=^def |^class |^@|\Z)", text, re.S | re.M)[0]
    imports = "\n".join(re.findall(r"^(?:from|import) .*$", text, re.M))
    target.write_text(f"{imports}\nfrom ilm_lib.baselines.factors import CFEmbeddings\n\n\n{body}", encoding="utf-8")
    moved = text.replace(body, "")
    source.write_text(f"{moved}\n\nfrom ilm_lib.baselines.reading import {name}\n", encoding="utf-8")
