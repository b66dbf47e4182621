"""Item-language model training (section 3.3): only the item encoder learns, the LLM stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ilm_lib.devices import device
from ilm_lib.files import write_json
from ilm_lib.model.backbone import weights_fingerprint
from ilm_lib.model.encoders import ItemEncoder, MLPEncoder, QFormerEncoder, encoder_config
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Batch
from ilm_lib.model.qformer import QFormer
from ilm_lib.sections import Score
from ilm_lib.settings import Phase2, QFormerParams
from ilm_lib.train.loop import LossFn, fit
from ilm_lib.train.state import STATE


def new_encoder(
    kind: Literal["none", "mlp", "qformer"],
    cf: Tensor,
    llm: PreTrainedModel,
    *,
    qformer: QFormerParams,
    mlp_tokens: int,
    seed: int,
    aligned: Mapping[str, Tensor] | None = None,
) -> ItemEncoder | None:
    """An item encoder before phase 2, calibrated to the size of the LLM's embeddings; None for "none".

    Args:
        kind: "none", "mlp" or "qformer".
        cf: (I + U, d) embeddings.
        llm: whose embeddings item tokens stand among.
        qformer: sizes of the query tower, for "qformer".
        mlp_tokens: tokens of an item, for "mlp".
        seed: of the fresh weights.
        aligned: weights of the query tower after phase 1; None starts from random ones.
    """
    if kind == "none":
        return None
    torch.manual_seed(seed)
    embedding = llm.get_input_embeddings()
    if kind == "mlp":
        encoder: ItemEncoder = MLPEncoder(cf.shape[1], embedding.embedding_dim, mlp_tokens)
    else:
        tower = QFormer(qformer, cf.shape[1])
        encoder = QFormerEncoder(tower, embedding.embedding_dim)
        if aligned is not None:
            tower.load_state_dict(aligned)
    encoder.calibrate(cf[:4096], float(embedding.weight.detach().float().pow(2).mean().sqrt()))
    return encoder


def train_phase2(
    folder: Path,
    ilm: ILM,
    batches: Callable[[int], Any],
    params: Phase2,
    *,
    seed: int,
    evaluate: Callable[[ILM, int], Mapping[str, float]] | None = None,
) -> None:
    """Train the encoder of `ilm` and leave weights, log and a proof that the LLM did not change.

    Args:
        evaluate: dev metrics by name; the checkpoint with the best "dev NDCG@10" is kept (section 4.4).

    Raises:
        RuntimeError: the SHA-256 of the LLM's weights differs before and after.
    """
    proof = train_beside_llm(
        folder, ilm, [ilm.encoder], answer_loss, batches, params, seed=seed, evaluate=evaluate, label="phase 2"
    )
    save_file({k: v.contiguous() for k, v in ilm.encoder.state_dict().items()}, folder / "encoder.safetensors")
    trained = sum(p.numel() for p in ilm.encoder.parameters())
    write_json(folder / "encoder.json", {"config": encoder_config(ilm.encoder), **proof, "trained": trained})


def answer_loss(ilm: ILM, batch: Batch) -> dict[str, Tensor]:
    """The LLM's loss on the answers of a batch (nats a token), as `loop.fit` takes it."""
    return {"loss": ilm(batch.to(device()), use_cache=False).loss}


def train_beside_llm(
    folder: Path,
    ilm: ILM,
    modules: Sequence[nn.Module],
    loss_fn: LossFn,
    batches: Callable[[int], Any],
    params: Phase2 | Score,
    *,
    seed: int,
    evaluate: Callable[[ILM, int], Mapping[str, float]] | None,
    label: str,
) -> dict[str, Any]:
    """Train modules of `ilm` as `fit` does, keep the weights with the best "dev NDCG@10", and leave log.parquet.

    Returns:
        the SHA-256 of the LLM's weights, `llm_before` and `llm_after`, and how many are `frozen`.

    Raises:
        RuntimeError: the LLM is none of the modules, and its weights changed.
    """
    before = weights_fingerprint(ilm.llm)
    ilm.to(device())
    log = fit(
        ilm,
        [p for module in modules for p in module.parameters() if p.requires_grad],
        loss_fn,
        batches,
        params,
        seed=seed,
        evaluate=evaluate,
        eval_every=params.eval_every,
        keep_best="dev NDCG@10" if evaluate else None,
        state=folder / STATE,
        label=label,
    )
    ilm.cpu()
    after = weights_fingerprint(ilm.llm)
    if before != after and ilm.llm not in modules:
        raise RuntimeError(f"the weights of the frozen LLM changed in {label}")
    log.to_parquet(folder / "log.parquet")
    return {"llm_before": before, "llm_after": after, "frozen": sum(p.numel() for p in ilm.llm.parameters())}
