"""What tests/test_processes.py has several processes do, each of which runs this file.

together.py row STEP ...    bench.paper_run with further arguments; process 1 dies before that step of phase 2 (0: none)
together.py layers FILE     training over an LLM whose layers are spread over processes and read again on the way back
"""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from bench import paper_run  # noqa: E402
from ilm_lib import processes  # noqa: E402
from ilm_lib.settings import Phase2  # noqa: E402
from ilm_lib.train import loop  # noqa: E402


def row(step: str, *arguments: str) -> int:
    schedule = loop.schedule

    def dies(now, optim):
        if now == int(step) > 0 and isinstance(optim, Phase2) and processes.number() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return schedule(now, optim)

    loop.schedule = dies
    return paper_run.main([*arguments])


def layers(place: str) -> int:
    from ilm_lib.model.backbone import recompute_layers, shard_layers, weights_fingerprint
    from ilm_lib.train.phase2 import answer_loss

    processes.join()
    ilm, batches = spelled()
    shard_layers(recompute_layers(ilm.llm))
    held = sum(getattr(p, "_local_tensor", p).numel() for p in ilm.llm.parameters())
    log = loop.fit(ilm, [*ilm.encoder.parameters()], answer_loss, batches, Phase2(**SHORT), seed=0, eval_every=10)
    fingerprint = weights_fingerprint(ilm.llm)
    if processes.number() == 0:
        log.assign(fingerprint=fingerprint, held=held).to_parquet(place)
    return 0


SHORT = {"steps": 50, "batch_size": 5, "lr": 1e-3, "optimizer": "adamw"}


def spelled():
    """A tiny ILM over an LLM of random weights, and batches of what it is to say."""
    import numpy as np
    import torch
    from conftest import CF, ITEMS, tiny_llm

    from ilm_lib import ILM, Item
    from ilm_lib.data.templates import OUR_TEMPLATES
    from ilm_lib.model.backbone import freeze
    from ilm_lib.model.encoders import MLPEncoder
    from ilm_lib.model.tokenizer import train_tokenizer
    from ilm_lib.train.loop import drawn_batches

    tokenizer = train_tokenizer([t.source for t in OUR_TEMPLATES] + [f"item {n}" for n in range(ITEMS)], 520)
    llm = freeze(tiny_llm("llama", len(tokenizer)))
    torch.manual_seed(0)
    ilm = ILM(llm, tokenizer, MLPEncoder(CF, 32, 2), torch.randn(ITEMS, CF), ITEMS)

    def draw(rng: np.random.Generator, count: int) -> list:
        return [
            ([f"Which is {'this ' * (row % 3)}", Item(row)], f" item {row}")
            for row in rng.integers(ITEMS, size=count).tolist()
        ]

    return ilm, drawn_batches(draw, ilm.prompts.batch, 5, seed=0)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    sys.exit({"row": row, "layers": layers}[kind](*rest))
