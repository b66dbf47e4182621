"""Training state on disk: one safetensors file, believed only where it is whole and of the same run.

The file carries the digest of all that is in it, so there is no moment at which one belongs to the other's past. It is
written aside and renamed: a run that is killed finds the last whole state, and never half of one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ilm_lib import processes
from ilm_lib.errors import Refusal
from ilm_lib.progress import say

STATE = "state.safetensors"  # its name in a folder; beside it, for a time, .tmp and .broken


class StateError(Refusal, OSError):
    """The state of a training run can be neither written nor read; the message names the file."""


def save_state(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors, and what JSON can hold besides. Raises StateError, and leaves the state before this one.

    Of several processes, all of which have the same to save, the first one writes.
    """
    if processes.number():
        return
    temporary, noted = path.with_suffix(".tmp"), json.dumps(about)
    try:
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            temporary,
            {"about": noted, "sha256": _digest(tensors, noted)},
        )
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StateError(
            f"{path}: the state of training cannot be written: {_reason(error)}. Make room, or see who may write "
            "there, and run again: training goes on from the state before"
        ) from None


def load_state(path: Path, run: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors (on the CPU) and the rest; None where there is no state of this run.

    A file that is damaged, or whose `about["run"]` is not `run`, is set aside, said in one line, and not believed.
    Raises StateError for one that cannot be read at all. Of several processes the first one reads for all.
    """
    return processes.agreed(lambda: _load(path, run))


def _load(path: Path, run: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    if not path.exists():
        return None
    try:
        with open(path, "rb"):  # a folder, or a file of someone else: nothing that a damaged file would raise
            pass
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            noted = file.metadata()
        about = json.loads(noted["about"])
        wrong = "is damaged" if noted["sha256"] != _digest(tensors, noted["about"]) else ""
        wrong = wrong or ("" if about["run"] == run else "is of other settings")
    except OSError as error:
        raise StateError(
            f"{path}: the state of training cannot be read: {_reason(error)}. Delete it, and training starts over"
        ) from None
    except (SafetensorError, ValueError, LookupError, TypeError):
        wrong = "is damaged"
    if not wrong:
        return tensors, about
    broken = path.with_suffix(".broken")
    with contextlib.suppress(FileNotFoundError):  # another process of the same run was faster
        path.replace(broken)
    say(f"{path} {wrong}: it is now {broken.name}, and training starts over")
    return None


def forget_state(folder: Path) -> None:
    """Remove what training leaves to go on from; nothing needs it once the stage is finished."""
    for path in folder.glob(f"{Path(STATE).stem}.*"):
        path.unlink()


def _digest(tensors: Mapping[str, Tensor], noted: str) -> str:
    digest = hashlib.sha256(noted.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)[:150]
