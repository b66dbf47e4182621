"""Training the score read-out: item encoder and head learn to rank the catalogue, the LLM stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

from ilm_lib.devices import device
from ilm_lib.files import write_json
from ilm_lib.model.backbone import weights_fingerprint
from ilm_lib.model.encoders import encoder_config
from ilm_lib.model.ilm import ILM
from ilm_lib.sections import Score
from ilm_lib.train.loop import fit
from ilm_lib.train.state import STATE

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
) -> None:
    """Train encoder and head of `ilm` and leave weights, log and a proof that the LLM did not change.

    Args:
        evaluate: dev metrics by name; the weights with the best "dev NDCG@10" are kept.

    Raises:
        RuntimeError: the SHA-256 of the LLM's weights differs before and after.
    """
    before = weights_fingerprint(ilm.llm)
    ilm.to(device())
    trained = {"encoder": ilm.encoder, "head": ilm.head} | ({"llm": ilm.llm} if params.llm == "trained" else {})
    log = fit(
        ilm,
        [p for module in trained.values() for p in module.parameters() if p.requires_grad],
        lambda m, b: {"loss": score_loss(m, b.to(device()), params)},
        batches,
        params,
        seed=seed,
        evaluate=evaluate,
        eval_every=params.eval_every,
        keep_best="dev NDCG@10" if evaluate else None,
        state=folder / STATE,
        label="score read-out",
    )
    ilm.cpu()
    after = weights_fingerprint(ilm.llm)
    if before != after and params.llm != "trained":
        raise RuntimeError("the weights of the frozen LLM changed in training the score read-out")
    weights = {f"{name}.{k}": v.clone() for name, module in trained.items() for k, v in module.state_dict().items()}
    save_file(weights, folder / "score.safetensors")
    log.to_parquet(folder / "log.parquet")
    write_json(
        folder / "score.json",
        {
            "encoder": encoder_config(ilm.encoder),
            "head": ilm.head.config(),
            "item_positions": ilm.prompts.item_positions,
            "llm": params.llm,
            "seed": seed,
            "llm_before": before,
            "llm_after": after,
            "trained": {name: sum(p.numel() for p in module.parameters()) for name, module in trained.items()},
            "frozen": sum(p.numel() for p in ilm.llm.parameters()),
        },
    )


def score_loss(ilm: ILM, histories: Histories, params: Score) -> Tensor:
    """Mean negative log likelihood (nats) of what comes next, over the places that are asked for."""
    asked = histories.targets >= 0
    states = ilm.slot_states(histories.batch, histories.guests)[asked]
    negatives = params.negatives if ilm.num_items > params.sampled_above else None
    return ilm.head.loss(states, ilm.cf[: ilm.num_items], histories.targets[asked], negatives)
