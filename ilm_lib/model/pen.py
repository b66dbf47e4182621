"""The LLM writes a reply: a sentence at a time, in small letters, after a prompt that grows with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ilm_lib.model.backbone import last_logits
from ilm_lib.model.chat import chat_template
from ilm_lib.model.held import Reading, common, places_of
from ilm_lib.model.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ilm_lib.model.ilm import ILM

SENTENCE = 40  # tokens that the LLM writes of an item, at most
AGAIN = 1.3  # by which the logit of a token that it wrote already is divided
_NO_SENTENCE = re.compile(r"[\x00-\x1f\x7f-\x9f\"“”«»*_#\[\]{}<>|@\\0-9\ufffd]")


class Pen:
    """Reads a prompt that grows, and writes on; what it has read is not read again.

    The first prompt is read on from what is held of the conversation (`held`); `close` gives that back.
    """

    def __init__(self, ilm: ILM):
        self.ilm, self.template = ilm, chat_template(ilm.tokenizer)
        self.forward = partial(last_logits, ilm.llm)
        self.reading: Reading | None = None
        self.allowed = small_letters(ilm.tokenizer).to(ilm.device).clone()
        self.allowed[self.template.stops] = True

    def close(self) -> None:
        """Hold what was read for the next reply; nothing is written after it."""
        if self.reading is not None:
            self.ilm.readings.put(self.reading)
            self.reading = None

    @torch.no_grad()
    def sentence(self, prompt: Prompt) -> Iterator[str]:
        """What comes after a prompt, up to the end of the sentence, a word or less at a time."""
        logits, position = self._read(prompt)
        written: list[int] = []
        text = ""
        while True:
            logits = logits.masked_fill(~self.allowed, -torch.inf)
            if written:
                own = torch.tensor(written, device=logits.device)
                logits[own] = torch.where(logits[own] > 0, logits[own] / AGAIN, logits[own] * AGAIN)
            token = int(logits.argmax())
            if token in self.template.stops or len(written) == SENTENCE:
                break
            written.append(token)
            now = self.ilm.tokenizer.decode(written)
            if not now.endswith("\ufffd"):
                yield now[len(text) :]
                text = now
            if text.rstrip().endswith((".", "!", "?")):
                return
            position += 1
            ids, at = torch.tensor([[[token]], [[position]]], device=logits.device)
            assert self.reading is not None, "it was closed"
            logits = self.reading.read(self.forward, [(token, -1)], at, input_ids=ids)
        yield "."

    def _read(self, prompt: Prompt) -> tuple[Tensor, int]:
        """(V,) logits of what comes next, and the position of the last token."""
        batch = self.ilm.encode([prompt])
        places, embeddings, positions = places_of(self.ilm, batch), self.ilm.embed(batch), batch.position_ids
        if self.reading is None:
            end = self.template.end
            self.reading = self.ilm.readings.take(self.ilm, "writing", places, end)
            *_, (_, logits) = self.reading.read_pieces(self.forward, places, positions, embeddings, end)
        else:
            self.reading.back_to(min(common(self.reading.places, places), len(places) - 1))
            new = slice(len(self.reading.places), None)
            logits = self.reading.read(self.forward, places[new], positions[:, new], inputs_embeds=embeddings[:, new])
        return logits, int(positions[0, -1])


@lru_cache(4)
def small_letters(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(V,) bool, the tokens of sentences in small letters: no capital one, line break, quote, number or mark.

    Names are written with capital letters: an LLM without them can neither name an item nor invent one.
    """
    texts, special = tokenizer.batch_decode([[token] for token in range(len(tokenizer))]), {*tokenizer.all_special_ids}
    plain = lambda text: text == text.lower() and not _NO_SENTENCE.search(text)
    return torch.tensor([plain(text) and number not in special for number, text in enumerate(texts)])
