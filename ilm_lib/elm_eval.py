"""What a frozen LLM writes about films that it is given only as collaborative filtering embeddings (section 4.3)."""

from __future__ import annotations

from typing import Sequence

import numpy as np
import pandas as pd
import torch
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from ilm_lib.elm import ElmTasks, InText
from ilm_lib.model import ILM
from ilm_lib.progress import progress
from ilm_lib.prompts import Item


@torch.no_grad()
def evaluate(ilm: ILM, tasks: ElmTasks, rows: pd.DataFrame, *, max_new_tokens: int, batch_size: int = 64,
             no_repeat_ngram: int = 0, in_text: InText | None = None) -> pd.DataFrame:
    """Log likelihood of the targets and greedy texts.

    Args:
        rows: test rows of `tasks`. in_text: as in `ElmTasks.prompt`.
        no_repeat_ngram: no answer says so many tokens in a row twice; 0 lets it.

    Returns:
        `rows` with columns nll (nats, summed over the target's tokens), tokens, generated.
    """
    nll, count, texts = np.zeros(len(rows)), np.zeros(len(rows), dtype=int), [""] * len(rows)
    prompts = [tasks.prompt(r, in_text) for r in rows.itertuples()]
    # Like lengths together: less padding in the loss, and short answers do not wait for long ones.
    order = np.argsort([len(t) for t in rows.target], kind="stable")
    starts = range(0, len(rows), batch_size)
    for start in progress(starts, "writing", total=len(starts)):
        index = order[start:start + batch_size]
        chosen = [prompts[i] for i in index]
        batch = ilm.encode(chosen, answers=[" " + rows.target.iloc[i] for i in index])
        total, tokens = ilm.token_nll(batch)
        nll[index], count[index] = total.cpu().numpy(), tokens.cpu().numpy()
        for i, text in zip(index, ilm.generate(chosen, max_new_tokens=max_new_tokens,
                                               logits_processor=no_repeat(no_repeat_ngram))):
            texts[i] = text
    return rows.assign(nll=nll, tokens=count, generated=texts)


class _NoRepeat(NoRepeatNGramLogitsProcessor):
    """Transformers' rule for the answer alone: what the prompt says may be said again."""

    start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = input_ids.shape[1] if self.start is None else self.start  # the first call is before any answer
        return super().__call__(input_ids[:, self.start:], scores)


def no_repeat(ngram: int) -> LogitsProcessorList:
    """For one call of `generate`: no answer says `ngram` tokens in a row twice. 0: no rule."""
    return LogitsProcessorList([_NoRepeat(ngram)] if ngram else [])


def walk(ilm: ILM, start: int, end: int, question: Sequence[str], *, points: int = 5, **kwargs) -> list[str]:
    """What the model says on the way from one film to another: straight through the embedding space.

    Args:
        start, end: item rows. question: the text before and after the film, e.g. ("Summarize the movie ", ".").
        points: stops, the two films included. kwargs: for `ILM.generate`.
    """
    share = torch.linspace(0, 1, points, device=ilm.cf.device)[:, None]
    between = (1 - share) * ilm.cf[start] + share * ilm.cf[end]
    there = ILM(ilm.llm, ilm.tokenizer, ilm.encoder, between, points,
                item_positions=ilm.prompts.item_positions).eval()
    before, after = question
    return there.generate([[before, Item(i), after] for i in range(points)], **kwargs)
