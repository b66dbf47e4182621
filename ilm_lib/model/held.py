"""What the LLM has read of the last conversations is held: a prompt that begins as one of them is read on from there.

A prompt is read in pieces that end where its own tokens say (`piece_ends`), whatever is held. So whoever reads it anew
reads the same pieces as who read them turn by turn, and keys, values and what is written are equal, in any precision.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ilm_lib.model.backbone import layer_states
from ilm_lib.model.chat import chat_template
from ilm_lib.model.encoders import source_of
from ilm_lib.model.masks import takes_positions
from ilm_lib.model.prompts import Batch
from ilm_lib.model.readers import Room

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM

T = TypeVar("T")
#: Tokens of a piece: from SHORT it ends with a turn, at LONG in any case. Long ones are read faster, a token at a time.
SHORT, LONG = 128, 512
HELD = 1 << 30  # bytes of keys and values that are held, unless the last conversation alone has more
Place = tuple[
    int, int | bytes
]  # the id of a token; the row of the item, or the vector of the user, whose slot it is in


class Reading:
    """Keys and values of what an LLM has read of one prompt.

    Attributes:
        source: what they depend on besides the prompt.
        places: that have been read.
        whole: how many of the places are pieces that a fresh read of the prompt reads as well.
        states: what the output layer would read, by place, of slots that were asked for.
        goes_back: False: the LLM's layers forget what is behind a window, or have a state in the place of keys.
    """

    def __init__(self, llm: PreTrainedModel, source: tuple[Hashable, ...] = ()):
        self.llm, self.source, self.whole = llm, source, 0
        self.places: list[Place] = []
        self.states: dict[int, Tensor] = {}
        self.cache = DynamicCache(config=llm.config)
        self.goes_back = {type(layer) for layer in self.cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}
        if self.goes_back:  # a mask keeps the window where all keys are there
            self.cache.layers = [Room() for _ in self.cache.layers]

    @property
    def size(self) -> int:
        """Bytes of keys and values."""
        return sum(t.nbytes for layer in self.cache.layers for t in (layer.keys, layer.values) if t is not None)

    def back_to(self, count: int) -> None:
        """Forget all places but the first `count`; all of them where the LLM's layers cannot go back."""
        if count == len(self.places):
            return
        if self.goes_back:
            self.cache.crop(count - len(self.places))
        else:
            self.cache, count = DynamicCache(config=self.llm.config), 0
        del self.places[count:]
        self.whole = min(self.whole, count)
        self.states = {place: state for place, state in self.states.items() if place < count}

    def read(self, forward: Callable[..., T], places: Sequence[Place], positions: Tensor, **given: Tensor) -> T:
        """What `forward` makes of places (1, n) behind those read, whose tokens or embeddings are `given`."""
        known = {"position_ids": positions} if takes_positions(self.llm) else {}
        whole, self.whole = self.whole, 0  # a read that is broken off leaves nothing of use
        made = forward(**given, **known, past_key_values=self.cache, use_cache=True)
        self.places += places
        self.whole = whole
        return made

    def read_pieces(
        self, forward: Callable[..., T], places: Sequence[Place], positions: Tensor, embeddings: Tensor, end: int
    ) -> Iterator[tuple[slice, T]]:
        """`read` what is ahead of a whole prompt, (1, T), piece by piece; `end` as in `piece_ends`."""
        ends = [stop for stop in piece_ends(places, end) if stop > self.whole]
        for start, stop in pairwise(dict.fromkeys([len(self.places), *ends, len(places)])):
            part = slice(start, stop)
            made = self.read(forward, places[part], positions[:, part], inputs_embeds=embeddings[:, part])
            self.whole = stop if stop in ends else self.whole
            yield part, made


