"""SASRec: what a small transformer over item ids alone finds, without language and without user vectors.

The causal transformer of Kang and McAuley (arXiv 1808.09781), trained with cross entropy over all items, or over some
hundreds, in place of one sampled negative, which is most of what later models gained over it (Klenitskiy and Vasilev,
arXiv 2309.07602; Petrov and Macdonald, arXiv 2308.07192). The network is GPT-2's with items for tokens: learned
positions, layer norm before every block, and one table of items for input and output, so that the score of item i is
h . e_i.

The defaults are the best of seven trials on the dev items of Beauty, all 22,363 users, HR@10 / NDCG@10 (3,000 steps of
256 users but where said; "even": targets are ranked against 512 or 1,024 items drawn evenly, else see `rivals`):

    even, weighted by their chance, table_std .02      .0951 / .0547
    even, not weighted, table_std .02                  .0979 / .0561
    even, not weighted                                 .1004 / .0603
    width 128, 2,000 steps                             .1019 / .0602
    the defaults without weight decay                  .1101 / .0671 and, drawn otherwise, .1093 / .0666
    the defaults                                       .1106 / .0677
    weight decay 1                                     stopped after 1,000 steps, .012 behind
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from ilm_lib.baselines.cf import top_k
from ilm_lib.data import Dataset
from ilm_lib.data.enough import TooSmall, users_with_a_next_item
from ilm_lib.devices import device
from ilm_lib.metrics import dev_means
from ilm_lib.model.backbone import attention_implementation, read
from ilm_lib.model.kernels import rival_nll, rivals
from ilm_lib.model.packing import pack_rows, token_places
from ilm_lib.model.prompts import Batch
from ilm_lib.settings import SASRec
from ilm_lib.train.loop import drawn_batches, fit


def new_sasrec(num_items: int, params: SASRec) -> GPT2LMHeadModel:
    """The network with fresh weights. It reads `max_length` items; one place more, in training, is only predicted."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=num_items,
            n_positions=params.max_length + 1,
            n_embd=params.width,
            n_layer=params.layers,
            n_head=params.heads,
            embd_pdrop=params.dropout,
            attn_pdrop=params.dropout,
            resid_pdrop=params.dropout,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation=attention_implementation(),
        )
    )
    std = params.width**-0.5 if params.table_std is None else params.table_std
    with torch.no_grad():  # GPT-2's is for text: at .02 the first third of a run learns popularity and little else
        model.lm_head.weight.mul_(std / model.config.initializer_range)
    return model


