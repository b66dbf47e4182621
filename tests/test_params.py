import pytest
import yaml

from ilm_lib import profiles
from ilm_lib.methods import METHODS
from ilm_lib.profiles import ROOT, load_params
from ilm_lib.settings import Params, ParamsError

PROFILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.mark.parametrize("path", PROFILES, ids=lambda p: p.stem)
def test_every_profile_loads_under_its_own_name(path):
    params = load_params(path.stem)
    assert params.profile == path.stem and params == load_params(path)
    assert set(params.methods) <= set(METHODS)


def test_unknown_keys_are_refused_with_a_suggestion_and_the_allowed_ones():
    with pytest.raises(ParamsError, match="unknown parameter 'metods'.*Did you mean 'method.*Allowed: .*backbone"):
        load_params("toy", metods=["ILM"])
    with pytest.raises(ParamsError, match=r"'phase1\.stepz'.*Did you mean 'steps'.*Allowed: .*schedule.*all: ilm_lib"):
        load_params("toy", **{"phase1.stepz": 10})


def test_a_reading_with_an_unknown_key_is_refused_before_any_work():
    with pytest.raises(ParamsError, match=r"ablations.readings, 'colder'.*'phase1\.temprature'"):
        load_params("toy", **{"ablations.readings": {"colder": {"phase1.temprature": 0.01}}})


def test_unknown_keys_of_a_file_are_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("qformer: {widht: 96}\n")
    with pytest.raises(ParamsError, match=r"'qformer\.widht'.*'width'"):
        load_params(path)


@pytest.mark.parametrize(
    "key, value",
    [
        ("phase2.lr", "fast"),
        ("evaluation.beams", 9),
        ("phase1.losses", ["itc", "xyz"]),
        ("phase1.losses", ["itc", "itc"]),
        ("phase1.losses", []),
        ("qformer.heads", 7),
        ("sasrec.heads", 7),
        ("data.source", "openp5"),
        ("seed", -1),
        ("backbone.precision", "half"),
        ("phase1", 3),
    ],
)
def test_a_bad_value_names_its_key(key, value):
    with pytest.raises(ParamsError, match=key.split(".")[0]) as error:
        load_params("toy", **{key: value})
    assert key.split(".")[-1] in str(error.value)


@pytest.mark.parametrize("loop", ["sasrec", "phase1", "backbone", "phase2"])
@pytest.mark.parametrize(
    "key, value", [("steps", 0), ("batch_size", 1), ("lr", 0), ("warmup", 1), ("weight_decay", -1)]
)
def test_every_training_loop_has_the_same_limits(loop, key, value):
    with pytest.raises(ParamsError, match=rf"{loop}\.{key}: .* is out of range; give (\d|more than)"):
        load_params("toy", **{f"{loop}.{key}": value})


@pytest.mark.parametrize("key, value", [("method", "ILM-all"), ("methods", ["MLP", "ILM-all"])])
def test_method_names_are_checked(key, value):
    with pytest.raises(ParamsError, match="ILM-all.*OpenP5-R.*ILM-IT-UI"):
        load_params("toy", **{key: value})


def test_the_methods_differ_in_phase1_losses():
    params = load_params("toy", **{"phase1.losses": ["itc", "ui"]})
    assert params.losses_of("ILM") == ("itc", "ui")
    assert params.losses_of("ILM-rand") == params.losses_of("MLP") == ()
    assert params.losses_of("ILM-IT-II") == ("itc", "itg", "itm", "ii")


def test_dotted_overrides_leave_their_neighbours_alone():
    base = load_params("toy")
    changed = load_params("toy", **{"phase1.steps": 7, "seed": 3})
    assert (changed.phase1.steps, changed.seed) == (7, 3)
    assert changed.phase1.lr == base.phase1.lr and changed.backbone == base.backbone
    assert base.with_(**{"phase1.steps": 7, "seed": 3}) == changed
    with pytest.raises(ParamsError, match="phase1.stepz"):
        base.with_(**{"phase1.stepz": 7})


def test_params_are_frozen():
    with pytest.raises(Exception, match="frozen"):
        load_params("toy").seed = 1


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ParamsError, match="no profile 'toyy'.*toy"):
        load_params("toyy")


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("phase1: {steps: [\n")
    with pytest.raises(ParamsError, match="mine.yaml is not valid YAML: line 2, column 1: "):
        load_params(tmp_path / "mine.yaml")


def notebook(**cells):
    """globals() of a fresh kernel, after its parameters cell."""
    return {"__name__": "__main__", "_i": "", "In": [""], "Out": {}, "open": open, "ParamsError": ParamsError, **cells}


def test_file_then_injected_then_overrides(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"seed": 1, "phase1": {"steps": 11, "lr": 0.1}, "phase2": {"steps": 12}}))
    cells = notebook(profile=str(path), seed=2, phase1={"steps": 21}, overrides={"phase2.steps": 32, "phase1.lr": 0.3})
    params = load_params(cells)
    assert params.profile == "mine"
    assert (params.seed, params.phase1.steps, params.phase1.lr, params.phase2.steps) == (2, 21, 0.3, 32)
    assert load_params(cells, **{"phase2.steps": 42, "phase1.steps": 41}).phase2.steps == 42
    cells["overrides"]["phase1.steps"] = 31
    assert load_params(cells).phase1.steps == 31 and load_params(cells, **{"phase1.steps": 41}).phase1.steps == 41
    assert load_params(path).phase1.steps == 11


def test_seed_zero_is_a_value_and_blank_cells_are_not(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 4\nmethod: MLP\n")
    params = load_params(notebook(profile=str(path), seed=0, method="", methods=[], overrides={}))
    assert (params.seed, params.method) == (0, "MLP") and params.methods == load_params(path).methods


def test_a_misspelt_parameter_of_a_notebook_is_refused():
    with pytest.raises(ParamsError, match="'sede'.*Did you mean 'seed'.*Allowed: .*overrides"):
        load_params(notebook(profile="toy", sede=3))


def test_cells_may_run_again_once_the_notebook_has_names_of_its_own():
    cells = notebook(profile="toy", seed=3)
    assert load_params(cells).seed == 3
    cells |= {"count": 7, "table": {"a": 1}, "seed": 5}
    assert load_params(cells).seed == 5


def test_load_params_returns_all_settings():
    assert isinstance(load_params(), Params)


@pytest.mark.parametrize("name", ["x; touch y", "../x", "a b", "", "-x", "x/y"])
def test_a_profile_is_called_what_a_folder_may_be_called(tmp_path, name):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"profile": name}))
    with pytest.raises(ParamsError, match="cannot name a folder"):
        load_params(path)
    with pytest.raises(ParamsError, match="no profile"):
        load_params(name)


def test_ones_own_profile_is_read_and_else_the_one_that_came_with_the_library(tmp_path, monkeypatch):
    own, package = tmp_path / "here", tmp_path / "installed"
    for folder, seed, names in ((own / "params", 1, ("mine", "toy")), (package / "_profiles", 2, ("toy", "ml100k"))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.yaml").write_text(f"seed: {seed}\n")
    monkeypatch.setattr(profiles, "ROOT", own)
    monkeypatch.setattr(profiles, "PACKAGE", package)
    assert [load_params(name).seed for name in ("mine", "toy", "ml100k")] == [1, 1, 2]
    assert profiles.profile_path("new") == own / "params" / "new.yaml"
    with pytest.raises(ParamsError, match=r"Known: mine, ml100k, toy$"):
        load_params("neu")