class Readings:
    """The readings of the last conversations. Who reads on in one takes it out, and puts it back."""

    def __init__(self) -> None:
        self._held: list[Reading] = []  # the one used last is the last
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a copy of a model has read nothing

    def __len__(self) -> int:
        return len(self._held)

    def clear(self) -> None:
        with self._lock:
            self._held.clear()

    def take(self, ilm: ILM, use: str, places: Sequence[Place], end: int) -> Reading:
        """The reading that has most of a prompt, back where the prompt leaves it; else a new one.

        One with less than a third of its own in common with the prompt is left alone: it is of another conversation.
        (Of the same one a half may not come again: what was told of the items to recommend.)

        Args:
            use: what it is read for; readings for one use do not serve another.
            end: as in `piece_ends`.
        """
        weights = source_of(ilm.cf, ilm.encoder, ilm.head, ilm.llm)
        made = weights, ilm.llm.config._attn_implementation, torch.is_inference_mode_enabled()
        with self._lock:
            self._held = [
                reading for reading in self._held if reading.source[1:] == made
            ]  # of other weights: of no use
            ends = [0, *(count for count in piece_ends(places, end) if count < len(places))]
            best, count = None, 0
            for reading in self._held:
                same = common(reading.places, places)
                have = max(stop for stop in ends if stop <= same)
                if reading.source[0] == use and have >= count and 3 * have >= len(reading.places):
                    best, count = reading, have
            if best is None:
                return Reading(ilm.llm, (use, *made))
            self._held.remove(best)
        best.back_to(count)
        return best

    def put(self, reading: Reading) -> None:
        """Hold what a fresh read would read in the same way; the oldest readings go where there is no room."""
        if not reading.whole or not reading.goes_back:
            return
        reading.back_to(reading.whole)
        with self._lock:
            self._held.append(reading)
            while len(self._held) > 1 and sum(held.size for held in self._held) > HELD:
                del self._held[0]


def piece_ends(places: Sequence[Place], end: int) -> list[int]:
    """Where the pieces of a prompt end, the last one left out, which may be cut short.

    It is a matter of what stands before: a prompt that goes on has the same ends and perhaps others.

    Args:
        end: the id of the token that ends a turn.
    """
    ends, start = [], 0
    for count, (token, _) in enumerate(places, 1):
        if count - start >= (SHORT if token == end else LONG):
            ends.append(count)
            start = count
    return ends


def places_of(ilm: ILM, batch: Batch, guests: Tensor | None = None) -> list[Place]:
    """The places of a batch of one prompt; `guests` as in `ILM.embed`."""
    slot: list[int | bytes] = [-1] * batch.input_ids.shape[1]
    vectors = [] if guests is None else [vector.tobytes() for vector in guests.float().cpu().numpy()]
    entities, size = batch.entities.tolist(), ilm.prompts.num_query_tokens
    for start, which in zip(batch.slot_start.tolist(), batch.slot_entity.tolist()):
        guest = entities[which] - len(ilm.cf)  # below 0 at items
        slot[start : start + size] = [vectors[guest] if guest >= 0 else entities[which]] * size
    return list(zip(batch.input_ids[0].tolist(), slot))


def held_states(ilm: ILM, batch: Batch, guests: Tensor | None, *, every_layer: bool) -> Tensor:
    """`backbone.hidden_states` of a batch of one prompt, of which no more is read than what is new."""
    places, end = places_of(ilm, batch, guests), chat_template(ilm.tokenizer).end
    embeddings, reading = ilm.embed(batch, guests), ilm.readings.take(ilm, "slots", places, end)
    slots = batch.slot_read.tolist()
    forward = partial(layer_states, ilm.llm, every_layer)
    for part, layers in reading.read_pieces(forward, places, batch.position_ids, embeddings, end):
        states = torch.cat([state[0].to(layers[-1]) for state in layers], -1)  # (n, K H)
        reading.states.update({at: states[at - part.start] for at in slots if part.start <= at < part.stop})
    found = torch.stack([reading.states[at] for at in slots])
    ilm.readings.put(reading)
    return found


def common(a: Sequence[Place], b: Sequence[Place]) -> int:
    """How many places two prompts begin with alike."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
