"""The interleaved prompt: a list of str, `Item` and `User`, and its way to token ids.

This is the paper's Figure 1. There is one path for training and inference: `Indexing.render` turns a
template into a prompt, `PromptEncoder.batch` turns prompts into ids with slots, and the model writes the
item tokens into the slots.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import Callable, Iterable, Sequence, Union

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ilm_lib.masks import additive
from ilm_lib.params import ItemPositions


@dataclass(frozen=True)
class Item:
    """A slot for an item: `row` is its row in the item embeddings."""

    row: int


@dataclass(frozen=True)
class User:
    """A slot for a user ("a special item", section 1): `row` in the user embeddings."""

    row: int


Prompt = Sequence[Union[str, Item, User]]

CUT = re.compile(r"(?<=\S)(?= )")  # where texts are cut into pieces: before a blank that follows a non-blank
# The same place within a token: byte-level vocabularies write a blank as \u0120 (tab, line feed, carriage return as
# \u0109, \u010a, \u010d), SentencePiece as \u2581.
_SPANS = re.compile("[^ \u0120\u2581\\s\u0109\u010a\u010d][ \u0120\u2581]")


@dataclass(frozen=True)
class Batch:
    """Encoded prompts. Slots hold a placeholder id until the model writes item tokens over them.

    A row holds one prompt, or several one after another that do not see each other (packed).

    Attributes:
        input_ids: (B, T). segment: (B, T), 0 at padding, else the number of the prompt within its row, from 1.
        position_ids: (B, T) positions that count from the start of the prompt, so that neither padding nor neighbours
            matter; 0 at padding.
        slot_row, slot_start: (S,) where each slot begins. slot_entity: (S,) index into `entities`.
        entities: (E,) distinct entity rows: items 0..I-1, then users I..I+U-1.
        labels: (B, T), -100 where no loss is taken, or None.
        scored: (L,) places in the flattened (B, T) whose next token has a label, or None.
        packed: whether a row may hold several prompts.
    """

    input_ids: Tensor
    segment: Tensor
    position_ids: Tensor
    slot_row: Tensor
    slot_start: Tensor
    slot_entity: Tensor
    entities: Tensor
    labels: Tensor | None
    scored: Tensor | None
    packed: bool

    def to(self, device: torch.device | str) -> "Batch":
        """On a GPU from pinned memory, so that the copy does not hold up whoever asks for it."""
        gpu = torch.device(device).type == "cuda"
        move = lambda v: (v.pin_memory() if gpu and not v.is_cuda else v).to(device, non_blocking=gpu)
        return replace(self, **{k: move(v) for k, v in self.__dict__.items() if isinstance(v, Tensor)})

    @property
    def attention_mask(self) -> Tensor:
        """(B, T), 1 at tokens and slots, 0 at padding."""
        return (self.segment > 0).long()

    @property
    def weight(self) -> int:
        """Labelled tokens: the share of this batch in a step of several."""
        return len(self.scored)

    @property
    def targets(self) -> Tensor:
        """(L,) the tokens that follow the places of `scored`."""
        return self.labels.flatten()[self.scored + 1]

    def reading(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the LLM must know besides the tokens: positions and the attention mask, (B, T) or, where rows are
        packed, (B, 1, T, T)."""
        if not self.packed:
            return {"attention_mask": self.attention_mask, "position_ids": self.position_ids}
        same = self.segment[:, :, None] == self.segment[:, None, :]
        return {"attention_mask": additive(same.tril()[:, None], dtype), "position_ids": self.position_ids}