class NextItems(nn.Module):
    """The network as a function from a batch to its loss: cross entropy over all items, or over `rivals`.

    Args:
        share: (I,) of each item in the interactions for training.
        negatives: items drawn besides the targets of a batch; None, or no fewer than there are: all items are ranked.
    """

    def __init__(self, llm: GPT2LMHeadModel, share: np.ndarray, negatives: int | None):
        super().__init__()
        self.llm, self.negatives = llm, negatives
        self.register_buffer("share", torch.from_numpy(share).float(), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        if self.negatives is None or self.negatives >= len(self.share):
            return read(self.llm, batch, use_cache=False).loss
        table, targets = self.llm.lm_head.weight, batch.targets
        hidden = self.llm.transformer(batch.input_ids, use_cache=False, **batch.reading(table.dtype)).last_hidden_state
        hidden = hidden.flatten(0, 1).index_select(0, batch.scored)  # (L, H)
        items, own, chance = rivals(targets, self.share, self.negatives)
        return rival_nll(hidden @ table[items].T - chance, own, chance)


def load_sasrec(folder: Path) -> GPT2LMHeadModel:
    """What `save_pretrained` left in a folder, for evaluation."""
    return GPT2LMHeadModel.from_pretrained(folder, attn_implementation=attention_implementation()).eval()


def train_sasrec(
    data: Dataset, params: SASRec, *, seed: int, state: Path | None = None
) -> tuple[GPT2LMHeadModel, pd.DataFrame]:
    """Train on the training sequences; the weights with the best NDCG@10 on the dev items are kept.

    On dev the history is excluded: a user does not have an item twice in the data sets at hand, so places that the
    history takes tell nothing of the next item.

    Args:
        state: file for resumable state.

    Returns:
        the model on the CPU and the log of `loop.fit`.

    Raises:
        TooSmall: no user has two training items, or none a dev target.
    """
    if not len(data.users_of("dev")):
        raise TooSmall(
            f"{data.name}: no user has a dev target to choose weights by. Move data.dev_from and data.test_from"
        )
    torch.manual_seed(seed)
    model = new_sasrec(data.num_items, params).to(device())
    users = np.sort(np.random.default_rng(0).permutation(data.users_of("dev"))[: params.dev_users])
    target = data.dev_targets()[users]
    counts = data.item_counts()

    def evaluate(reader: NextItems, step: int) -> dict[str, float]:
        return dev_means(sasrec_top_k(reader.llm, data, "dev", 10, exclude=True, users=users), target)

    log = fit(
        NextItems(model, counts / max(1, counts.sum()), params.negatives),
        list(model.parameters()),
        lambda m, b: {"loss": m(b.to(device()))},
        training_batches(data, params, seed),
        params,
        seed=seed,
        evaluate=evaluate,
        eval_every=params.eval_every,
        keep_best="dev NDCG@10",
        state=state,
        label="SASRec",
    )
    return model.cpu().eval(), log


def training_batches(data: Dataset, params: SASRec, seed: int) -> Callable[[int], Batch]:
    """Batches for `loop.fit`: distinct users, of each a random window of the training sequence.

    A window is as long as the network reads, plus the target of its last place; a short sequence is its own window.
    """
    trainable = users_with_a_next_item(data)

    def draw(rng: np.random.Generator, size: int) -> list[tuple[np.ndarray]]:
        windows = []
        for user in rng.choice(trainable, min(size, len(trainable)), replace=False):
            sequence = data.train_sequence(user)
            start = rng.integers(max(0, len(sequence) - params.max_length - 1) + 1)
            windows.append((sequence[start : start + params.max_length + 1],))
        return windows

    return drawn_batches(draw, lambda windows: pack(windows, params.max_length + 1)[0], params.batch_size, seed)


def pack(sequences: Sequence[np.ndarray], places: int) -> tuple[Batch, Tensor]:
    """Sequences as rows of a batch, several to a row where they are short; none sees another.

    Args:
        sequences: item rows.
        places: positions of the network. Rows are no wider: padding has positions too.

    Returns:
        the batch, scored wherever an item follows, and (P,) where in its flattened (B, T) each sequence ends.
    """
    length = np.array(list(map(len, sequences)))
    layout = pack_rows(length, lambda width: width <= places)
    inside, flat = token_places(length, layout)
    cells = np.zeros((3, layout.rows * layout.width), np.int64)
    cells[:, flat] = np.concatenate(sequences), np.repeat(layout.number, length), inside
    items, segment, position = torch.from_numpy(cells).view(3, -1, layout.width)
    scored, none = torch.from_numpy(np.sort(flat[inside > 0]) - 1), torch.zeros(0, dtype=torch.long)
    batch = Batch(
        items, segment, position, none, none, none, none, none, none, labels=items, scored=scored, packed=True
    )
    last = layout.row * layout.width + layout.offset + length - 1
    return batch, torch.from_numpy(last)


@torch.no_grad()
def sasrec_top_k(
    model: GPT2LMHeadModel,
    data: Dataset,
    split: Literal["dev", "test"],
    k: int,
    *,
    exclude: bool,
    users: np.ndarray,
    batch_size: int = 512,
) -> np.ndarray:
    """(U', k) item rows that come next in the histories of (U',) user rows, best first; -1 where none is left.

    Args:
        exclude: leave out the user's history, all of it and not just what the network reads.
    """
    top = []
    seen, model = data.seen_matrix(split)[users] if exclude else None, model.eval()
    for start in range(0, len(users), batch_size):
        rows = slice(start, start + batch_size)
        scores = model.lm_head(read_last(model, [data.history(u, split) for u in users[rows]])).float().cpu().numpy()
        top.append(top_k(scores, k, exclude=None if seen is None else seen[rows]))
    return np.concatenate(top)


@torch.no_grad()
def read_last(model: GPT2LMHeadModel, histories: Sequence[np.ndarray]) -> Tensor:
    """(B, width) the network's hidden states after B histories, item rows in time order."""
    places = model.config.n_positions
    batch, last = pack([items[1 - places :] for items in histories], places)
    batch = batch.to(model.device)
    hidden = model.transformer(batch.input_ids, use_cache=False, **batch.reading(model.dtype)).last_hidden_state
    return hidden.flatten(0, 1)[last.to(model.device)]
