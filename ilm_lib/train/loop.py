"""One training loop for everything: phase 1, backbone pretraining, phase 2; in one process or in several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ilm_lib import processes
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.errors import Refusal
from ilm_lib.progress import progress, say
from ilm_lib.settings import Optim
from ilm_lib.train.pause import OutOfTime, is_over
from ilm_lib.train.state import load_state, save_state

LossFn = Callable[[nn.Module, Any], Mapping[str, Tensor]]


class Diverged(Refusal, FloatingPointError):
    """A loss is no number any more; nothing of it was saved."""


def fit(
    model: nn.Module,
    parameters: list[nn.Parameter],
    loss_fn: LossFn,
    batches: Callable[[int], Any],
    optim: Optim,
    *,
    seed: int,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    eval_every: int | None = None,
    keep_best: str | None = None,
    state: Path | None = None,
    label: str = "training",
) -> pd.DataFrame:
    """Train `parameters` of `model` in place.

    Between two log rows nothing waits for the device.

    Args:
        loss_fn: (model, batch) -> named losses; their sum is minimised.
        batches: batch number n, a function of n alone, so that a resumed run sees the batches an uninterrupted one
            would have seen. A step takes `optim.accumulate` of them and weighs each by its `weight` (equally if it
            has none), so a mean over labelled tokens is the mean over those of all. Losses that compare the rows of
            a batch, as in phase 1, compare within each of them.
        evaluate: (model, step) -> named values, every `eval_every` steps and at the end.
        keep_best: a name among those; the weights of the highest value are restored at the end.
        state: file for resumable state, written at every evaluation, and where a `pause.time_limit` is over. A run
            that finds it goes on where settings, seed and shapes are the same; what `batches` draws is not compared,
            so another run takes another file.

    Raises:
        StateError: the state can be neither written nor read.
        Diverged: a loss is not finite.
        OutOfTime: a `pause.time_limit` is over; the state is saved.

    Returns:
        columns step, name, value, split ("train" or "heldout"); train values are means since the last row.
    """
    processes.join()
    model.to(device())
    autocast = torch.autocast(device(), torch.bfloat16, enabled=use_bfloat16(optim.precision))
    optimizer = _optimizer(parameters, optim)
    every = eval_every or max(1, optim.steps // 20)
    run = _Run(parameters, optimizer, label)
    identity = {
        "settings": optim.model_dump(mode="json"),
        "seed": seed,
        "eval_every": every,
        "keep_best": keep_best,
        "weights": [[str(p.dtype), *p.shape] for p in parameters],
    }
    if state is not None:
        run.load(state, identity)
    log_every = max(1, min(every, optim.steps // 20))
    model.train()
    for step in progress(range(run.done, optim.steps), label, total=optim.steps, initial=run.done):
        torch.manual_seed(seed * 1_000_003 + step)  # draws inside the step (hard negatives) survive a resume too
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * schedule(step, optim)
        parts = [batches(step * optim.accumulate + i) for i in range(optim.accumulate)]
        weights = [getattr(part, "weight", 1) for part in parts]
        whole = processes.total(sum(weights))
        for part, weight in zip(parts, weights):
            share = weight / whole
            with autocast:
                losses = loss_fn(model, part)
            (share * sum(losses.values())).backward()
            run.add(losses, share)
        processes.add_up([p.grad for p in parameters if p.grad is not None])
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        run.done = done = step + 1
        if done % log_every == 0 or done % every == 0 or done == optim.steps:  # nothing unchecked is ever saved
            run.log_losses()
        if evaluate is not None and (done % every == 0 or done == optim.steps):
            model.eval()
            run.log_evaluation(evaluate(model, done), keep_best)
            model.train()
        if state is not None and done % every == 0:
            run.save(state, identity)
        if state is not None and done < optim.steps and is_over():
            run.means()  # nothing unchecked is ever saved
            run.save(state, identity)
            raise OutOfTime(f"{label}: stopped after step {done:,} of {optim.steps:,}; run it again, and it goes on")
    run.restore_best()
    model.eval()
    return pd.DataFrame(run.rows, columns=["step", "name", "value", "split"])


class _Run:
    """What a training run knows besides the model: how far it is, its log, its best weights."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, label: str):
        self.parameters, self.optimizer, self.label = parameters, optimizer, label
        self.done, self.best, self.best_weights = 0, -math.inf, None
        self.rows: list[dict[str, Any]] = []
        # Of each loss, since the last row of the log: shares times losses, and shares.
        self.sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, losses: Mapping[str, Tensor], share: Tensor | float) -> None:
        """Count the losses of a batch that is a share of a step; the sums stay on the device."""
        for name, value in losses.items():
            total, shares = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = (total + share * value.detach().float(), shares + share)

    def means(self) -> dict[str, float]:
        """Losses since the last row of the log; Diverged where one is no number."""
        means = {name: total / shares for name, (total, shares) in self._summed().items()}
        if wrong := [name for name, mean in means.items() if not math.isfinite(mean)]:
            raise Diverged(
                f"{self.label}: the loss is not finite at step {self.done} ({', '.join(wrong)}). Lower the learning "
                "rate, `lr` in its section of the profile, or set precision: float32"
            )
        return means

    def _summed(self) -> dict[str, tuple[float, float]]:
        """Of each loss the sums of shares times losses, and of shares, over all processes."""
        over_all = lambda value: float(processes.total(float(value)))
        return {name: (over_all(total), over_all(shares)) for name, (total, shares) in self.sums.items()}

    def log_losses(self) -> None:
        self._log(self.means(), "train")
        self.sums = {}

    def log_evaluation(self, values: Mapping[str, float], keep_best: str | None) -> None:
        self._log(values, "heldout")
        if keep_best is not None and values[keep_best] > self.best:
            self.best, self.best_weights = float(values[keep_best]), [p.detach().clone() for p in self.parameters]

    def _log(self, values: Mapping[str, float], split: str) -> None:
        self.rows += [{"step": self.done, "name": n, "value": float(v), "split": split} for n, v in values.items()]

    def save(self, state: Path, identity: Mapping[str, Any]) -> None:
        tensors = {f"weights.{i}": p for i, p in enumerate(self.parameters)}
        tensors |= {f"best.{i}": value for i, value in enumerate(self.best_weights or ())}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in values.items()}
        sums = self._summed()
        about = {"run": identity, "step": self.done, "best": self.best, "rows": self.rows, "sums": sums}
        save_state(state, tensors, about)

    def load(self, state: Path, identity: Mapping[str, Any]) -> None:
        if (saved := load_state(state, identity)) is None:
            return
        tensors, about = saved
        optimizer: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, i, *name = key.split(".")
            if kind == "optimizer":
                optimizer.setdefault(int(i), {})[name[0]] = value
        # The groups hold settings, and those of this run are the same.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": optimizer})
        _restore(self.parameters, [tensors[f"weights.{i}"] for i in range(len(self.parameters))])
        if "best.0" in tensors:
            self.best_weights = [tensors[f"best.{i}"].to(p.device) for i, p in enumerate(self.parameters)]
        self.done, self.best, self.rows = about["step"], about["best"], about["rows"]
        part = processes.count()  # of what all had, so that the sum over processes is it again
        self.sums = {name: (total / part, shares / part) for name, (total, shares) in about.get("sums", {}).items()}
        say(f"{self.label}: goes on after step {self.done}, from {state}")

    def restore_best(self) -> None:
        if self.best_weights is not None:
            _restore(self.parameters, self.best_weights)


