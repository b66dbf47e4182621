"""Training state that is damaged, cut short, swapped, or fills the disk: the run ends as if there had been none."""

import ast
import contextlib
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from plain import plain, refused
from safetensors.torch import load_file, save_file
from torch import nn

from ilm_lib.settings import Optim
from ilm_lib.train import state as states
from ilm_lib.train.loop import fit
from ilm_lib.train.state import STATE, forget_state, save_state


def train(state, *, stop=None, width=8, seed=0, keep_best="score", eval_every=2, **optim):
    """A small network after 8 steps; `stop` interrupts it. Returns its weights and its log."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 1))

    def batch(number):
        if number == stop:
            raise KeyboardInterrupt
        return torch.randn(8, 6, generator=torch.Generator().manual_seed(number))

    with contextlib.suppress(KeyboardInterrupt):
        log = fit(
            model,
            list(model.parameters()),
            lambda m, x: {"mse": (m(x)[:, 0] - x.sum(1) * torch.rand(8)).square().mean()},
            batch,
            Optim(**{"steps": 8, "lr": 1e-2, **optim}),
            seed=seed,
            evaluate=lambda m, step: {"score": -abs(step - 4)},
            eval_every=eval_every,
            keep_best=keep_best,
            state=state,
            label="trial",
        )
        return [p.detach().clone() for p in model.parameters()], log
    return None


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1].equals(b[1])


OPTIMIZERS = ("adamw", "adafactor")
in_turn = lambda cases: [pytest.param(OPTIMIZERS[n % 2], cases[name], id=name) for n, name in enumerate(cases)]
with_both = pytest.mark.parametrize("optimizer", OPTIMIZERS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """For each optimizer the state after 6 of 8 steps, and how the run ends when nobody interrupts it."""
    runs = {}
    for name in OPTIMIZERS:
        path = tmp_path_factory.mktemp("made") / STATE
        train(path, stop=7, optimizer=name)
        runs[name] = path, train(None, optimizer=name)
    return runs


@pytest.fixture
def whole(made, optimizer):
    return made[optimizer][1]


@pytest.fixture
def state(made, optimizer, tmp_path):
    return Path(shutil.copy(made[optimizer][0], tmp_path / STATE))


FLIPS = [i / 40 for i in range(40)]  # places in the file, as shares of its length
CUTS = [0, 1, 7, 8, 9, 200, 0.3, 0.6, 0.9, -1]  # lengths in bytes, or as shares


def flip(share):
    def harm(path):
        data = bytearray(path.read_bytes())
        data[int(share * len(data))] ^= 0x10
        path.write_bytes(data)

    return harm


def cut(length):
    def harm(path):
        data = path.read_bytes()
        path.write_bytes(data[: int(length * len(data)) if isinstance(length, float) else length])

    return harm


def poison(name):
    """One weight is no number, and the rest as it was: a valid file whose digest is another's."""

    def harm(path):
        with states.safe_open(path, "pt") as file:
            noted = file.metadata()
        tensors = load_file(path)
        tensors[name].view(-1)[0] = float("nan")
        save_file(tensors, path, noted)

    return harm


DAMAGE = {
    **{f"flip at {share:.3f}": flip(share) for share in FLIPS},
    **{f"cut to {length}": cut(length) for length in CUTS},
    "last byte flipped": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x55"),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("step 6"),
    "a pickle": lambda path: torch.save({"step": 6}, path),
    "NaN in the weights": poison("weights.0"),
    "NaN in the best weights": poison("best.2"),
    "no digest": lambda path: save_file(load_file(path), path),
    "JSON of another kind": lambda path: save_state(path, load_file(path), [1]),
}


@pytest.mark.parametrize("optimizer, harm", in_turn(DAMAGE))
def test_damage_is_named_set_aside_and_the_run_starts_over(state, whole, optimizer, capsys, harm):
    harm(state)
    broken = state.read_bytes()
    assert same(train(state, optimizer=optimizer), whole)
    said = capsys.readouterr().err
    plain(said, str(state), "damaged", "state.broken", "starts over")
    assert "goes on" not in said and state.with_suffix(".broken").read_bytes() == broken


OTHER = {
    "steps": {"steps": 10},
    "learning rate": {"lr": 2e-2},
    "schedule": {"schedule": "cosine"},
    "warm-up": {"warmup": 0.2},
    "weight decay": {"weight_decay": 0.1},
    "batch size": {"batch_size": 8},
    "batches a step": {"accumulate": 2},
    "seed": {"seed": 1},
    "width": {"width": 9},
    "what is kept": {"keep_best": None},
    "evaluations": {"eval_every": 3},
}


