"""Item-language model training (section 3.3): only the item encoder learns, the LLM stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ilm_lib.adapters import ItemEncoder, MLPEncoder, QFormerEncoder
from ilm_lib.artifacts import write_json
from ilm_lib.backbone import weights_fingerprint
from ilm_lib.model import ILM, encoder_config
from ilm_lib.params import METHODS, Params, Phase2
from ilm_lib.qformer import QFormer
from ilm_lib.training import device, fit


def new_encoder(params: Params, method: str, cf: Tensor, llm: PreTrainedModel, *, seed: int,
                aligned: tuple[Mapping[str, Tensor], int] | None = None) -> ItemEncoder | None:
    """The item encoder of a method before phase 2, calibrated to the size of the LLM's embeddings.

    Args:
        cf: (I + U, d) embeddings. aligned: weights and vocabulary size of a Q-Former after phase 1;
            None starts from random weights (ILM-rand).
    """
    kind, embedding = METHODS[method].encoder, llm.get_input_embeddings()
    if kind == "none":
        return None
    torch.manual_seed(seed)
    if kind == "mlp":
        encoder: ItemEncoder = MLPEncoder(cf.shape[1], embedding.embedding_dim, params.phase2.mlp_tokens)
    else:
        weights, vocab = aligned or (None, params.qformer.text_vocab)
        encoder = QFormerEncoder(QFormer(params.qformer, cf.shape[1], vocab), embedding.embedding_dim)
        if weights:
            encoder.qformer.load_state_dict(weights)
    encoder.calibrate(cf[:4096], float(embedding.weight.detach().float().pow(2).mean().sqrt()))
    return encoder


def train_phase2(folder: Path, ilm: ILM, batches: Callable[[int], Any], params: Phase2, *, seed: int,
                 evaluate: Callable[[ILM, int], Mapping[str, float]] | None = None) -> None:
    """Train the encoder of `ilm` and leave weights, history and a proof that the LLM did not change.

    Args:
        evaluate: dev metrics by name; the checkpoint with the best "dev NDCG@10" is kept (section 4.4).

    Raises:
        RuntimeError: the SHA-256 of the LLM's weights differs before and after.
    """
    before = weights_fingerprint(ilm.llm)
    ilm.to(device())
    history = fit(ilm, ilm.encoder.trained_parameters(), lambda m, b: {"loss": m(b.to(device()), use_cache=False).loss},
                  batches, params, seed=seed, evaluate=evaluate, eval_every=params.eval_every,
                  keep_best="dev NDCG@10" if evaluate else None, state=folder / "state.pt", label="phase 2")
    ilm.cpu()
    after = weights_fingerprint(ilm.llm)
    if before != after:
        raise RuntimeError("the weights of the frozen LLM changed in phase 2")
    save_file({k: v.contiguous() for k, v in ilm.encoder.state_dict().items()}, folder / "encoder.safetensors")
    history.to_parquet(folder / "history.parquet")
    write_json(folder / "encoder.json", {
        "config": encoder_config(ilm.encoder), "llm_before": before, "llm_after": after,
        "trained": sum(p.numel() for p in ilm.encoder.trained_parameters()),
        "frozen": sum(p.numel() for p in ilm.llm.parameters())})
