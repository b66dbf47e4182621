"""Several processes that train or rank with one model: what each does of the work, and what they tell one another.

torchrun --nproc_per_node 2 -m bench.paper_run --profile paper-beauty

A profile's batch is that of all processes together. Which rows are in it is a function of its number, so every process
knows all of them, reads its own part (every W-th row), and gradients are added up. Where rows are compared, as in phase
1, all of them are: what each process made of its rows goes to `everybody`. So W processes take the steps of one, up to
the order in which floats are added, as long as nothing is drawn at random within a step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ilm_lib.devices import device
from ilm_lib.errors import Refusal

T = TypeVar("T")
K = TypeVar("K")
R = TypeVar("R", bound=Any)
P = ParamSpec("P")


class TooManyProcesses(Refusal, ValueError):
    """There is less to do than there are processes."""


_in_step = [False]


def join() -> None:
    """Meet the other processes of `torchrun` or `accelerate launch`, where this one was started so."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())  # it also chooses this process' GPU


def count() -> int:
    """How many there are; 1 where nobody else was started."""
    return dist.get_world_size() if dist.is_initialized() else 1


def number() -> int:
    """Which this one is; number 0 writes files and shows progress."""
    return dist.get_rank() if dist.is_initialized() else 0


def own(rows: R) -> R:
    """The rows of a batch that this process reads: every W-th.

    Raises:
        TooManyProcesses: some process would have none.
    """
    if len(rows) < count():
        raise TooManyProcesses(f"a batch of {len(rows)} cannot be shared by {count()} processes: start fewer")
    return rows[number() :: count()]


def share(mine: int, all_of_them: int) -> float:
    """What makes a mean over this process' part one whose plain mean over processes is that over all of it."""
    return count() * mine / all_of_them


class _Everybody(torch.autograd.Function):
    """Rows of all processes, in the order of the batch. All go on to compute the same of them, so what comes back to a
    row is known where it was made; W times, because gradients are those of a mean over processes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, total: int) -> Tensor:
        longest = -(-total // count())
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(count())]
        dist.all_gather(parts, padded.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)[:total]  # row n is of process n % W

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return count() * gradients[0][number() :: count()], None


def everybody(rows: Tensor, total: int) -> Tensor:
    """(total, ...) what all processes made of their `own` rows of a batch, in its order; gradients reach one's own."""
    return rows if count() == 1 else _Everybody.apply(rows, total)


def add_up(gradients: Sequence[Tensor]) -> None:
    """Replace tensors by their sums over all processes."""
    if count() == 1 or not gradients:
        return
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(whole)
    for gradient, part in zip(gradients, whole.split([gradient.numel() for gradient in gradients])):
        gradient.copy_(part.view_as(gradient))


def total(value: float) -> float | Tensor:
    """The sum of a number over all processes; where there are several it stays on the device: nothing waits for it."""
    if count() == 1:
        return value
    summed = torch.tensor(value, dtype=torch.float32, device=device())
    dist.all_reduce(summed)
    return summed


def agreed(make: Callable[[], T]) -> T:
    """What process 0 makes, for all of them."""
    if count() == 1:
        return make()
    told = [make() if number() == 0 else None]
    dist.broadcast_object_list(told, src=0)
    return cast(T, told[0])


def in_parts(rank: Callable[P, dict[K, np.ndarray]]) -> Callable[P, dict[K, np.ndarray]]:
    """Make a function of `users`, whose arrays have an entry for each of them, one that several processes share: each
    computes its own users, and all get the whole. With fewer users than processes each computes all of them."""

    @wraps(rank)
    def shared(*args: P.args, **kwargs: P.kwargs) -> dict[K, np.ndarray]:
        users = cast(np.ndarray, kwargs["users"])
        if count() == 1 or len(users) < count() or _in_step[0]:
            return rank(*args, **kwargs)
        parts: list[Any] = [None] * count()
        mine = cast(Any, kwargs | {"users": own(users)})
        dist.all_gather_object(parts, rank(*args, **mine))
        found = {name: np.empty((len(users), *part.shape[1:]), part.dtype) for name, part in parts[0].items()}
        for which, part in enumerate(parts):
            for name, values in part.items():
                found[name][which :: count()] = values
        return found

    return shared


def keep_in_step() -> None:
    """From now on every process does all of the ranking: each needs the others while it reads (`shard_layers`)."""
    _in_step[0] = True


def wait() -> None:
    """Until all are here."""
    if count() > 1:
        dist.barrier()
