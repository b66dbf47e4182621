"""The interleaved prompt: a list of str, `Item` and `User`, and its way to token ids.

This is the paper's Figure 1. There is one path for training and inference: `Indexing.render` turns a template into a
prompt, `PromptEncoder.batch` turns prompts into ids with slots, and the model writes the item tokens into the slots.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain
from operator import index
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ilm_lib.model.masks import additive
from ilm_lib.model.packing import common_start, one_a_row, pack_rows, token_places
from ilm_lib.model.plain_text import PlainText
from ilm_lib.model.refusals import OutOfRange, WrongKind, WrongValue, brief, refuse_long
from ilm_lib.settings import ItemPositions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def whole(value: object) -> int | None:
    """A whole number of Python, numpy or torch as an int; None for anything else, True and False among it."""
    if isinstance(value, (bool, np.bool_)) or (isinstance(value, Tensor) and value.dtype == torch.bool):
        return None
    try:
        return index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _row(slot: Item | User) -> int:
    """The row of a slot as an int."""
    kind, row = type(slot).__name__, whole(slot.row)
    if row is None:
        raise WrongKind(f"{kind}({brief(slot.row)}): a row is a whole number. A title or an id is given as text alone")
    if row < 0:
        raise OutOfRange(f"{kind}({brief(row)}): rows count from 0")
    return row


@dataclass(frozen=True)
class Item:
    """A slot for an item: `row`, an int or a numpy integer from 0, is its row in the item embeddings.

    Raises:
        WrongKind: the row is no whole number. OutOfRange: it is below 0.
    """

    row: int

    def __post_init__(self):
        if type(self.row) is not int or self.row < 0:
            object.__setattr__(self, "row", _row(self))


@dataclass(frozen=True)
class User:
    """A slot for a user ("a special item", section 1): `row` in the user embeddings, as in `Item`."""

    row: int

    def __post_init__(self):
        if type(self.row) is not int or self.row < 0:
            object.__setattr__(self, "row", _row(self))


@dataclass(frozen=True)
class Special:
    """A special token of the LLM by its id, as chat templates have them (`chat`); text cannot write it."""

    id: int


Prompt = Sequence[str | Item | User | Special]

CUT = re.compile(r"(?<=\S)(?= )")  # where texts are cut into pieces: before a blank that follows a non-blank
# The same place within a token: byte-level vocabularies write a blank as \u0120 (tab, line feed, carriage return as
# \u0109, \u010a, \u010d), SentencePiece as \u2581.
_SPANS = re.compile("[^ \u0120\u2581\\s\u0109\u010a\u010d][ \u0120\u2581]")


@dataclass(frozen=True)
class Batch:
    """Encoded prompts. Slots hold a placeholder id until the model writes item tokens over them.

    A row holds one prompt, or several one after another that do not see each other (packed).

    Attributes:
        input_ids: (B, T).
        segment: (B, T), 0 at padding, else the number of the prompt within its row, from 1.
        position_ids: (B, T) positions that count from the start of the prompt, so that neither padding nor neighbours
            matter; 0 at padding.
        slot_row: (S,) the row of each slot.
        slot_start: (S,) where in its row it begins.
        slot_entity: (S,) index into `entities`.
        slot_prompt: (S,) which prompt it stands in, from 0; slots are in the order of prompts.
        slot_read: (S,) where in the flattened (B, T) a slot has been read: its last position; of a prompt's last slot
            the prompt's end, so that the words after it count.
        entities: (E,) distinct entity rows: items 0..I-1, then users I..I+U-1.
        start: (P,) tokens that all prompts begin with and that stand in no row, or None; positions count them.
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
    slot_prompt: Tensor
    slot_read: Tensor
    entities: Tensor
    labels: Tensor | None
    scored: Tensor | None
    packed: bool
    start: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
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
        return 0 if self.scored is None else len(self.scored)

    @property
    def targets(self) -> Tensor:
        """(L,) the tokens that follow the places of `scored`."""
        assert self.labels is not None and self.scored is not None, "a batch made without answers has no targets"
        return self.labels.flatten()[self.scored + 1]

    def reading(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the LLM must know besides the tokens: positions and the attention mask, (B, T) or, where rows are
        packed, (B, 1, T, P + T)."""
        if not self.packed:
            return {"attention_mask": self.attention_mask, "position_ids": self.position_ids}
        see = (self.segment[:, :, None] == self.segment[:, None, :]).tril()
        if self.start is not None:
            see = torch.cat([see.new_ones(*see.shape[:2], len(self.start)), see], 2)
        return {"attention_mask": additive(see[:, None], dtype), "position_ids": self.position_ids}


class PromptEncoder:
    """Turns prompts into batches for one tokenizer and one number of query tokens.

    Args:
        tokenizer: any Hugging Face tokenizer with an end-of-sequence token.
        num_items: I, so that users can follow items in one entity table.
        num_query_tokens: N, places a slot takes. 0: slots are left out (text-only methods).
        item_positions: "shared": all N stand at the position of the token before them, so that text keeps the positions
            it has without items, as the frozen LLM has learned them; "slot": they share a position after it, so that
            items that follow each other without words have an order; "own": each moves what follows one further.
        packs: whether the LLM reads packed rows of a length (`masks.takes_4d_mask`); our own does.

    A prompt without slots gives exactly the ids the tokenizer gives for its text, after the beginning-of-sequence
    token where there is one; one with special tokens (`Special`) brings its own beginning. Adjacent strings count as
    one text; it is tokenized in pieces, whose ids are kept, where that changes nothing (see `cuts`). All text is data:
    a special token that is written in it, "[EOS]", has the ids of its characters (see `PlainText`).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        num_items: int,
        num_query_tokens: int,
        item_positions: ItemPositions = "shared",
        packs: Callable[[int], bool] = lambda length: True,
    ):
        if tokenizer.eos_token_id is None:
            raise WrongValue("the tokenizer has no end-of-sequence token; set tokenizer.eos_token")
        self.tokenizer, self.num_items, self.num_query_tokens = tokenizer, num_items, num_query_tokens
        self._plain = PlainText(tokenizer)
        self.item_positions: ItemPositions = item_positions
        self.packs = packs
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
        pieces = (chain(*map(self.text_ids, CUT.split(text))) for text in texts)
        return all(list(found) == ids for found, ids in zip(pieces, self._plain(texts)))

    def encode(self, prompt: Prompt) -> tuple[array, array]:
        """Token ids with placeholders, and the slots as start, entity, start, entity, ... (arrays of int64)."""
        own = any(isinstance(segment, Special) for segment in prompt)
        ids, slots, text = array("q", [] if own else self.bos), array("q"), ""
        for segment in prompt:
            if isinstance(segment, str):
                if text and segment[:1] == " " and self.cuts and not text[-1].isspace():
                    ids += self.text_ids(text)
                    text = segment
                else:
                    text += segment
            elif self.num_query_tokens or isinstance(segment, Special):
                ids += self.text_ids(text) if text else array("q")
                text = ""
                if isinstance(segment, Special):
                    ids.append(segment.id)
                else:
                    slots += array("q", [len(ids), self._entity(segment)])
                    ids += self._slot
        if text:
            ids += self.text_ids(text)
        return ids, slots

    def _tokenize(self, text: str) -> array:
        """Ids of a text that stands alone; kept by `text_ids`."""
        return array("q", self._plain([text])[0])

    def _close(self, text: str, end: int | None = None) -> array:
        """Ids of an answer, closed by `end` or the end-of-sequence token; kept by `answer_ids`."""
        return self.text_ids(text) + array("q", [self.tokenizer.eos_token_id if end is None else end])

    def batch(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str] | None = None,
        *,
        side: str = "right",
        pack: bool = False,
        loss_on: str = "target",
        max_length: int | None = None,
        end: int | None = None,
    ) -> Batch:
        """Encode prompts, with answers for training.

        Args:
            side: padding side; "left" for generation.
            pack: prompts share rows if the LLM reads such rows (see `pack_rows`), and what all begin with stands once
                (`Batch.start`); else every prompt has its own.
            loss_on: "target" takes the loss on the answer, "text" on every text token (never on slots, whose inputs
                are not tokens, nor on first tokens, which nothing comes before).
            max_length: refuse longer rows (the LLM's context).
            end: id of the token that closes an answer; None: the tokenizer's end of sequence.

        Raises TooLong where a prompt is longer than `max_length`; names which, and its length.
        """
        ids, slots = zip(*map(self.encode, prompts))
        closing = (
            [self.answer_ids(answer, end) for answer in answers] if answers is not None else [array("q")] * len(ids)
        )
        begin = np.array(list(map(len, ids)))  # (P,) where the answers begin
        length = begin + np.array(list(map(len, closing)))
        width = int(length.max())
        if max_length is not None:
            refuse_long(length.tolist(), max_length)
        pack = pack and self.packs(width)
        shared = 0
        if pack and loss_on != "text":
            shared = common_start(ids, [s[0] if s else len(i) - 1 for i, s in zip(ids, slots)])
        opening, ids = ids[0][:shared], [row[shared:] for row in ids]
        begin, length = begin - shared, length - shared
        layout = pack_rows(length, self.packs) if pack else one_a_row(length, width, side)

        first = np.cumsum(length) - length  # (P,) among all tokens, one prompt after another
        inside, flat = token_places(length, layout)
        tokens = _joined(chain.from_iterable(zip(ids, closing)))
        slot_prompt = np.repeat(np.arange(len(ids)), [len(s) // 2 for s in slots])  # (S,)
        start, entity = _joined(slots).reshape(-1, 2).T - [[shared], [0]]  # (S,) in its prompt, and whose slot it is
        entities, slot_entity = np.unique(entity, return_inverse=True)
        in_slots = (first[slot_prompt] + start)[:, None] + np.arange(self.num_query_tokens)  # (S, N) among all tokens

        last = np.diff(slot_prompt, append=len(ids)) > 0  # (S,) the prompt has no other slot after it
        read = np.where(last, begin[slot_prompt], start + self.num_query_tokens) - 1  # (S,) in its prompt

        labelled = inside > 0 if loss_on == "text" else inside >= np.repeat(np.maximum(begin, 1), length)
        labelled[in_slots] = False
        size = layout.rows * layout.width
        input_ids, labels, segment, position_ids = np.full((4, size), [[self.pad_id], [-100], [0], [0]])
        input_ids[flat], segment[flat] = tokens, np.repeat(layout.number, length)
        position_ids[flat] = self._positions(length, first, in_slots, shared)
        labels[flat[labelled]] = tokens[labelled]
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a))
        grid = lambda a: torch.from_numpy(a).view(-1, layout.width)
        return Batch(
            input_ids=grid(input_ids),
            segment=grid(segment),
            position_ids=grid(position_ids),
            slot_row=tensor(layout.row[slot_prompt]),
            slot_start=tensor(start + layout.offset[slot_prompt]),
            slot_entity=tensor(slot_entity),
            slot_prompt=tensor(slot_prompt),
            slot_read=tensor((layout.row * layout.width + layout.offset)[slot_prompt] + read),
            entities=tensor(entities),
            labels=grid(labels) if answers is not None else None,
            scored=tensor(np.sort(flat[labelled]) - 1) if answers is not None else None,
            packed=pack,
            start=tensor(np.array(opening)) if shared else None,
        )

    def _positions(self, length: np.ndarray, first: np.ndarray, in_slots: np.ndarray, shared: int) -> np.ndarray:
        """The position of every token of (P,) prompts one after another, each after `shared` others."""
        moves = np.ones(int(length.sum()), dtype=np.int64)
        if self.item_positions != "own":
            moves[in_slots[:, 1:] if self.item_positions == "slot" else in_slots] = 0
        position = np.cumsum(moves) - 1
        position -= np.repeat(position[first] + 1 - moves[first], length)
        return np.maximum(position + shared, 0)  # a slot that comes first has no token before it

    def _entity(self, slot: Item | User) -> int:
        if isinstance(slot, Item):
            if slot.row >= self.num_items:
                raise OutOfRange(f"{slot} is outside the {self.num_items} items of the embeddings")
            return slot.row
        if isinstance(slot, User):
            return self.num_items + slot.row
        raise WrongKind(f"a prompt is made of str, Item and User, not {type(slot).__name__}")


def _joined(arrays: Iterable[array]) -> np.ndarray:
    """Arrays of int64 end to end."""
    return np.frombuffer(b"".join(arrays), dtype=np.int64)