def drawn_batches(
    draw: Callable[[np.random.Generator, int], list[tuple[Any, ...]]], collate: Callable[..., Any], size: int, seed: int
) -> Callable[[int], Any]:
    """Batches for `fit`: number n is drawn with a generator of its own, and what of it this process reads is collated,
    column by column."""
    return lambda number: collate(*zip(*processes.own(draw(np.random.default_rng([seed, number]), size))))


def schedule(step: int, optim: Optim) -> float:
    """Warm-up, then linear or cosine decay to zero: the factor on the learning rate."""
    warmup = int(optim.warmup * optim.steps)
    if step < warmup:
        return (step + 1) / warmup
    rest = min(1.0, (step - warmup) / max(1, optim.steps - warmup))
    return 1 - rest if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def _optimizer(parameters: list[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    """One kernel for all parameters where there is one: small ones cost more to start than to update."""
    if optim.optimizer == "adafactor":  # arXiv 1804.04235, whose step is `lr` times max(eps2, RMS of the weights)
        eps = None, 1e-3 if optim.relative else 1.0
        return torch.optim.Adafactor(parameters, lr=optim.lr, eps=eps, weight_decay=optim.weight_decay, foreach=True)
    return torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay, betas=(0.9, 0.98), fused=True)


@torch.no_grad()
def _restore(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
