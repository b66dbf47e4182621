"""What only a GPU can show, at the paper's sizes in bfloat16: model FLOP utilisation of backbone pretraining (k) and
of a phase-2 step (l), and the whole beam-10 evaluation of Beauty (m). Weights are random: speed does not ask what
they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bench.harness import REPEATS, Row, at_least, at_most, milliseconds, openp5_folder
from ilm_lib.data import load_openp5
from ilm_lib.data.templates import load_templates
from ilm_lib.devices import device
from ilm_lib.model.backbone import LanguageModel, new_backbone
from ilm_lib.model.encoders import QFormerEncoder
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import Batch, PromptEncoder
from ilm_lib.model.qformer import QFormer
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.settings import Backbone, Optim, QFormerParams
from ilm_lib.tasks.openp5 import TASKS, RecommendationTasks, rank
from ilm_lib.train.loop import fit

PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, from the makers' data sheets


@dataclass(frozen=True)
class Sizes:
    """Table 9 of the paper: a decoder of 8 x 1024, a Q-Former of 8 x 768 with 8 query tokens."""

    layers: int = 8
    width: int = 1024
    heads: int = 16
    query_layers: int = 8
    query_width: int = 768
    query_heads: int = 12
    query_tokens: int = 8
    batch: int = 256
    steps: int = 10
    users: int | None = None  # of the evaluation; None: all
    eval_batch: int = 256


def run(sizes: Sizes = Sizes()) -> list[Row]:
    """Rows k, l and m; nothing where there is no GPU, or no Beauty in $ILM_DATA_DIR/openp5."""
    folder = openp5_folder()
    if not torch.cuda.is_available() or not (folder / "Beauty").is_dir():
        print("k, l, m are left out: they need a GPU and openp5/Beauty in ILM_DATA_DIR")
        return []
    peak = next((v for name, v in PEAK.items() if name in torch.cuda.get_device_name()), None)
    if peak is None:
        raise ValueError(f"the peak of {torch.cuda.get_device_name()} is unknown: add it to bench.gpu.PEAK")
    ilm, tasks = beauty(folder, sizes)
    return [
        at_least("k backbone pretraining, MFU", 100 * pretraining(ilm, tasks, sizes) / peak, 45, "%"),
        at_least("l phase-2 step, MFU", 100 * phase2(ilm, tasks, sizes) / peak, 35, "%"),
        at_most("m Beauty, beam 10, 2 tasks x 2 prompts", evaluation(ilm, tasks, sizes), 240, "s"),
    ]


def beauty(folder: Path, sizes: Sizes) -> tuple[ILM, RecommendationTasks]:
    """The dataset's prompts and a model for them."""
    data = load_openp5(folder / "Beauty")
    tasks = RecommendationTasks(
        data,
        load_templates(folder / "prompt.txt"),
        Indexing("Beauty", data.user_index, data.item_index),
        history_max=20,
    )
    tokenizer = train_tokenizer(tasks.corpus(), 2000)
    torch.manual_seed(0)
    llm = new_backbone(Backbone(layers=sizes.layers, width=sizes.width, heads=sizes.heads), tokenizer, max_length=1024)
    query = QFormerParams(
        num_query_tokens=sizes.query_tokens, layers=sizes.query_layers, width=sizes.query_width, heads=sizes.query_heads
    )
    qformer = QFormer(query, 64)
    cf = torch.randn(data.num_items + data.num_users, 64)
    ilm = ILM(llm, tokenizer, QFormerEncoder(qformer, sizes.width), cf, data.num_items, tasks.catalogue())
    return ilm.to(device()), tasks


def pretraining(ilm: ILM, tasks: RecommendationTasks, sizes: Sizes) -> float:
    """Useful FLOP/s of `fit` on text-only prompts: forward and both backward products, real tokens alone."""
    ilm.llm.requires_grad_(True)
    batches = tasks.training_batches(PromptEncoder(ilm.tokenizer, tasks.data.num_items, 0), sizes.batch, "text", seed=0)
    model = LanguageModel(ilm.llm)
    seconds = training_seconds(model, list(model.parameters()), lambda m, b: {"lm": m(b.to(device()))}, batches, sizes)
    ilm.llm.requires_grad_(False)
    return 3 * 2 * weights(ilm.llm) * real_tokens(batches, sizes) / seconds


def phase2(ilm: ILM, tasks: RecommendationTasks, sizes: Sizes) -> float:
    """Useful FLOP/s with the LLM frozen: no product for its weights' gradients; the encoder's distinct entities."""
    batches = tasks.training_batches(ilm.prompts, sizes.batch, "target", seed=0)
    trained = list(ilm.encoder.parameters())
    loss = lambda m, b: {"loss": m(b.to(device()), use_cache=False).loss}
    seconds = training_seconds(ilm, trained, loss, batches, sizes)
    entities = sum(len(batches(n).entities) for n in range(sizes.steps)) * sizes.query_tokens
    return (
        2 * 2 * weights(ilm.llm) * real_tokens(batches, sizes)
        + 3 * 2 * sum(p.numel() for p in trained if p.dim() == 2) * entities
    ) / seconds


def evaluation(ilm: ILM, tasks: RecommendationTasks, sizes: Sizes) -> float:
    """Seconds to rank for every user, both tasks, seen and unseen prompts."""
    ilm.eval()
    users = np.arange(tasks.data.num_users)[: sizes.users]
    started = time.perf_counter()
    for task in TASKS:
        for prompt in ("seen", "unseen"):
            rank(
                ilm,
                tasks,
                task=task,
                wording=prompt,
                split="test",
                users=users,
                history_rules=("kept",),
                batch_size=sizes.eval_batch,
                autocast=True,
            )
    return time.perf_counter() - started


def training_seconds(model: nn.Module, parameters: list, loss, batches, sizes: Sizes) -> float:
    """Median seconds of `steps` steps of `fit`, after one run to warm up."""
    optim = Optim(steps=sizes.steps, batch_size=sizes.batch, precision="bfloat16")
    steps = lambda: fit(model, parameters, loss, batches, optim, seed=0)
    times = sorted(milliseconds(steps) for _ in range(REPEATS + 1))
    return times[REPEATS // 2] / 1e3


def real_tokens(batches, sizes: Sizes) -> int:
    """Positions of the measured batches that hold a token or an item token."""
    counted: list[Batch] = [batches(n) for n in range(sizes.steps)]
    return sum(int((b.segment > 0).sum()) for b in counted)


def weights(llm: nn.Module) -> int:
    """Weights that take part in a product for every token: the matrices, the tied head once, no embedding lookup."""
    return sum(p.numel() for p in llm.parameters() if p.dim() == 2)
