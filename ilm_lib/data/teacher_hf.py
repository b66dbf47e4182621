"""A teacher of the ELM-24 tasks from a folder: any instruction-tuned causal LM of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ilm_lib.data.llms import find_llm
from ilm_lib.data.teachers import MAX_TOKENS, LanguageModelTeacher, TeacherError
from ilm_lib.devices import device
from ilm_lib.model.backbone import context_length, load_backbone
from ilm_lib.model.chat import ChatTemplate, Message
from ilm_lib.model.prompts import PromptEncoder


class HFTeacher(LanguageModelTeacher):
    """Greedy answers of a local LLM, in batches; the model is loaded when there is something to ask.

    Args:
        model: folder or name, safetensors only. Its chat template is applied where its tokenizer has one.
        answers: file of answers, resumable after every batch.
        max_tokens: limit of an answer.
        batch_size: prompts at once.
    """

    def __init__(self, model: str, answers: Path, *, max_tokens: int = MAX_TOKENS, batch_size: int = 16):
        super().__init__("hf", str(model), answers, max_tokens)
        self.batch_size = batch_size
        self._loaded: tuple[Any, Any] | None = None

    def load(self) -> tuple[Any, Any]:
        """The LLM and its tokenizer.

        Raises TeacherError if there is no such model in safetensors.
        """
        if self._loaded is None:
            place = find_llm(self.model)
            try:
                llm, tokenizer = load_backbone(place)
            except (OSError, ValueError) as error:
                reason = str(error).partition("\n")[0].rstrip(".")[:120]
                raise TeacherError(
                    f"elm24.teacher_model {self.model!r} cannot be loaded: {reason}. "
                    "Give a folder with config.json, *.safetensors and the tokenizer"
                ) from None
            self._loaded = llm.to(device()), tokenizer
        return self._loaded

    def prompt(self, instruction: str) -> list[int]:
        """The ids of the instruction as this model reads it; a title within it is text, whatever it looks like."""
        encoder, template = self._reads
        turn: Message = {"role": "user", "content": instruction}
        return list(encoder.encode(template.prompt([turn]))[0])

    @cached_property
    def _reads(self) -> tuple[PromptEncoder, ChatTemplate]:
        tokenizer = self.load()[1]
        return PromptEncoder(tokenizer, 0, 0), ChatTemplate(tokenizer)

    @torch.no_grad()
    def ask(self, instructions: Sequence[str]) -> Iterator[tuple[int, str]]:
        llm, tokenizer = self.load()
        ids = [self.prompt(text) for text in instructions]
        room = context_length(llm) - self.max_tokens
        if (longest := max(map(len, ids))) > room:
            raise TeacherError(
                f"{self.name} reads {context_length(llm)} tokens, and a prompt of {longest} leaves less "
                f"than {self.max_tokens} for the answer. Choose a model with a longer context"
            )
        # Like lengths together, longest first: if the memory is too small, it shows at once.
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            width = len(ids[chosen[0]])
            padded = [[tokenizer.pad_token_id] * (width - len(ids[i])) + ids[i] for i in chosen]
            mask = [[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chosen]
            out = llm.generate(
                input_ids=torch.tensor(padded, device=llm.device),
                attention_mask=torch.tensor(mask, device=llm.device),
                max_new_tokens=self.max_tokens,
                pad_token_id=tokenizer.pad_token_id,
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            for i, new in zip(chosen, out[:, width:]):
                text = tokenizer.decode(new, skip_special_tokens=True)
                # Without a template a model may go on with a turn of its own.
                yield i, text if tokenizer.chat_template else text.split("\nuser:")[0]
