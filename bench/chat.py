"""A conversation of ten turns (u): how soon a reply begins where what the LLM has read is held.

Theirs is the same model that reads the whole dialogue in every turn; both say the same, or it stops. Beside it the
limits: the first word that the LLM writes within 1.5 s, 12 tokens a second, a recommendation within 50 ms besides
the LLM's reading. Films are toy ones; their vectors and what is trained are drawn at random, and cost what others do.

The LLM is SmolLM2-135M; without its folder (`python -m ilm_lib.data.llms smollm2`) a small one with random weights.

    python -m bench.chat              as it is served
    python -m bench.chat bfloat16     with weights in bfloat16
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench.harness import Row, at_least, at_most, synchronize
from ilm_lib.data import load_openp5
from ilm_lib.data.llms import LLMS, llms_dir
from ilm_lib.data.toy import make_toy_world
from ilm_lib.devices import device
from ilm_lib.model.backbone import attend_fused, load_backbone, new_backbone
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.chat import Message
from ilm_lib.model.dialogue import DialoguePrompt
from ilm_lib.model.encoders import MLPEncoder
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.held import Reading, Readings
from ilm_lib.model.ilm import ILM
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.scoring import ScoreHead
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.settings import Backbone

FILMS, TURNS, DIM, LAST = 4000, 10, 64, 3  # LAST: turns at the end whose median counts
SYSTEM = "You recommend films to a friend, and say in a short sentence why."
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ASKED = ("Something like {}, but a bit sadder, please", "No, another one. I also liked {} a lot", "Good. What else?")


@dataclass(frozen=True)
class Turn:
    """What a reply took.

    Attributes:
        begins: seconds to the first word that the LLM wrote.
        ranks: seconds to what is recommended, without the LLM's reading.
        rate: tokens a second from then on.
        said: the reply.
    """

    begins: float
    ranks: float
    rate: float
    said: list


class Watch:
    """Takes the time of the LLM's reads, and counts those of one token that it wrote."""

    def __init__(self) -> None:
        self.seconds, self.written, self._read = 0.0, 0, Reading.read

    def __call__(self, reading: Reading, *args: Any, **given: Any) -> Any:
        synchronize()
        started = time.perf_counter()
        made = self._read(reading, *args, **given)
        synchronize()
        self.seconds += time.perf_counter() - started
        self.written += "input_ids" in given
        return made


def small_llm(texts: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An LLM with random weights and a chat template."""
    tokenizer = train_tokenizer(texts, 1000)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    return new_backbone(
        Backbone(layers=4, width=256, heads=4, vocab=1000), tokenizer, max_length=8192
    ).eval(), tokenizer


def setting(folder: Path, films: int = FILMS, dtype: torch.dtype | None = None) -> ILM:
    """A model over toy films that reads dialogues."""
    with TemporaryDirectory() as world:
        make_toy_world(Path(world), num_items=films, num_users=500, seed=0)
        data = load_openp5(Path(world))
    records = [record or {} for record in data.texts]
    texts = [f"{r['title']}. {', '.join(r.get('genres', []))}. {r.get('overview', '')}" for r in records]
    llm, tokenizer = load_backbone(folder) if folder.is_dir() else small_llm(texts[:500])
    attend_fused(llm.to(dtype) if dtype else llm)
    torch.manual_seed(0)
    count, width = len(texts), llm.get_input_embeddings().embedding_dim
    cf, encoder = torch.randn(count, DIM), MLPEncoder(DIM, width, 1)
    encoder.calibrate(cf, float(llm.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt()))
    layers = llm.config.num_hidden_layers + 1
    shown = DialoguePrompt(system=SYSTEM)
    head = ScoreHead(width, DIM, count, states=layers, side={"layers": 2, "heads": 2}, free=False, prompt=shown)
    titles = [record["title"] for record in records]
    indexing = Indexing("Toy", np.arange(0), np.arange(count) + 1)
    names = Catalogue(indexing, data.items, [], titles, "{history}", "{user_id}", "{target}", texts=texts)
    fold = FoldIn(unobserved=0.1, observed=1.0, ridge=0.01, ridge_per_item=0.01, item_scale=1.0, user_scale=1.0)
    return ILM(llm, tokenizer, encoder, cf, count, names, "slot", fold, head).eval().to(device())


def one_turn(ilm: ILM, messages: Sequence[Message]) -> Turn:
    """The reply to a dialogue, and what it took."""
    watch, begins, before, said = Watch(), 0.0, 0, []
    with patch.object(Reading, "read", lambda *args, **given: watch(*args, **given)):
        started = time.perf_counter()
        reply = ilm.chat(messages)
        ranks = time.perf_counter() - started - watch.seconds
        for part in reply:
            said.append(part)
            if not begins and len(said) == 4:  # a lead, an item, a frame, and what the LLM wrote
                begins, before = time.perf_counter() - started, watch.written
        spent = time.perf_counter() - started - begins
    return Turn(begins, ranks, (watch.written - before) / spent, reply.content)


def conversation(ilm: ILM, turns: int = TURNS) -> list[tuple[Turn, Turn]]:
    """Every turn with what was read held, and read anew."""
    messages: list[Message] = []
    ours, found = Readings(), []
    list(ilm.chat([{"role": "user", "content": "A film, please: something sad"}]))  # warm
    for number in range(turns):
        asked = ASKED[number % len(ASKED)].format(ilm.names().spoken[7 * number])
        messages.append({"role": "user", "content": asked})
        pair = []
        for held in (ours, Readings()):
            ilm.readings = held
            pair.append(one_turn(ilm, messages))
        if pair[0].said != pair[1].said:
            raise AssertionError(f"turn {number + 1}: {pair[0].said} where what was read is held, else {pair[1].said}")
        found.append((pair[0], pair[1]))
        messages.append({"role": "assistant", "content": pair[0].said})
    return found


def run(
    folder: Path | None = None, films: int = FILMS, turns: int = TURNS, dtype: torch.dtype | None = None
) -> list[Row]:
    """Row u, and its limits."""
    folder = folder or llms_dir() / LLMS["smollm2"].folder
    llm = ("SmolLM2-135M" if folder.is_dir() else "a small LLM") + (f", {str(dtype)[6:]}" if dtype else "")
    found = conversation(setting(folder, films, dtype), turns)[-LAST:]
    median = lambda side, name: statistics.median(getattr(pair[side], name) for pair in found)
    ours, theirs = (1e3 * median(side, "begins") for side in (0, 1))
    case = f"a reply in turn {turns}, {llm}"
    return [
        Row(f"u {case}", ours, theirs, "ms", theirs / ours, 2.0),
        at_most(f"u, {case}, first word", ours / 1e3, 1.5, "s", main=False),
        at_least(f"u, {case}, writing", median(0, "rate"), 12, "tokens/s", main=False),
        at_most(f"u, {case}, recommendation besides reading", 1e3 * median(0, "ranks"), 50, "ms", main=False),
    ]


if __name__ == "__main__":
    for row in run(dtype=torch.bfloat16 if "bfloat16" in sys.argv[1:] else None):
        print(f"{row.case}: {row.ours:.4g} / {row.theirs:.4g} {row.unit}, {row.ratio:.3f} (target {row.target})")
