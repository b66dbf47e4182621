"""Stage artifacts: keys by content, checks, interruptions, two processes at once."""

import multiprocessing
import os

import pytest

from ilm_lib import files
from ilm_lib.data import DataError
from ilm_lib.settings import Phase2
from ilm_lib.study import artifacts
from ilm_lib.study.artifacts import CorruptStage, MissingStage, SourceFile, stage

GIVEN = {"steps": 3, "method": "ILM"}


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("ILM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def code(monkeypatch):
    """The code of every stage, by name; a test changes it as an edit would."""
    versions = {}
    monkeypatch.setattr(artifacts, "code_digest", lambda make: versions.get(make, "first"))
    return versions


class Make:
    """Writes a file and counts how often it was called."""

    def __init__(self, text="42"):
        self.text, self.calls = text, 0

    def __call__(self, folder, **given):
        self.calls += 1
        (folder / "value.txt").write_text(self.text)


@pytest.fixture
def make():
    return Make()


def phase1(make, *, given=GIVEN, profile="toy", build=True):
    return stage("phase1", make, profile, made_by="03_phase1", build=build, given=given)


def data(make, given=None):
    return stage("data", make, "toy", made_by="01_data", build=True, given=given or {})


def test_the_second_call_is_a_no_op(make, runs):
    first, second = phase1(make), phase1(make)
    assert make.calls == 1 and first == second
    assert first.path("value.txt").read_text() == "42"
    assert first.folder == runs / "toy" / "phase1" / first.key
    assert phase1(make, build=False) == first


def test_the_manifest_says_what_the_result_depends_on(make):
    upstream = data(make)
    manifest = phase1(make, given={**GIVEN, "data": upstream, "settings": Phase2(steps=7)}).manifest
    assert manifest["given"]["steps"] == 3 and manifest["given"]["settings"]["steps"] == 7
    assert manifest["given"]["data"] == {"value.txt": files.sha256(upstream.path("value.txt"))}
    assert manifest["code"] == "first" and list(manifest["files"]) == ["value.txt"]
    assert {"packages", "python", "seconds", "peak_memory_gib"} <= set(manifest)


def test_a_change_of_settings_inputs_or_code_makes_it_anew(make, code, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    a, b = data(Make("a")), data(Make("b"), {"seed": 1})
    variants = [GIVEN, {**GIVEN, "steps": 4}, {**GIVEN, "data": a}, {**GIVEN, "data": b}]
    variants += [{"data": a, "cf": b}, {"data": b, "cf": a}, {"files": []}, {"file": None}]
    variants += [{**GIVEN, "settings": Phase2(steps=steps)} for steps in (7, 8)]
    variants += [{"file": SourceFile(tmp_path / name)} for name in ("a.txt", "b.txt")]
    made = [phase1(make, given=given) for given in variants]
    code[make] = "second"
    made.append(phase1(make))
    assert len({artifact.key for artifact in made}) == len(made) == make.calls


def test_a_stage_that_comes_out_equal_changes_nothing_after_it(make, code):
    first = Make("same")
    upstream = data(first)
    follows = phase1(make, given={"data": upstream})
    code[first] = "second"  # the code of data is another one now, and what it writes is the same
    again = data(first)
    assert again.key != upstream.key and first.calls == 2
    assert phase1(make, given={"data": again}) == follows and make.calls == 1
    first.text, code[first] = "different", "third"
    assert phase1(make, given={"data": data(first)}) != follows and make.calls == 2


def test_a_file_counts_by_content_and_not_by_name_or_time(make, tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("1,2,3")
    os.utime(tmp_path / "b.csv", (1, 1))
    keys = {phase1(make, given={"file": SourceFile(tmp_path / name)}).key for name in ("a.csv", "b.csv")}
    assert len(keys) == 1
    with pytest.raises(DataError, match=r"c\.csv.*is missing.*Look again"):
        phase1(make, given={"file": SourceFile(tmp_path / "c.csv", "Look again")})


def test_what_has_no_identity_cannot_be_given(make):
    with pytest.raises(TypeError, match="cannot be given a object"):
        phase1(make, given={"thing": object()})
    assert make.calls == 0


def test_the_key_does_not_depend_on_the_order_of_arguments(make):
    assert phase1(make) == phase1(make, given=dict(reversed(GIVEN.items())))


def test_an_interrupted_stage_leaves_no_artifact_and_goes_on_from_its_folder(runs):
    def interrupted(folder, **given):
        for name in ("state.safetensors", "state.tmp", "state.broken"):
            (folder / name).write_text("step 7")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        phase1(interrupted)
    assert not list(runs.rglob("manifest.json"))
    with pytest.raises(MissingStage):
        phase1(interrupted, build=False)

    def goes_on(folder, **given):
        (folder / "value.txt").write_text("after " + (folder / "state.safetensors").read_text())

    artifact = phase1(goes_on)
    assert artifact.path("value.txt").read_text() == "after step 7"
    assert sorted(p.name for p in artifact.folder.iterdir()) == ["manifest.json", "value.txt"]


@pytest.mark.parametrize("harm", [lambda p: p.write_text("43"), lambda p: p.unlink()], ids=["changed", "deleted"])
def test_a_file_that_was_touched_is_named(make, harm):
    artifact = phase1(make)
    harm(artifact.path("value.txt"))
    with pytest.raises(CorruptStage, match=r"value\.txt") as error:
        phase1(make)
    assert str(artifact.folder) in str(error.value) and make.calls == 1


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', '{"files": {"value.txt": {"sha256": "0"}}}', "\0"])
def test_a_damaged_manifest_is_named(make, text):
    artifact = phase1(make)
    artifact.path("manifest.json").write_text(text)
    with pytest.raises(CorruptStage, match=r"manifest\.json"):
        phase1(make)


def test_a_large_file_is_read_again_only_after_it_was_touched(make, monkeypatch):
    monkeypatch.setattr(artifacts, "LARGE", 1)  # bytes
    artifact = phase1(make)
    files._sha256.cache_clear()  # as in a new process
    read = []
    monkeypatch.setattr(artifacts, "sha256", lambda path: read.append(path) or files.sha256(path))
    for _ in range(3):
        phase1(make)
    assert read == []
    os.utime(artifact.path("value.txt"), (1, 1))
    phase1(make)
    assert len(read) == 1  # the content is as it was
    artifact.path("value.txt").write_text("43")
    with pytest.raises(CorruptStage):
        phase1(make)


def test_a_large_source_is_read_once_and_again_when_it_changes(make, monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "LARGE", 1)
    source, read = tmp_path / "interactions.csv", []
    source.write_text("1,2,3")
    monkeypatch.setattr(artifacts, "sha256", lambda path: read.append(path) or files.sha256(path))
    keys = []
    for _ in range(3):
        files._sha256.cache_clear()
        keys.append(phase1(make, given={"file": SourceFile(source)}).key)
    assert read.count(source) == 1 and len(set(keys)) == 1
    source.write_text("1,2,4")
    assert phase1(make, given={"file": SourceFile(source)}).key != keys[0] and read.count(source) == 2


def test_small_files_are_read_in_every_process_and_once_in_each(make, monkeypatch):
    artifact, hashed = phase1(make), []
    original = files._sha256
    monkeypatch.setattr(files, "_sha256", lambda *stat: hashed.append(stat) or original(*stat))
    original.cache_clear()
    for _ in range(3):
        phase1(make)
    assert original.cache_info().misses == 1 and len(hashed) == 3 and artifact.path("value.txt") == hashed[0][0]


def test_a_missing_stage_names_the_notebook_and_the_command(make):
    with pytest.raises(MissingStage, match=r"phase1.*notebooks/03_phase1\.ipynb.*make study PROFILE=ml100k"):
        phase1(make, profile="ml100k", build=False)


def test_files_can_be_read_by_the_group():
    def secretive(folder, **given):  # as safetensors writes
        (folder / "weights").mkdir()
        (folder / "weights" / "w.safetensors").touch(mode=0o600)

    umask = os.umask(0o022)
    try:
        artifact = phase1(secretive)
    finally:
        os.umask(umask)
    modes = {p: p.stat().st_mode & 0o777 for p in (artifact.folder, *artifact.folder.rglob("*"))}
    assert all(mode & 0o044 == 0o044 for mode in modes.values()), modes


def _slow_phase1(barrier, log):
    def slowly(folder, **given):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "value.txt").write_text("42")
        os.sched_yield()

    barrier.wait()
    assert phase1(slowly).path("value.txt").read_text() == "42"


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


def test_json_is_written_whole(tmp_path):
    files.write_json(tmp_path / "a.json", {"titel": "Grün"})
    assert files.read_json(tmp_path / "a.json") == {"titel": "Grün"}
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "a.json", {"x": object()})
    assert files.read_json(tmp_path / "a.json") == {"titel": "Grün"}
