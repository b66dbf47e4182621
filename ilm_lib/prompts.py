"""The interleaved prompt: a list of str, `Item` and `User`, and its way to token ids.

This is the paper's Figure 1. There is one path for training and inference: `render` turns a template
into a prompt, `PromptEncoder.batch` turns prompts into ids with slots, and the model writes the item
tokens into the slots.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Iterable, Sequence, Union

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Item:
    """A slot for an item: `row` is its row in the item embeddings."""

    row: int


@dataclass(frozen=True)
class User:
    """A slot for a user ("a special item", section 1): `row` in the user embeddings."""

    row: int


Prompt = Sequence[Union[str, Item, User]]


@dataclass(frozen=True)
class Batch:
    """Encoded prompts. Slots hold a placeholder id until the model writes item tokens over them.

    Attributes:
        input_ids, attention_mask: (B, T). labels: (B, T), -100 where no loss is taken, or None.
        slot_row, slot_start: (S,) where each slot begins. slot_entity: (S,) index into `entities`.
        entities: (E,) distinct entity rows: items 0..I-1, then users I..I+U-1.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None
    slot_row: Tensor
    slot_start: Tensor
    slot_entity: Tensor
    entities: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(**{k: v if v is None else v.to(device) for k, v in self.__dict__.items()})

    @property
    def position_ids(self) -> Tensor:
        """(B, T) positions that count real tokens only, so that left padding changes nothing."""
        return (self.attention_mask.cumsum(1) - 1).clamp_min(0)