@pytest.mark.parametrize("optimizer, other", in_turn(OTHER))
def test_the_state_of_other_settings_is_not_believed(state, optimizer, capsys, other):
    assert same(train(state, optimizer=optimizer, **other), train(None, optimizer=optimizer, **other))
    plain(capsys.readouterr().err, str(state), "of other settings", "state.broken", "starts over")


@with_both
def test_the_state_of_another_optimizer_is_not_believed(made, state, optimizer, capsys):
    another = {"adamw": "adafactor", "adafactor": "adamw"}[optimizer]
    assert same(train(state, optimizer=another), made[another][1])
    assert "of other settings" in capsys.readouterr().err


@with_both
def test_a_whole_state_is_believed_and_said(state, whole, optimizer, capsys):
    assert same(train(state, optimizer=optimizer), whole)
    plain(capsys.readouterr().err, "trial: goes on after step 6", str(state))
    assert [p.name for p in state.parent.iterdir()] == [STATE]


@with_both
def test_one_broken_copy_is_kept_and_the_state_after_it_is_believed(state, whole, optimizer, capsys):
    for content in ("first", "second"):
        state.write_text(content)
        train(state, optimizer=optimizer)
    assert "goes on" not in capsys.readouterr().err
    assert same(train(state, optimizer=optimizer), whole)
    assert "goes on after step 8" in capsys.readouterr().err
    assert sorted(p.name for p in state.parent.iterdir()) == ["state.broken", STATE]
    assert state.with_suffix(".broken").read_text() == "second"


@with_both
def test_a_headless_run_says_it_where_progress_is_shown(state, optimizer, monkeypatch, capsys):
    monkeypatch.setenv("ILM_PROGRESS", str(state.parent / "progress"))
    monkeypatch.setenv("ILM_JOB", "04_phase2 seed 3")
    state.write_text("no")
    train(state, optimizer=optimizer)
    captured = capsys.readouterr()
    assert not captured.out and not captured.err  # of a notebook, whose output is compared
    assert "04_phase2 seed 3: " in plain((state.parent / "progress").read_text(), str(state), "damaged")


@contextlib.contextmanager
def full_disk(bytes_left):
    """No file can grow beyond this; the system says so as it says that a disk is full, while writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@with_both
@pytest.mark.parametrize("bytes_left", [0, 10, 1000, 3000])
def test_a_full_disk_is_one_line_and_loses_nothing(state, whole, optimizer, capsys, bytes_left):
    before = state.read_bytes()
    with full_disk(bytes_left):
        refused(lambda: train(state, optimizer=optimizer), str(state), "cannot be written", "Make room", "run again")
    assert state.read_bytes() == before and [p.name for p in state.parent.iterdir()] == [STATE]
    assert same(train(state, optimizer=optimizer), whole)
    assert "goes on after step 6" in capsys.readouterr().err


def test_a_state_that_can_be_neither_written_nor_read_is_refused(tmp_path):
    refused(lambda: train(tmp_path / "gone" / STATE), "gone", "cannot be written", "Make room")
    (tmp_path / STATE).mkdir()
    refused(lambda: train(tmp_path / STATE), STATE, "cannot be read", "Delete it")


@with_both
@pytest.mark.parametrize("call", ["save_file", "replace"])
def test_a_kill_while_the_state_is_written_leaves_the_state_before(state, whole, optimizer, monkeypatch, capsys, call):
    class Killed(BaseException):
        pass

    def killed(*args):
        if call == "save_file":
            Path(args[1]).write_bytes(b"half a sta")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((states, "save_file") if call == "save_file" else (Path, "replace")), killed)
        with pytest.raises(Killed):
            train(state, optimizer=optimizer)
    assert sorted(p.name for p in state.parent.iterdir()) == [STATE, "state.tmp"]
    assert same(train(state, optimizer=optimizer), whole)
    assert "goes on after step 6" in capsys.readouterr().err


def test_nothing_of_it_stays_in_a_finished_stage(tmp_path):
    for name in (STATE, "state.tmp", "state.broken", "encoder.safetensors", "states.json"):
        (tmp_path / name).touch()
    forget_state(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["encoder.safetensors", "states.json"]


def test_every_training_of_the_library_has_a_state():
    calls = [
        (path.name, {word.arg for word in node.keywords})
        for path in (Path(states.__file__).parents[1]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "fit"
    ]
    trained = {"phase1.py", "phase2.py", "pretrain.py", "sasrec.py", "dialogue.py", "likeness.py"}
    assert {name for name, _ in calls} == trained
    assert all("state" in words for _, words in calls)
