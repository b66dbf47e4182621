"""Text of data to ids: what stands in a title is text, whatever it looks like, and never a special token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ilm_lib.model.refusals import WrongValue, brief

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile("<0x[0-9A-F]{2}>")  # what characters without a token of their own are written in


class PlainText:
    """A tokenizer for texts from outside, whose special tokens cannot be written in them.

    A title "[EOS]" or "<|im_end|>" gets the ids of its characters. Tokens that were added and are not special, as the
    names of items are in our own tokenizer, are read whole. Ids of other texts are the tokenizer's.

    Args:
        tokenizer: any Hugging Face tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.items()
        marked = {i for i, token in added if token.special and not _BYTE.fullmatch(token.content)}
        self._special = {*tokenizer.all_special_ids} | marked

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text, without any that the tokenizer would put around it.

        Raises:
            WrongValue: a tokenizer without a backend of the package tokenizers reads a text as a special token.
        """
        ids = self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [row if self._special.isdisjoint(row) else self._again(text, row) for text, row in zip(texts, ids)]

    def _again(self, text: str, ids: list[int]) -> list[int]:
        """Ids of a text among which special ones were; the one of unknown characters may stay.

        The tokenizer's own switch ends the search for special tokens in texts, but a vocabulary that holds "</s>" as
        a piece beside the others (Unigram, WordLevel) finds it all the same.
        """
        unknown, name = self.tokenizer.unk_token_id, self.tokenizer.unk_token
        if self._special.isdisjoint({*ids} - {unknown}) and not (name and name in text):
            return ids
        if self._unwritable is None:
            kind = type(self.tokenizer).__name__
            raise WrongValue(f"{kind} reads {brief(text)} as a special token: use a tokenizer with a tokenizer.json")
        return self._unwritable.encode(text, add_special_tokens=False).ids

    @cached_property
    def _unwritable(self) -> Tokenizer | None:
        """The same tokenizer with special tokens under names that no text has."""
        from tokenizers import Tokenizer

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return None
        state = json.loads(backend.to_str())
        names = {str(backend.id_to_token(i)): f"\ufdd0{i}\ufdd1" for i in self._special}
        for token in state["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename(state["model"], names)
        again = Tokenizer.from_str(json.dumps(state | {"post_processor": None, "truncation": None, "padding": None}))
        again.encode_special_tokens = True
        return again


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Give tokens of a vocabulary other names and the same ids."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): i for piece, i in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        parts = lambda merge: merge.split(" ") if isinstance(merge, str) else merge
        model["merges"] = [m for m in model["merges"] if not names.keys() & {*parts(m), "".join(parts(m))}]
