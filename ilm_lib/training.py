"""One training loop for everything: phase 1, backbone pretraining, phase 2, on accelerate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Callable, Mapping, TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ilm_lib.params import Optim, Precision
from ilm_lib.progress import progress

T = TypeVar("T")
LossFn = Callable[[nn.Module, Any], Mapping[str, Tensor]]


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

    Args:
        loss_fn: (model, batch) -> named losses; their sum is minimised.
        batches: the batch of a step, a function of the step alone, so that a resumed run sees the batches an
            uninterrupted one would have seen.
        evaluate: (model, step) -> named values, every `eval_every` steps and at the end.
        keep_best: a name among those; the weights of the highest value are restored at the end.
        state: file for resumable state, written at every evaluation; a run that finds it goes on.

    Returns:
        columns step, name, value, split ("train" or "heldout"); train values are means since the last row.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    autocast = torch.autocast(accelerator.device.type, torch.bfloat16, enabled=use_bfloat16(optim.precision))
    optimizer = _optimizer(parameters, optim)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, optim))
    model, optimizer = accelerator.prepare(model, optimizer)
    bare = accelerator.unwrap_model(model)
    rows: list[dict[str, Any]] = []
    best, best_weights, first = -math.inf, None, 0
    if state is not None and state.exists():
        saved = torch.load(state, weights_only=True, map_location=accelerator.device)
        _restore(parameters, saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        rows, best, best_weights, first = saved["rows"], saved["best"], saved["best_weights"], saved["step"]

    every = eval_every or max(1, optim.steps // 20)
    log_every = max(1, min(every, optim.steps // 20))
    sums: dict[str, tuple[Tensor, int]] = {}
    bare.train()
    for step in progress(range(first, optim.steps), label, total=optim.steps, initial=first):
        torch.manual_seed(seed * 1_000_003 + step)  # draws inside the step (hard negatives) survive a resume too
        with autocast:
            losses = loss_fn(model, batches(step))
        accelerator.backward(sum(losses.values()))
        accelerator.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        for name, value in losses.items():
            total, count = sums.get(name, (0.0, 0))
            sums[name] = (total + value.detach().float(), count + 1)
        done = step + 1
        if done % log_every == 0 or done % every == 0 or done == optim.steps:  # nothing unchecked is ever saved
            means = {name: float(total) / count for name, (total, count) in sums.items()}
            if not all(math.isfinite(v) for v in means.values()):
                raise FloatingPointError(f"{label}: the loss is not finite at step {done} ({means}); lower the "
                                         "learning rate or use precision: float32")
            rows += [{"step": done, "name": n, "value": v, "split": "train"} for n, v in means.items()]
            sums = {}
        if evaluate is not None and (done % every == 0 or done == optim.steps):
            bare.eval()
            values = dict(evaluate(bare, done))
            bare.train()
            rows += [{"step": done, "name": n, "value": float(v), "split": "heldout"} for n, v in values.items()]
            if keep_best is not None and values[keep_best] > best:
                best, best_weights = float(values[keep_best]), [p.detach().clone() for p in parameters]
        if state is not None and done % every == 0 and accelerator.is_main_process:
            temporary = state.with_suffix(".tmp")
            torch.save({"weights": [p.detach() for p in parameters], "optimizer": optimizer.state_dict(),
                        "scheduler": scheduler.state_dict(), "rows": rows, "best": best,
                        "best_weights": best_weights, "step": done}, temporary)
            temporary.replace(state)
    if best_weights is not None:
        _restore(parameters, best_weights)
    bare.eval()
    return pd.DataFrame(rows, columns=["step", "name", "value", "split"])


def bucketed(draw: Callable[[np.random.Generator, int], list[T]], collate: Callable[[list[T]], Any],
             length: Callable[[T], int], size: int, seed: int, window: int = 8) -> Callable[[int], Any]:
    """Batches of examples of like length, for `fit`.

    `window` batches are drawn together, sorted by length and dealt out in random order, so that short
    prompts are not padded to long ones.
    """
    state: dict[str, Any] = {"window": None}

    def batch(step: int) -> Any:
        number, place = divmod(step, window)
        if state["window"] != number:
            rng = np.random.default_rng([seed, number])
            state["window"], state["rows"] = number, sorted(draw(rng, size * window), key=length)
            state["order"] = rng.permutation(window)
        start = int(state["order"][place]) * size
        return collate(state["rows"][start:start + size])

    return batch


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_bfloat16(precision: Precision) -> bool:
    """Resolve "auto": bfloat16 autocast where the device has it in hardware, else float32."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def schedule(step: int, optim: Optim) -> float:
    """Warm-up, then linear or cosine decay to zero: the factor on the learning rate."""
    warmup = int(optim.warmup * optim.steps)
    if step < warmup:
        return (step + 1) / warmup
    rest = min(1.0, (step - warmup) / max(1, optim.steps - warmup))
    return 1 - rest if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * rest))


def _optimizer(parameters: list[nn.Parameter], optim: Optim) -> torch.optim.Optimizer:
    if optim.optimizer == "adafactor":  # arXiv 1804.04235, with the relative step size off
        return torch.optim.Adafactor(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay, betas=(0.9, 0.98))


@torch.no_grad()
def _restore(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