class PromptEncoder:
    """Turns prompts into batches for one tokenizer and one number of query tokens.

    Args:
        tokenizer: any Hugging Face tokenizer with an end-of-sequence token.
        num_items: I, so that users can follow items in one entity table.
        num_query_tokens: N, positions a slot takes. 0: slots are left out (text-only methods).

    Adjacent strings are joined before they are tokenized, so a prompt without slots gives exactly the
    ids the tokenizer gives for its text, after the beginning-of-sequence token where there is one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_items: int, num_query_tokens: int):
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
        self.tokenizer, self.num_items, self.num_query_tokens = tokenizer, num_items, num_query_tokens
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.text_ids = lru_cache(1 << 16)(lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))

    def encode(self, prompt: Prompt) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids with placeholders, and the slots as (start, entity)."""
        ids, slots, text = list(self.bos), [], ""
        for segment in prompt:
            if isinstance(segment, str):
                text += segment
            elif self.num_query_tokens:
                if text:
                    ids += self.text_ids(text)
                    text = ""
                slots.append((len(ids), self._entity(segment)))
                ids += [self.pad_id] * self.num_query_tokens
        return ids + list(self.text_ids(text)) if text else ids, slots

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer, closed by the end-of-sequence token."""
        return [*self.text_ids(text), self.tokenizer.eos_token_id]

    def batch(
        self, prompts: Sequence[Prompt], answers: Sequence[str] | None = None, *,
        side: str = "right", loss_on: str = "target", max_length: int | None = None,
    ) -> Batch:
        """Encode prompts, with answers for training.

        Args:
            side: padding side; "left" for generation.
            loss_on: "target" takes the loss on the answer, "text" on every text token (never on
                slots, whose inputs are not tokens).
            max_length: refuse longer rows (the LLM's context).

        Raises:
            ValueError: a row is longer than `max_length`; names its length.
        """
        rows, labels, slots = [], [], []
        for b, prompt in enumerate(prompts):
            ids, row_slots = self.encode(prompt)
            answer = self.answer_ids(answers[b]) if answers is not None else []
            label = list(ids) if loss_on == "text" else [-100] * len(ids)
            for start, _ in row_slots:
                label[start:start + self.num_query_tokens] = [-100] * self.num_query_tokens
            rows.append(ids + answer)
            labels.append(label + answer)
            slots += [(b, start, entity) for start, entity in row_slots]
        width = max(map(len, rows))
        if max_length is not None and width > max_length:
            raise ValueError(f"a prompt is {width} tokens long and the LLM reads {max_length}: "
                             "shorten data.history_max or use fewer query tokens")
        input_ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        targets = np.full((len(rows), width), -100, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        shift = np.zeros(len(rows), dtype=np.int64)
        for b, ids in enumerate(rows):
            shift[b] = width - len(ids) if side == "left" else 0
            here = slice(shift[b], shift[b] + len(ids))
            input_ids[b, here], targets[b, here], mask[b, here] = ids, labels[b], 1
        row, start, entity = np.array(slots, dtype=np.int64).reshape(-1, 3).T
        entities, inverse = np.unique(entity, return_inverse=True)
        return Batch(
            torch.from_numpy(input_ids), torch.from_numpy(mask),
            torch.from_numpy(targets) if answers is not None else None,
            *(torch.from_numpy(np.ascontiguousarray(a)) for a in (row, start + shift[row], inverse, entities)))

    def _entity(self, slot: Item | User) -> int:
        if isinstance(slot, Item):
            if not 0 <= slot.row < self.num_items:
                raise IndexError(f"{slot} is outside the {self.num_items} items of the embeddings")
            return slot.row
        if isinstance(slot, User):
            if slot.row < 0:
                raise IndexError(f"{slot}: rows count from 0")
            return self.num_items + slot.row
        raise TypeError(f"a prompt is made of str, Item and User, not {type(slot).__name__}")


@dataclass(frozen=True)
class Indexing:
    """How items and users are named in text: `item_1234`, `user_17` (random indexing of OpenP5)."""

    dataset: str
    user_index: np.ndarray
    item_index: np.ndarray
    history_separator: str = " , "

    def render(self, source: str, user: int, history: Iterable[int] = ()) -> Prompt:
        """Fill a template; every index is followed by the slot of its embedding (section 4.1).

        Args: source: e.g. "What follows {dataset} items {history} for {dataset} user_{user_id} ?"
        """
        prompt: list[str | Item | User] = []
        for text, field in _fields(source):
            prompt.append(text)
            if field == "dataset":
                prompt.append(self.dataset)
            elif field == "user_id":
                prompt += [str(self.user_index[user]), User(user)]
            elif field == "history":
                for i, row in enumerate(history):
                    prompt += [f"{self.history_separator if i else ''}item_{self.item_index[row]}", Item(int(row))]
        return prompt

    def answer(self, target: str, row: int) -> str:
        """The answer's text, e.g. " Toy item_1234", from a template's target."""
        name = str(self.item_index[row])
        text = target.replace("{dataset}", self.dataset)
        if "item_{target}" not in text:
            text = text.replace("{target}", "item_{target}")
        return " " + text.replace("{target}", name).strip()


@lru_cache(None)
def _fields(source: str) -> list[tuple[str, str | None]]:
    from string import Formatter

    return [(text, field) for text, field, _, _ in Formatter().parse(source)]


# An index is read in pairs of digits, so that 100 tokens name every item of any catalogue.
_PIECES = r" ?[\p{L}]+_?|\d{1,2}| ?[^\s\p{L}\d]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, specials: Sequence[str] = ("[PAD]", "[BOS]", "[EOS]"),
                    ) -> PreTrainedTokenizerFast:
    """A small lossless byte-level BPE tokenizer.

    Args:
        texts: training texts. vocab_size: upper bound, with the 256 bytes, 100 pairs of digits and the
            specials, which are there in any case.
        specials: padding, beginning and end of sequence, in this order; further ones may follow.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(_PIECES), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 100, special_tokens=list(specials), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    for pair in (f"{i:02d}" for i in range(100)):  # every pair of digits is one token, seen in training or not
        if pair not in vocab:
            vocab[pair] = len(vocab)
            merges.append(list(pair))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    pad, bos, eos = specials[:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos,
        additional_special_tokens=list(specials[3:]), clean_up_tokenization_spaces=False)
