import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from ilm_lib.devices import use_bfloat16
from ilm_lib.settings import Optim
from ilm_lib.train import losses as o
from ilm_lib.train.loop import Diverged, drawn_batches, fit, schedule
from ilm_lib.train.pause import OutOfTime, is_over, time_limit


class Interrupted(Exception):
    pass


def run(*, steps=24, seed=0, stop=None, optimizer="adamw", evaluate=None, **kwargs):
    """A small contrastive model whose loss draws hard negatives. Returns its weights and the history."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))

    def batch(step):
        if step == stop:
            raise Interrupted
        rng = np.random.default_rng([9, step])
        return torch.from_numpy(rng.standard_normal((8, 6), dtype=np.float32))

    def loss(m, x):
        a, b = (nn.functional.normalize(m(v), dim=-1) for v in (x, x + 0.1))
        text, item = o.hard_negatives(a @ b.T, torch.arange(8), 0.5)
        return {"pull": 1 - (a * b).sum(1).mean(), "push": (a * b[text]).sum(1).mean() + (a[item] * b).sum(1).mean()}

    history = fit(
        model,
        list(model.parameters()),
        loss,
        batch,
        Optim(steps=steps, lr=1e-2, optimizer=optimizer),
        seed=seed,
        evaluate=evaluate,
        **kwargs,
    )
    assert not model.training
    return [p.detach().clone() for p in model.parameters()], history


def saved(state):
    """What a file of state says besides its tensors."""
    with safe_open(state, "pt") as file:
        return json.loads(file.metadata()["about"])


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def noise_of(model, step):
    """An evaluation that uses up random numbers."""
    return {"score": float(torch.rand(())) + float(model[0].weight.detach().sum())}


def test_equal_seeds_give_equal_weights():
    (a, first), (b, second), (c, _) = run(), run(), run(seed=1)
    assert equal(a, b) and not equal(a, c)
    pd.testing.assert_frame_equal(first, second)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("every, stop", [(6, 20), (7, 46), (7, 24), (10, 3)])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, optimizer, every, stop):
    kwargs = dict(steps=50, optimizer=optimizer, evaluate=noise_of, eval_every=every)
    weights, history = run(**kwargs)
    state = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        run(**kwargs, stop=stop, state=state)
    assert state.exists() == (stop >= every)
    resumed, rest = run(**kwargs, state=state)
    assert equal(weights, resumed)
    pd.testing.assert_frame_equal(history, rest)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_run_that_is_out_of_time_goes_on_as_if_it_had_not_been(tmp_path, optimizer):
    """Stopped after every step, in the middle of a row of the log and of an evaluation interval too."""
    kwargs = dict(steps=60, optimizer=optimizer, evaluate=noise_of, eval_every=10)  # a row every third step
    weights, history = run(**kwargs)
    state = tmp_path / "state.safetensors"
    for done in range(1, 60):
        with time_limit(0), pytest.raises(OutOfTime, match=f"stopped after step {done} of 60"):
            run(**kwargs, state=state)
    with time_limit(0):  # the last step is the end of it
        resumed, rest = run(**kwargs, state=state)
    assert equal(weights, resumed)
    pd.testing.assert_frame_equal(history, rest)
    with time_limit(None), time_limit(3600):
        assert not is_over()
        with time_limit(0), time_limit(None):
            assert is_over()
    with time_limit(0):  # without a state to save there is nothing to go on from
        assert equal(run(**kwargs)[0], weights)


def test_what_is_saved_out_of_time_is_checked(tmp_path):
    model, state = nn.Linear(2, 1), tmp_path / "state.safetensors"
    loss, optim = lambda m, b: {"x": m(b).sum()}, Optim(steps=100)
    with time_limit(0), pytest.raises(Diverged, match="not finite at step 1 "):
        fit(model, [*model.parameters()], loss, lambda n: torch.full((4, 2), np.nan), optim, seed=0, state=state)
    assert not state.exists()


def test_a_resumed_run_does_not_repeat_steps(tmp_path):
    steps = []
    with pytest.raises(Interrupted):
        run(stop=20, state=tmp_path / "state.safetensors", eval_every=6)
    torch.manual_seed(0)
    assert saved(tmp_path / "state.safetensors")["step"] == 18
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    run(state=tmp_path / "state.safetensors", eval_every=6, evaluate=lambda m, step: steps.append(step) or {"x": 0})
    assert steps == [24]


@pytest.mark.parametrize("stop", [None, 15, 21])
def test_the_best_weights_are_restored(tmp_path, stop):
    scores, seen = {4: 0.1, 8: 0.7, 12: 0.3, 16: 0.7, 20: 0.2, 24: 0.6}, {}

    def evaluate(model, step):
        assert not model.training
        seen[step] = [p.detach().clone() for p in model.parameters()]
        return {"ndcg": scores[step]}

    kwargs = dict(evaluate=evaluate, eval_every=4, keep_best="ndcg", state=tmp_path / "state.safetensors")
    if stop:
        with pytest.raises(Interrupted):
            run(**kwargs, stop=stop)
    weights, history = run(**kwargs)
    assert equal(weights, seen[8])  # the first of the two best
    assert not equal(seen[8], seen[24])
    assert history[history.split == "heldout"].value.tolist() == list(scores.values())


def test_history_holds_means_of_every_loss():
    _, history = run(steps=40)  # a row every other step
    assert list(history.columns) == ["step", "name", "value", "split"] and set(history.split) == {"train"}
    assert history[history.name == "pull"].step.tolist() == list(range(2, 41, 2))
    assert set(history.name) == {"pull", "push"}
    model, values = nn.Linear(1, 1), iter(range(40))
    counted = fit(
        model,
        list(model.parameters()),
        lambda m, b: {"x": 0 * m(torch.ones(1, 1)).sum() + next(values)},
        lambda step: None,
        Optim(steps=40),
        seed=0,
    )
    assert counted.value.tolist() == [i + 0.5 for i in range(0, 40, 2)]


@pytest.mark.parametrize("every", [2, 7])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, every):
    model, state = nn.Linear(2, 1), tmp_path / "state.safetensors"
    batches = lambda step: torch.full((4, 2), float("nan") if step == 6 else 1.0)
    with pytest.raises(FloatingPointError, match="phase 9.*not finite at step [78]"):
        fit(
            model,
            list(model.parameters()),
            lambda m, x: {"mse": m(x).square().mean()},
            batches,
            Optim(steps=40),
            seed=0,
            label="phase 9",
            eval_every=every,
            state=state,
        )
    if state.exists():
        assert all(w.isfinite().all() for w in load_file(state).values())


def test_only_the_given_parameters_are_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = [p.detach().clone() for p in model.parameters()]
    fit(
        model,
        list(model[1].parameters()),
        lambda m, x: {"mse": (m(x) - 3).square().mean()},
        lambda step: torch.ones(4, 2),
        Optim(steps=5, lr=0.1),
        seed=0,
    )
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters())]
    assert moved == [False, False, True, True]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_line_is_learnt(optimizer):
    torch.manual_seed(0)
    model, target = nn.Linear(3, 1), torch.tensor([[1.0, -2.0, 0.5]])
    batches = lambda step: torch.randn(32, 3, generator=torch.Generator().manual_seed(step))
    fit(
        model,
        list(model.parameters()),
        lambda m, x: {"mse": (m(x) - x @ target.T).square().mean()},
        batches,
        Optim(steps=300, lr=0.05, optimizer=optimizer),
        seed=0,
    )
    torch.testing.assert_close(model.weight.detach(), target, atol=0.05, rtol=0)


def test_the_schedule_warms_up_and_falls_to_zero():
    linear, cosine = (Optim(steps=100, warmup=0.1, schedule=s) for s in ("linear", "cosine"))
    for optim in (linear, cosine):
        assert [schedule(s, optim) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1, 1])
        assert schedule(55, optim) == pytest.approx(0.5) and schedule(100, optim) == pytest.approx(0)
        assert 0 < schedule(99, optim) < 0.02
    assert schedule(32, linear) == pytest.approx(1 - 22 / 90)
    assert schedule(32, cosine) == pytest.approx(0.5 + 0.5 * np.cos(np.pi * 22 / 90))
    assert schedule(0, Optim(steps=10, warmup=0)) == 1


def test_precision_is_resolved():
    assert use_bfloat16("bfloat16") and not use_bfloat16("float32") and use_bfloat16("auto") in (True, False)


def test_a_batch_is_a_function_of_its_number_alone():
    draw = lambda rng, size: [(int(n), str(n)) for n in rng.integers(10**9, size=size)]
    forward, backward = (drawn_batches(draw, lambda *columns: columns, 4, seed=1) for _ in range(2))
    first = [forward(n) for n in range(20)]
    assert [backward(n) for n in reversed(range(20))] == first[::-1] and forward(3) == first[3]
    assert len({numbers for numbers, _ in first}) == 20 and all(len(numbers) == 4 for numbers, _ in first)
    assert drawn_batches(draw, lambda *columns: columns, 4, seed=2)(3) != first[3]


class Part(list):
    """Rows of a batch, weighted by how many they are."""

    @property
    def weight(self):
        return len(self)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_several_batches_a_step_are_one_large_batch(tmp_path, optimizer):
    data = torch.randn(20, 9, 4, generator=torch.Generator().manual_seed(0))
    cuts = (slice(0, 2), slice(2, 7), slice(7, 9))  # of unequal weight
    target = torch.tensor([1.0, -2.0, 0.5, 3.0])

    def train(accumulate, batches, **kwargs):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        loss = lambda m, rows: {"mse": (m(torch.stack(rows)).squeeze(1) - torch.stack(rows) @ target).square().mean()}
        history = fit(
            model,
            list(model.parameters()),
            loss,
            batches,
            Optim(steps=20, lr=0.01, optimizer=optimizer, accumulate=accumulate),
            seed=0,
            **kwargs,
        )
        return [p.detach() for p in model.parameters()], history

    large, log = train(1, lambda n: Part(data[n]))
    small, parts_log = train(3, lambda n: Part(data[n // 3][cuts[n % 3]]))
    for a, b in zip(large, small):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert parts_log.value.tolist() == pytest.approx(log.value.tolist(), abs=1e-5)

    def stopping(n):
        if n == 3 * 11:
            raise Interrupted
        return Part(data[n // 3][cuts[n % 3]])

    kwargs = dict(state=tmp_path / "state.safetensors", eval_every=5)
    with pytest.raises(Interrupted):
        train(3, stopping, **kwargs)
    assert equal(train(3, lambda n: Part(data[n // 3][cuts[n % 3]]), **kwargs)[0], small)
