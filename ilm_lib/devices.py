"""Where tensors live and in which precision they are computed."""

from __future__ import annotations

import torch

from ilm_lib.settings import Precision


def device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_bfloat16(precision: Precision) -> bool:
    """Resolve "auto": bfloat16 autocast where the device has it in hardware, else float32."""
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
