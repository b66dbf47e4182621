"""Beam search of ten beams against `generate`: constrained to item ids (d) and free (e)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.harness import Row, compare, peak_memory
from ilm_lib.devices import device
from ilm_lib.model.backbone import attention_implementation
from ilm_lib.model.decode import beam_search
from ilm_lib.model.kernels import Trie
from ilm_lib.model.readers import Prefill

BEAMS, EOS, DIGITS = 10, 2, 3  # token ids from DIGITS on stand for the pairs of digits 00 to 99
PAPER = {"layers": 8, "width": 1024}  # of the decoder, on a GPU; there it is timed in bfloat16


def setting(
    batch: int = 64, prompt: int = 200, items: int = 3000, width: int = 256, layers: int = 4, vocab: int = 8000
) -> dict[str, Any]:
    """A decoder with random weights, left-padded prompts of about `prompt` tokens, and answers " Toy item_1234"."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    llm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=2 * width,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=EOS,
            initializer_range=0.06,
            attn_implementation=attention_implementation(),
        )
    ).eval()
    # Random weights never end a sentence: where answers shall be of a few tokens, the end must be likely.
    likely_end = torch.zeros(vocab).index_fill_(0, torch.tensor(EOS), 9.0).to(device())
    llm.lm_head.register_forward_hook(lambda module, args, logits: logits + likely_end.to(logits.dtype))
    lengths = rng.integers(int(0.9 * prompt), int(1.1 * prompt) + 1, size=batch)
    mask = (torch.arange(lengths.max()) >= int(lengths.max()) - torch.from_numpy(lengths)[:, None]).long()
    ids = torch.randint(110, vocab, mask.shape) * mask
    answers = [
        [vocab - 1, vocab - 2, DIGITS + n // 100, DIGITS + n % 100, EOS]
        for n in np.sort(rng.choice(np.arange(1001, 9999), items, replace=False))
    ]
    where = device()
    return {
        "llm": llm.to(where),
        "ids": ids.to(where),
        "mask": mask.to(where),
        "answers": answers,
        "trie": Trie.build(answers, where),
    }


def sizes_here() -> dict[str, int]:
    """What `setting` is asked for: the paper's decoder on a GPU, else its defaults."""
    return PAPER if torch.cuda.is_available() else {}


@torch.no_grad()
def ours(s: dict[str, Any], constrained: bool) -> tuple[list[list[list[int]]], torch.Tensor]:
    """Answers and scores, from reading the prompts on."""
    out = s["llm"](
        input_ids=s["ids"],
        attention_mask=s["mask"],
        use_cache=True,
        logits_to_keep=1,
        position_ids=(s["mask"].cumsum(1) - 1).clamp_min(0),
    )
    found = beam_search(
        s["llm"],
        Prefill(out.past_key_values, out.logits[:, -1], s["mask"]),
        beams=BEAMS,
        eos_id=EOS,
        max_new_tokens=5,
        trie=s["trie"] if constrained else None,
        length_penalty=1.0,
    )
    return [[[t for t in row if t >= 0] for row in rows] for rows in found.tokens.tolist()], found.scores


@torch.no_grad()
def hugging_face(s: dict[str, Any], constrained: bool) -> tuple[list[list[list[int]]], torch.Tensor]:
    """The same by `generate`, with the usual function over prefixes of a dictionary."""
    width, following = s["ids"].shape[1], {}
    for answer in s["answers"]:
        for i, token in enumerate(answer):
            following.setdefault(tuple(answer[:i]), set()).add(token)
    following = {prefix: sorted(tokens) for prefix, tokens in following.items()}
    rule = {"prefix_allowed_tokens_fn": lambda row, ids: following.get(tuple(ids[width:].tolist()), [EOS])}
    out = s["llm"].generate(
        input_ids=s["ids"],
        attention_mask=s["mask"],
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        do_sample=False,
        max_new_tokens=5,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **(rule if constrained else {}),
    )
    rows = [row[: row.index(EOS)] if EOS in row else [] for row in out.sequences[:, width:].tolist()]
    return [rows[i : i + BEAMS] for i in range(0, len(rows), BEAMS)], out.sequences_scores.view(-1, BEAMS)


def same_answers(s: dict[str, Any], constrained: bool) -> None:
    """Raises unless both find the same ids in the same order with the same scores."""
    (a, scores_a), (b, scores_b) = ours(s, constrained), hugging_face(s, constrained)
    torch.testing.assert_close(scores_a, scores_b.to(scores_a), atol=2e-3, rtol=1e-3)
    if a != b:  # the scores agree, so a difference is one of order among equals, or real
        raise AssertionError("beam search and generate found different answers")


def run(**sizes: int) -> list[Row]:
    """Rows d and e, with the memory of d beside it. Answers are compared in float32."""
    sizes = sizes or sizes_here()
    s, batch, rows = setting(**sizes), sizes.get("batch", 64), []
    for letter, name, constrained, target in (("d", "constrained", True, 10.0), ("e", "free", False, 4.0)):
        same_answers({**s, "llm": s["llm"].float()}, constrained)
        if torch.cuda.is_available():
            s["llm"].bfloat16()
        row = compare("", partial(ours, s, constrained), partial(hugging_face, s, constrained), target=target)
        rate = [1e3 * batch / t for t in (row.ours, row.theirs)]
        rows.append(Row(f"{letter} beam search, {name}", *rate, "users/s", row.ratio, target))
    a, b = peak_memory("bench.decode:once_ours"), peak_memory("bench.decode:once_hugging_face")
    rows.append(Row("d, peak memory", a, b, "MiB", b / a, 4.0, main=False))
    return rows


def once_ours() -> None:
    ours(setting(**sizes_here()), constrained=True)


def once_hugging_face() -> None:
    hugging_face(setting(**sizes_here()), constrained=True)
