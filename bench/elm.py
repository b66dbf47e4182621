"""The evaluation of the 24 ELM tasks (n): texts of 300 films written, scored and compared."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from bench.harness import Row, at_most
from ilm_lib.data import load_openp5
from ilm_lib.data.elm24 import build_elm24
from ilm_lib.data.toy import make_toy_world
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.metrics import semantic_consistency
from ilm_lib.model.backbone import new_backbone
from ilm_lib.model.ilm import ILM
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.profiles import load_params
from ilm_lib.study import elm as study_elm
from ilm_lib.tasks import elm
from ilm_lib.train.phase2 import new_encoder

FILMS = 300


def toy_films(films: int, dim: int, test_fraction: float) -> tuple[torch.Tensor, elm.ElmTasks]:
    """(F, d) drawn vectors of toy films, whose texts are as long as real ones, and the 24 tasks over them."""
    with TemporaryDirectory() as folder:
        make_toy_world(Path(folder), num_items=films, num_users=500, seed=0)
        texts = load_openp5(Path(folder)).texts
    vectors = np.random.default_rng(0).standard_normal((len(texts), dim)).astype(np.float32)
    return torch.from_numpy(vectors), elm.ElmTasks(build_elm24(texts, vectors, test_fraction=test_fraction), texts)


def setting() -> tuple[ILM, elm.ElmTasks]:
    """Toy films, half of them for testing, and a CPU-scale model with random weights, which never ends a text."""
    params = load_params("elm24-ml1m")
    cf, tasks = toy_films(2 * FILMS, params.embeddings.dim, test_fraction=0.5)
    tokenizer = train_tokenizer(tasks.corpus(), params.qformer.text_vocab)
    torch.manual_seed(0)
    llm = new_backbone(params.backbone, tokenizer, max_length=1024)
    encoder = new_encoder("qformer", cf, llm, qformer=params.qformer, mlp_tokens=1, seed=0)
    return ILM(llm, tokenizer, encoder, cf, len(cf), None, params.phase2.item_positions).eval().to(device()), tasks


def run() -> list[Row]:
    """Row n: all test rows, the sentence encoder included; ten minutes are the limit on two cores."""
    ilm, tasks = setting()
    test = tasks.part("test")
    started = time.perf_counter()
    scored = elm.evaluate(ilm, tasks, test, max_new_tokens=64)
    semantic_consistency(
        *(study_elm.sentences(None, tuple(scored[column]), use_bfloat16("auto")) for column in ("generated", "target"))
    )
    seconds = time.perf_counter() - started
    return [at_most(f"n 24 ELM tasks of {FILMS} films, {len(test):,} texts written and scored", seconds, 600, "s")]
