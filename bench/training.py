"""Training (f) and its prompts (g), on the real MovieLens-1M where it is there.

f: real tokens a second of whole `fit` steps, drawing and padding included, against forward and backward of the
same model alone on a dense batch. g: prompts a second of one core, drawn, rendered, tokenized and collated.
"""

from __future__ import annotations

import statistics
import time
from itertools import count

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bench.harness import REPEATS, Row, at_least, at_most, in_turn, milliseconds, openp5_folder
from ilm_lib.data import load_openp5
from ilm_lib.data.templates import load_templates
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.model.backbone import LanguageModel, new_backbone
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.prompts import PromptEncoder
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.settings import Backbone
from ilm_lib.tasks.openp5 import RecommendationTasks
from ilm_lib.train.loop import fit

PROMPTS, STEPS = 64, 3  # a batch; steps a measurement


def run() -> list[Row]:
    """Rows of f and g, and of the padding in a batch."""
    folder = openp5_folder()
    if not (folder / "ML1M").is_dir():
        print(f"f and g are left out: {folder / 'ML1M'} is not there; set ILM_DATA_DIR")
        return []
    data = load_openp5(folder / "ML1M")
    indexing = Indexing("ML1M", data.user_index, data.item_index)
    tasks = RecommendationTasks(data, load_templates(folder / "prompt.txt"), indexing, history_max=20)
    tokenizer = train_tokenizer(tasks.corpus(), 1000)
    rows = [throughput(tasks, tokenizer), *compiled(tasks, tokenizer)]
    for tokens in (0, 8):
        rows += [padding(tasks, tokenizer, tokens), prompt_rate(tasks, tokenizer, tokens)]
    return rows


def throughput(tasks: RecommendationTasks, tokenizer: PreTrainedTokenizerBase) -> Row:
    """Tokens a second of training steps; theirs reads rows of our length, as many as hold our real tokens."""
    layers, width = (8, 1024) if torch.cuda.is_available() else (4, 256)  # the paper's decoder on a GPU
    params = Backbone(
        steps=STEPS,
        batch_size=PROMPTS,
        layers=layers,
        width=width,
        heads=width // 64,
        vocab=1000,
        optimizer="adamw",
        precision="auto",
    )
    torch.manual_seed(0)
    llm = new_backbone(params, tokenizer, max_length=1024).to(device())
    model, encoder = LanguageModel(llm), PromptEncoder(tokenizer, tasks.data.num_items, 0)
    batches = tasks.training_batches(encoder, PROMPTS, "text", seed=0)
    seen = [batches(n) for n in range(STEPS)]
    tokens = sum(int((b.segment > 0).sum()) for b in seen)
    length = round(statistics.mean(b.segment.shape[1] for b in seen))
    dense = torch.randint(len(tokenizer), (round(tokens / STEPS / length), length), device=device())

    def ours() -> None:
        fit(model, list(model.parameters()), lambda m, b: {"lm": m(b.to(device()))}, batches, params, seed=0)

    def theirs() -> None:
        for _ in range(STEPS):
            with torch.autocast(device(), torch.bfloat16, enabled=use_bfloat16("auto")):
                loss = llm(input_ids=dense, labels=dense, use_cache=False).loss
            loss.backward()
            llm.zero_grad(set_to_none=True)

    spent, bare = in_turn(ours, theirs)
    a, b = 1e3 * tokens / spent, 1e3 * STEPS * dense.numel() / bare
    return Row(f"f training, {layers} layers x {width}, {PROMPTS} prompts a batch", a, b, "tokens/s", a / b, 0.85)


def compiled(tasks: RecommendationTasks, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Does `torch.compile` pay? Steps after warm-up against eager ones, and the seconds until the first is done."""
    params = Backbone(steps=STEPS, batch_size=PROMPTS, layers=3, width=128, heads=4, vocab=1000, precision="auto")
    torch.manual_seed(0)
    llm = new_backbone(params, tokenizer, max_length=1024).to(device())
    eager, fast = LanguageModel(llm), torch.compile(LanguageModel(llm), dynamic=True)
    batches = tasks.training_batches(PromptEncoder(tokenizer, tasks.data.num_items, 0), PROMPTS, "text", seed=0)

    def step(model: torch.nn.Module, number: int) -> None:
        with torch.autocast(device(), torch.bfloat16, enabled=use_bfloat16("auto")):
            loss = model(batches(number).to(device()))
        loss.backward()
        llm.zero_grad(set_to_none=True)

    first = milliseconds(lambda: step(fast, 0)) / 1e3
    for number in range(1, 4):  # other shapes: each may be compiled anew
        step(fast, number)
    numbers = [count(4), count(4)]
    spent, bare = in_turn(lambda: step(fast, next(numbers[0])), lambda: step(eager, next(numbers[1])), 2 * REPEATS)
    return [
        Row("f torch.compile (not used), a step of 3 layers x 128", spent, bare, "ms", bare / spent, 1.0, main=False),
        at_most("f torch.compile (not used), until the first step is done", first, 60, "s", main=False),
    ]


def padding(tasks: RecommendationTasks, tokenizer: PreTrainedTokenizerBase, query_tokens: int) -> Row:
    """Share of the positions of packed batches that hold no token."""
    batches = tasks.training_batches(PromptEncoder(tokenizer, tasks.data.num_items, query_tokens), 32, "text", seed=0)
    empty = torch.cat([batches(n).segment.flatten() == 0 for n in range(50)]).float().mean()
    case = f"f padding, 32 prompts a batch, {query_tokens} query tokens"
    return at_most(case, 100 * float(empty), 10, "%", main=False)


def prompt_rate(tasks: RecommendationTasks, tokenizer: PreTrainedTokenizerBase, query_tokens: int) -> Row:
    """By the time of the core, not of the clock on the wall: others may be at work on it. Pieces are kept by then."""
    encoder, step = PromptEncoder(tokenizer, tasks.data.num_items, query_tokens), count()

    def build(batches: int) -> None:
        for _ in range(batches):
            encoder.batch(*zip(*tasks.draw(np.random.default_rng(next(step)), 256)), loss_on="text")

    build(100)
    rates = []
    for _ in range(REPEATS):
        started = time.process_time()
        build(16)
        rates.append(16 * 256 / (time.process_time() - started))
    return at_least(
        f"g prompts, ML1M, 20 history items, both tasks, {query_tokens} query tokens",
        statistics.median(rates),
        20_000,
        "prompts/s",
        main=query_tokens > 0,
    )


if __name__ == "__main__":
    for row in run():
        print(f"{row.case}: {row.ours:.4g} / {row.theirs:.4g} {row.unit}, {row.ratio:.3f} (target {row.target})")
