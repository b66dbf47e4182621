"""The tokenizer of backbones and Q-Formers trained from scratch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Numbers are read in pairs of digits, so that 100 tokens name every item of any catalogue.
_PIECES = r" ?[\p{L}]+_?|\d{1,2}| ?[^\s\p{L}\d]+|\s+"


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    specials: Sequence[str] = ("[PAD]", "[BOS]", "[EOS]"),
    whole: Sequence[str] = (),
) -> PreTrainedTokenizerFast:
    """A small lossless byte-level BPE tokenizer.

    Args:
        texts: training texts.
        vocab_size: upper bound, with the 256 bytes, 100 pairs of digits and the
            specials, which are there in any case.
        specials: padding, beginning and end of sequence, in this order; further ones may follow.
        whole: strings that are a token each wherever they stand, beside `vocab_size`; the longest that fits is taken.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 100,
        special_tokens=list(specials),
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())
    vocab, merges = state["model"]["vocab"], state["model"]["merges"]
    for pair in (f"{i:02d}" for i in range(100)):  # every pair of digits is one token, seen in training or not
        if pair not in vocab:
            vocab[pair] = len(vocab)
            merges.append(list(pair))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in whole])
    pad, bos, eos = specials[:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(specials[3:]),
        clean_up_tokenization_spaces=False,
    )
