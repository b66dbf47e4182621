"""Training what a vector asks for by itself (`model.likeness`), before an LLM reads anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ilm_lib.model.likeness import Likeness
from ilm_lib.sections import Optim
from ilm_lib.tasks.conversation import Question, recall_metrics, target_ranks
from ilm_lib.train.loop import fit

#: Chosen by five-fold cross-validation on the 1,000 dialogues of ReDial's valid.
SETTINGS = Optim(steps=300, batch_size=64, lr=2e-3, weight_decay=0.1, optimizer="adamw", precision="float32")

Asks = tuple[Sequence[Question], Tensor]


def train_likeness(
    likeness: Likeness,
    items: Tensor,
    bias: Tensor,
    train: Asks,
    dev: Asks,
    *,
    seed: int,
    state: Path,
    optim: Optim = SETTINGS,
) -> None:
    """Train in place on questions and the vectors (Q, F) of who asks; the weights with the best MRR on dev are kept.

    Args:
        items, bias: (I, F) vectors of all items and (I,) scores that each has beforehand.
        state: file for resumable state.
    """
    torch.manual_seed(seed)
    asked, vectors = train
    target = torch.tensor([question.target for question in asked])
    an_epoch = -(-len(asked) // optim.batch_size)

    def batch(number: int) -> np.ndarray:
        epoch, part = divmod(number, an_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(asked))
        return order[part * optim.batch_size : (part + 1) * optim.batch_size]

    def scores(own: Tensor) -> Tensor:
        return torch.addmm(bias, likeness.queries(own), likeness.rows(items).T)

    def loss(model: nn.Module, rows: np.ndarray) -> dict[str, Tensor]:
        found = scores(vectors[rows])
        for at, row in enumerate(rows):
            found[at, list(asked[row].named)] = -torch.inf
        return {"loss": nn.functional.cross_entropy(found, target[rows])}

    @torch.no_grad()
    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        found = recall_metrics(target_ranks(scores(dev[1]).numpy(), dev[0]))
        return {f"dev {name}": float(values.mean()) for name, values in found.items()}

    fit(
        likeness,
        list(likeness.parameters()),
        loss,
        batch,
        optim,
        seed=seed,
        evaluate=evaluate,
        eval_every=an_epoch,
        keep_best="dev MRR",
        state=state,
        label="likeness",
    )
