import multiprocessing
import os

import pytest

from ilm_lib import artifacts
from ilm_lib.artifacts import CorruptStage, MissingStage, stage, write_json

SETTINGS = {"steps": 3, "method": "ILM"}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def make():
    """Writes a file and counts how often it was called."""

    def write(folder):
        write.calls += 1
        (folder / "value.txt").write_text("42")

    write.calls = 0
    return write


def phase1(make, *, params=SETTINGS, inputs=(), code=("kernels",), profile="toy"):
    return stage("phase1", profile, params, inputs, code, make, "03_phase1")


def test_the_second_call_is_a_no_op(make, runs):
    first, second = phase1(make), phase1(make)
    assert make.calls == 1 and first == second
    assert first("value.txt").read_text() == "42"
    assert first.folder == runs / "toy" / "phase1" / first.fingerprint
    assert phase1(None) == first


def test_the_manifest_says_what_the_result_depends_on(make):
    upstream = stage("data", "toy", {}, [], [], make, "01_data")
    manifest = phase1(make, inputs=[upstream]).manifest
    assert manifest["params"] == SETTINGS and manifest["inputs"] == {"data:0": upstream.fingerprint}
    assert manifest["code"] == {"kernels": artifacts.code_digest("kernels")}
    assert list(manifest["files"]) == ["value.txt"] and manifest["packages"]["torch"]
    assert manifest["seconds"] >= 0 and manifest["peak_memory_gib"] > 0


def test_a_change_of_params_inputs_or_code_makes_it_anew(make, monkeypatch):
    a, b = (stage("data", "toy", {"seed": s}, [], [], make, "01_data") for s in (0, 1))
    made = [phase1(make, inputs=[a]), phase1(make, inputs=[b]), phase1(make, inputs=[a, b]), phase1(make),
            phase1(make, params={**SETTINGS, "steps": 4}), phase1(make, code=("kernels", "qformer"))]
    monkeypatch.setattr(artifacts, "code_digest", lambda module: "other")
    made.append(phase1(make))
    assert len({m.fingerprint for m in made}) == len(made) and make.calls == 2 + len(made)


def test_the_fingerprint_does_not_depend_on_the_order_of_settings(make):
    assert phase1(make) == phase1(make, params=dict(reversed(SETTINGS.items())))


def test_an_interrupted_stage_leaves_no_artifact_and_goes_on_from_its_folder(runs):
    def interrupted(folder):
        (folder / "state.pt").write_text("step 7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phase1(interrupted)
    assert not list(runs.rglob("manifest.json"))
    with pytest.raises(MissingStage):
        phase1(None)

    def goes_on(folder):
        (folder / "value.txt").write_text("after " + (folder / "state.pt").read_text())

    artifact = phase1(goes_on)
    assert artifact("value.txt").read_text() == "after step 7"
    assert sorted(p.name for p in artifact.folder.iterdir()) == ["manifest.json", "value.txt"]


@pytest.mark.parametrize("harm", [lambda p: p.write_text("43"), lambda p: p.unlink()], ids=["changed", "deleted"])
def test_a_file_that_was_touched_is_named(make, harm):
    artifact = phase1(make)
    harm(artifact("value.txt"))
    with pytest.raises(CorruptStage, match="value.txt") as error:
        phase1(make)
    assert str(artifact.folder) in str(error.value) and make.calls == 1


def test_a_missing_stage_names_the_notebook_and_the_command():
    with pytest.raises(MissingStage, match=r"phase1.*notebooks/03_phase1\.ipynb.*make study PROFILE=ml100k"):
        phase1(None, profile="ml100k")


def _slow_phase1(barrier, log):
    def slowly(folder):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "value.txt").write_text("42")
        os.sched_yield()

    barrier.wait()
    assert phase1(slowly)("value.txt").read_text() == "42"


def test_of_two_processes_one_makes_the_stage(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier, log = fork.Barrier(2), tmp_path / "log"
    workers = [fork.Process(target=_slow_phase1, args=(barrier, log)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    assert len(log.read_text().split()) == 1


def test_statements_count_for_the_code_digest_and_comments_do_not(tmp_path, monkeypatch):
    (tmp_path / "ilm_lib" / "data").mkdir(parents=True)
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)

    def digest(text, module="thing"):
        (tmp_path / "ilm_lib" / (module.replace(".", "/") + ".py")).write_text(text)
        artifacts.code_digest.cache_clear()
        return artifacts.code_digest(module)

    plain = digest("def f(x):\n    return x + 1\n")
    assert digest("# why\n\ndef f( x ):\n    return (x +\n            1)  # one\n") == plain
    assert digest("def f(x):\n    return x + 2\n") != plain
    assert digest("def f(x):\n    return x + 1\n", "data.toy") == plain
    artifacts.code_digest.cache_clear()


def test_json_is_written_whole(tmp_path):
    write_json(tmp_path / "a.json", {"titel": "Grün"})
    assert "Grün" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert "Grün" in (tmp_path / "a.json").read_text(encoding="utf-8")
