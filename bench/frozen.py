"""Through frozen weights of a real LLM, SmolLM2-135M: a training step on ELM tasks (s), and writing 64 answers (t).

Theirs is the plain loop over Hugging Face: right-padded rows, every film of every row encoded, logits of all places;
and one `generate` a prompt. Both have the LLM's weights frozen, the same precision, and equal losses and gradients.
Without the LLM's folder (`python -m ilm_lib.data.llms smollm2`) the rows are left out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.elm import toy_films
from bench.harness import Row, in_turn, train_step
from ilm_lib.data.llms import LLMS, llms_dir
from ilm_lib.devices import device, use_bfloat16
from ilm_lib.model.backbone import load_backbone
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Batch, Item, Prompt, Special
from ilm_lib.profiles import load_params
from ilm_lib.tasks.elm import ElmTasks
from ilm_lib.train.phase2 import new_encoder

ROWS, ANSWERS, LENGTH = 32, 64, 32  # rows of a step; texts written, of so many tokens
IGNORED = -100  # a label that is none


def setting(folder: Path, films: int = 300) -> tuple[ILM, ElmTasks]:
    """Toy films, whose texts are as long as real ones, a Q-Former of random weights, and the LLM of a folder."""
    params = load_params("elm24-ml1m")
    llm, tokenizer = load_backbone(folder)
    cf, plain = toy_films(films, params.embeddings.dim, test_fraction=0.1)
    tasks = plain.asked_of(tokenizer)
    encoder = new_encoder("qformer", cf, llm, qformer=params.qformer, mlp_tokens=1, seed=0)
    ilm = ILM(llm, tokenizer, encoder, cf, films, None, "own")  # positions as in theirs
    return ilm.eval().to(device()), tasks


def run(folder: Path | None = None, rows: int = ROWS, answers: int = ANSWERS, length: int = LENGTH) -> list[Row]:
    """Rows s and t."""
    folder = folder or llms_dir() / LLMS["smollm2"].folder
    if not folder.is_dir():
        print(f"s and t are left out: {folder} is not there; `python -m ilm_lib.data.llms smollm2` makes it")
        return []
    ilm, tasks = setting(folder)
    return [training(ilm, tasks, rows), writing(ilm, tasks, answers, length)]


def training(ilm: ILM, tasks: ElmTasks, rows: int) -> Row:
    """Tokens of answers a second, forward and backward."""
    batch = tasks.training_batches(ilm.prompts, rows, seed=0)(0).to(device())
    drawn = examples(tasks, rows)
    ours, theirs = partial(packed_loss, ilm, batch), partial(plain_loss, ilm, drawn, tasks)
    check_equal(ilm, ours, theirs)
    a, b = in_turn(partial(train_step, ilm, ours), partial(train_step, ilm, theirs), 3)
    tokens = 1e3 * len(batch.scored)
    return Row(f"s training through SmolLM2-135M, {rows} rows", tokens / a, tokens / b, "answer tokens/s", b / a, 2.0)


def examples(tasks: ElmTasks, rows: int) -> list[tuple[Prompt, str]]:
    """What the first of `training_batches` draws."""
    train = list(tasks.part("train").itertuples())
    rng = np.random.default_rng([0, 0])
    return [(tasks.prompt(train[i]), tasks.answer(train[i].target)) for i in rng.integers(len(train), size=rows)]


def packed_loss(ilm: ILM, batch: Batch) -> Tensor:
    return ilm(batch, use_cache=False).loss


def plain_loss(ilm: ILM, drawn: list[tuple[Prompt, str]], tasks: ElmTasks) -> Tensor:
    """As it is usually written: a row a prompt, embeddings end to end, labels on the answer."""
    embedding, encode = ilm.llm.get_input_embeddings(), ilm.prompts.text_ids
    rows, labels = [], []
    for prompt, answer in drawn:
        pieces: list[Tensor] = []
        for segment in joined(prompt):
            if isinstance(segment, Item):
                pieces.append(ilm.encoder(ilm.cf[[segment.row]])[0])
            else:
                ids = [segment.id] if isinstance(segment, Special) else list(encode(segment))
                pieces.append(embedding(torch.tensor(ids, device=ilm.device)))
        target = torch.tensor([*encode(answer), tasks.end or ilm.tokenizer.eos_token_id], device=ilm.device)
        asked = torch.cat(pieces)
        rows.append(torch.cat([asked, embedding(target)]))
        labels.append(torch.cat([target.new_full((len(asked),), IGNORED), target]))
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    mask = pad([torch.ones(len(row), dtype=torch.long, device=ilm.device) for row in rows])
    return ilm.llm(inputs_embeds=pad(rows), attention_mask=mask, labels=pad(labels, padding_value=IGNORED)).loss


def joined(prompt: Prompt) -> list[str | Item | Special]:
    """A prompt whose adjacent texts are one."""
    out: list = []
    for segment in prompt:
        if isinstance(segment, str) and out and isinstance(out[-1], str):
            out[-1] += segment
        else:
            out.append(segment)
    return out


def check_equal(ilm: ILM, ours: partial[Tensor], theirs: partial[Tensor]) -> None:
    """Raises unless losses and gradients agree to 1e-4 in float32."""
    found = []
    for loss in (ours, theirs):
        ilm.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        grads = torch.cat([p.grad.flatten() for p in ilm.encoder.parameters() if p.grad is not None])
        found.append((value.detach(), grads / grads.norm()))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def writing(ilm: ILM, tasks: ElmTasks, answers: int, length: int) -> Row:
    """Milliseconds for all answers, of `length` tokens each."""
    prompts = [tasks.prompt(row) for row in tasks.part("test").head(answers).itertuples()]
    kwargs = {"max_new_tokens": length, "min_new_tokens": length}

    def ours() -> list[str]:
        with torch.autocast(device(), torch.bfloat16, enabled=use_bfloat16("auto")):
            return ilm.generate(prompts, **kwargs)

    def theirs() -> list[str]:
        with torch.autocast(device(), torch.bfloat16, enabled=use_bfloat16("auto")):
            return [ilm.generate(prompt, **kwargs) for prompt in prompts]

    a, b = in_turn(ours, theirs, 1)
    return Row(f"t writing {len(prompts)} answers with SmolLM2-135M", a, b, "ms", b / a, 5.0)


if __name__ == "__main__":
    for row in run():
        print(f"{row.case}: {row.ours:.4g} / {row.theirs:.4g} {row.unit}, {row.ratio:.3f} (target {row.target})")
