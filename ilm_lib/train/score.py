"""Training the score read-out: item encoder and head learn to rank the catalogue, the LLM stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from ilm_lib.devices import device
from ilm_lib.files import write_json
from ilm_lib.model.encoders import encoder_config
from ilm_lib.model.ilm import ILM
from ilm_lib.sections import Score
from ilm_lib.train.phase2 import answer_loss, train_beside_llm

if TYPE_CHECKING:
    from ilm_lib.tasks.scoring import Histories


def train_score(
    folder: Path,
    ilm: ILM,
    batches: Callable[[int], Histories],
    params: Score,
    *,
    seed: int,
    evaluate: Callable[[ILM, int], Mapping[str, float]] | None = None,
    answers_weight: float = 1.0,
) -> None:
    """Train encoder and head of `ilm` and leave weights, log and a proof that the LLM did not change.

    Args:
        evaluate: dev metrics by name; the weights with the best "dev NDCG@10" are kept.
        answers_weight: of the loss on the answers of a batch, where it has some.

    Raises:
        RuntimeError: the SHA-256 of the LLM's weights differs before and after.
    """
    trained = {"encoder": ilm.encoder, "head": ilm.head} | ({"llm": ilm.llm} if params.llm == "trained" else {})
    proof = train_beside_llm(
        folder,
        ilm,
        list(trained.values()),
        lambda m, b: losses(m, b.to(device()), params, answers_weight),
        batches,
        params,
        seed=seed,
        evaluate=evaluate,
        label="score read-out",
    )
    weights = {f"{name}.{k}": v.clone() for name, module in trained.items() for k, v in module.state_dict().items()}
    save_file(weights, folder / "score.safetensors")
    write_json(
        folder / "score.json",
        {
            "encoder": encoder_config(ilm.encoder),
            "head": ilm.head.config(),
            "item_positions": ilm.prompts.item_positions,
            "llm": params.llm,
            "seed": seed,
            "trained": {name: sum(p.numel() for p in module.parameters()) for name, module in trained.items()},
            **proof,
        },
    )


def losses(ilm: ILM, histories: Histories, params: Score, answers_weight: float) -> dict[str, Tensor]:
    """The ranking's loss, and beside it the weighted one of the answers (nats a token), as `loop.fit` takes them."""
    found = {"loss": score_loss(ilm, histories, params)}
    if histories.answers is not None:
        found["answers"] = answers_weight * answer_loss(ilm, histories.answers)["loss"]
    return found


def score_loss(ilm: ILM, histories: Histories, params: Score) -> Tensor:
    """Mean negative log likelihood (nats) of what comes next, over the places that are asked for."""
    ilm.head.hide()
    asked = histories.targets >= 0
    states = ilm.slot_states(histories.batch, histories.guests)[asked]
    negatives = params.negatives if ilm.num_items > params.sampled_above else None
    if histories.banned is None:
        return ilm.head.loss(states, ilm.cf[: ilm.num_items], histories.targets[asked], negatives)
    banned = [rows for rows, counts in zip(histories.banned, asked.tolist()) if counts]
    return ilm.head.loss(states, ilm.cf[: ilm.num_items], histories.targets[asked], banned=banned)
