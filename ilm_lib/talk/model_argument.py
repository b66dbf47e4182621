"""The arguments of a command that say which model talks."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ilm_lib.arguments import BadArgument, whole
from ilm_lib.devices import device
from ilm_lib.model.backbone import attend_fused
from ilm_lib.model.ilm import ILM
from ilm_lib.model.recommend import dialogue_prompt

MAX_K = 20  # items in one reply


def add_model(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which model talks."""
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER",
                        help="what save_pretrained wrote of a model that was trained on dialogues")  # fmt: skip
    parser.add_argument("--k", type=whole(MAX_K), default=3, help="items in a reply (default: 3)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
                        help="of the LLM's weights (default: auto, the saved ones); bfloat16 is read up to three times "
                             "as fast by processors that have it, and rounds")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), help="(default: cuda where there is a GPU)")


def load(args: argparse.Namespace) -> ILM:
    """The model of `add_model`'s arguments. Raises Refusal; also for a model that was not trained on dialogues."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise BadArgument("--device cuda: there is no GPU that PyTorch can use; leave it out, or give cpu")
    ilm = ILM.from_pretrained(args.model, dtype=args.dtype)
    attend_fused(ilm.llm)
    dialogue_prompt(ilm)
    return ilm.to(args.device or device())