class PromptEncoder:
    """Turns prompts into batches for one tokenizer and one number of query tokens.

    Args:
        tokenizer: any Hugging Face tokenizer with an end-of-sequence token.
        num_items: I, so that users can follow items in one entity table.
        num_query_tokens: N, places a slot takes. 0: slots are left out (text-only methods).
        item_positions: "shared": all N stand at the position of the token before them, so that text keeps the positions
            it has without items, as the frozen LLM has learned them; "own": each moves what follows one further.
        packs: whether the LLM reads packed rows of a length (`masks.takes_4d_mask`); our own does.

    A prompt without slots gives exactly the ids the tokenizer gives for its text, after the
    beginning-of-sequence token where there is one. Adjacent strings count as one text; it is tokenized in
    pieces, whose ids are kept, where that changes nothing (see `cuts`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, num_items: int, num_query_tokens: int,
                 item_positions: ItemPositions = "shared", packs: Callable[[int], bool] = lambda length: True):
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
        self.tokenizer, self.num_items, self.num_query_tokens = tokenizer, num_items, num_query_tokens
        self.item_positions, self.packs = item_positions, packs
        self.pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self._slot = array("q", [self.pad_id] * num_query_tokens)
        self.text_ids = lru_cache(1 << 16)(self._tokenize)
        self.answer_ids = lru_cache(1 << 16)(self._close)

    @cached_property
    def cuts(self) -> bool:
        """Whether a text may be cut before a blank that follows a non-blank.

        It may if no token of the vocabulary spans such a place, as where blanks belong to the word that follows
        (ours does so, see `tokenizer`), and if texts get no mark at their start, which a trial shows. Where it may
        not, texts are tokenized whole.
        """
        if any(_SPANS.search(token) for token in self.tokenizer.get_vocab()):
            return False
        words = ["an", "Item", "user_17", "2024", "7", "don't", ".", ", ", "??", "\n", "\u00e9t\u00e9", "\u653b\u6bbb"]
        texts = [f"{a} {b}" for a in words for b in words]
        pieces = [CUT.split(text) for text in texts]
        ids = lambda given: self.tokenizer(given, add_special_tokens=False)["input_ids"]
        of_piece = dict(zip(known := sorted({*chain(*pieces)}), ids(known)))
        return all(list(chain(*map(of_piece.get, cut))) == whole for cut, whole in zip(pieces, ids(texts)))

    def encode(self, prompt: Prompt) -> tuple[array, array]:
        """Token ids with placeholders, and the slots as start, entity, start, entity, ... (arrays of int64)."""
        ids, slots, text = array("q", self.bos), array("q"), ""
        for segment in prompt:
            if isinstance(segment, str):
                if text and segment[:1] == " " and self.cuts and not text[-1].isspace():
                    ids += self.text_ids(text)
                    text = segment
                else:
                    text += segment
            elif self.num_query_tokens:
                if text:
                    ids += self.text_ids(text)
                    text = ""
                slots.append(len(ids))
                slots.append(self._entity(segment))
                ids += self._slot
        if text:
            ids += self.text_ids(text)
        return ids, slots

    def _tokenize(self, text: str) -> array:
        """Ids of a text that stands alone; kept by `text_ids`."""
        return array("q", self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _close(self, text: str) -> array:
        """Ids of an answer, closed by the end-of-sequence token; kept by `answer_ids`."""
        return self.text_ids(text) + array("q", [self.tokenizer.eos_token_id])

    def batch(
        self, prompts: Sequence[Prompt], answers: Sequence[str] | None = None, *,
        side: str = "right", pack: bool = False, loss_on: str = "target", max_length: int | None = None,
    ) -> Batch:
        """Encode prompts, with answers for training.

        Args:
            side: padding side; "left" for generation.
            pack: prompts share rows if the LLM reads such rows (see `pack_rows`); else every prompt has its own.
            loss_on: "target" takes the loss on the answer, "text" on every text token (never on
                slots, whose inputs are not tokens, nor on first tokens, which nothing comes before).
            max_length: refuse longer rows (the LLM's context).

        Raises:
            ValueError: a row is longer than `max_length`; names its length.
        """
        ids, slots = zip(*map(self.encode, prompts))
        closing = list(map(self.answer_ids, answers)) if answers is not None else [array("q")] * len(ids)
        begin = np.array(list(map(len, ids)))  # (P,) where the answers begin
        length = begin + np.array(list(map(len, closing)))
        width = int(length.max())
        if max_length is not None and width > max_length:
            raise ValueError(f"a prompt is {width} tokens long and the LLM reads {max_length}: "
                             "shorten data.history_max or use fewer query tokens")
        pack = pack and self.packs(width)
        if pack:
            row, offset, number, width = pack_rows(length, self.packs)
        else:
            row, number = np.arange(len(ids)), np.ones(len(ids), dtype=np.int64)
            offset = width - length if side == "left" else np.zeros_like(length)

        first = np.cumsum(length) - length  # (P,) among all tokens, one prompt after another
        inside, place = token_places(length, row, offset, width)
        tokens = _joined(chain.from_iterable(zip(ids, closing)))
        of = np.repeat(np.arange(len(ids)), [len(s) // 2 for s in slots])  # (S,) the prompt of a slot
        start, entity = _joined(slots).reshape(-1, 2).T
        entities, inverse = np.unique(entity, return_inverse=True)

        labelled = inside > 0 if loss_on == "text" else inside >= np.repeat(np.maximum(begin, 1), length)
        in_slots = (first[of] + start)[:, None] + np.arange(self.num_query_tokens)
        labelled[in_slots] = False
        moves = np.ones(len(tokens), dtype=np.int64)
        if self.item_positions == "shared":
            moves[in_slots] = 0
        position = np.cumsum(moves) - 1
        position -= np.repeat(position[first] + 1 - moves[first], length)
        size = (int(row.max()) + 1) * width
        input_ids, labels, segment, position_ids = np.full((4, size), [[self.pad_id], [-100], [0], [0]])
        input_ids[place], segment[place] = tokens, np.repeat(number, length)
        position_ids[place] = np.maximum(position, 0)  # a slot that comes first has no token before it
        labels[place[labelled]] = tokens[labelled]
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a))
        grid = lambda a: torch.from_numpy(a).view(-1, width)
        scored = (grid(labels), tensor(np.sort(place[labelled]) - 1)) if answers is not None else (None, None)
        return Batch(grid(input_ids), grid(segment), grid(position_ids), tensor(row[of]), tensor(start + offset[of]),
                     tensor(inverse), tensor(entities), *scored, packed=pack)

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


def _joined(arrays: Iterable[array]) -> np.ndarray:
    """Arrays of int64 end to end."""
    return np.frombuffer(b"".join(arrays), dtype=np.int64)


def token_places(length: np.ndarray, row: np.ndarray, offset: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every token of (P,) prompts, one after another: where it is in its prompt, and in the flattened (B, T)."""
    inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return inside, np.repeat(row * width + offset, length) + inside


def best_fit(length: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay prompts into rows of `width`, the longest first, each where it leaves the least room.

    Returns: (P,) row, offset in the row, and number within the row (from 1) of every prompt.
    """
    row, offset, number = np.zeros((3, len(length)), dtype=np.int64)
    rooms: list[tuple[int, int, int]] = []  # (what is left, row, prompts in it), sorted
    rows = 0
    for prompt in np.argsort(-length, kind="stable").tolist():
        needed = int(length[prompt])
        fits = bisect_left(rooms, (needed,))
        if fits == len(rooms):
            left, at, count, rows = width, rows, 0, rows + 1
        else:
            left, at, count = rooms.pop(fits)
        row[prompt], offset[prompt], number[prompt] = at, width - left, count + 1
        insort(rooms, (left - needed, at, count + 1))
    return row, offset, number


def pack_rows(length: np.ndarray, packs: Callable[[int], bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """`best_fit` in rows as wide as the longest prompt or up to a quarter wider, whichever leaves least empty;
    in rows up to twice as wide where all of these leave more than a tenth empty.

    Prompts of like length, which fill rows badly, often fill wider ones well; but in wide rows every token pays for
    attention to prompts that it does not see. Widths are multiples of 16 where the LLM allows it: sizes come again, and
    a CPU's matrix kernels, compiled for each size in bfloat16, are found and not compiled.

    Args: length: (P,) of the prompts. packs: whether rows of a width may be packed.

    Returns: row, offset, number as of `best_fit`, and the width.
    """
    longest = int(length.max())
    area = lambda laid: (laid[0].max() + 1) * laid[3]
    round_up = lambda width: -(-width // 16) * 16
    first = round_up(longest) if packs(round_up(longest)) else longest
    best = (*best_fit(length, first), first)
    for shares in (range(33, 41), range(42, 65, 2)):  # in 32nds of the longest
        for width in filter(packs, sorted({round_up(longest * share // 32) for share in shares} - {first})):
            best = min(best, (*best_fit(length, width), width), key=area)
        if length.sum() >= 0.9 * area(best):
            break
    return best
