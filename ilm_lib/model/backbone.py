"""The LLM under the item encoder: any Hugging Face causal LM, or our own decoder from scratch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from ilm_lib import processes
from ilm_lib.devices import device
from ilm_lib.model.kernels import mean_nll
from ilm_lib.model.prompts import Batch
from ilm_lib.settings import Backbone

# Case, accents, blanks, digits, signs and scripts: what normalizers and word splitters differ in.
_PROBES = ("Toy item_1234 , user_17 ?", "  Don't  stop:\tÉté_2024!\n", "\u653b\u6bbb \ufb01ne ½ 👩‍👧 e\u0301")


def new_backbone(params: Backbone, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedModel:
    """Our decoder with fresh weights: a Llama of the given size over the given tokenizer.

    The paper's OpenP5 backbone is "an 8 layer transformer decoder, 128M params" (Table 9).
    """
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=params.width,
            num_hidden_layers=params.layers,
            num_attention_heads=params.heads,
            intermediate_size=params.inner or 2 * params.width,
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            attn_implementation=attention_implementation(),
        )
    )


def attention_implementation() -> str:
    """Fused attention on a GPU; on a CPU its backward pass is the slow one (see `kernels.attention`)."""
    return "sdpa" if device() == "cuda" else "eager"


def attend_fused(llm: PreTrainedModel) -> None:
    """Switch to PyTorch's fused attention, on a CPU too, where the model can: to read, or to learn of long prompts.

    Forward and backward through SmolLM2 it is 1.2 times as fast at 400 tokens, 2.4 times at 800.
    """
    if getattr(llm, "_supports_sdpa", False) and llm._can_set_attn_implementation():
        llm.set_attn_implementation("sdpa")


def load_backbone(
    name: str | Path, *, dtype: torch.dtype | str = "auto", device_map: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM and its tokenizer, by hub name or folder. Safetensors only, and no code that comes with them.

    Args:
        dtype: of the weights; "auto" keeps the checkpoint's.
        device_map: as in transformers, e.g. "auto".
    """
    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=dtype,
        device_map=device_map,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation=attention_implementation(),
    )
    # Some architectures' own tokenizer class replaces the saved pre-tokenizer: a generic one stays generic.
    generic = get_tokenizer_config(name).get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")
    tokenizer = (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(name, trust_remote_code=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


class LanguageModel(nn.Module):
    """A causal LM as a function from a batch to its loss."""

    def __init__(self, llm: PreTrainedModel):
        super().__init__()
        self.llm = llm

    def forward(self, batch: Batch) -> Tensor:
        return read(self.llm, batch, use_cache=False).loss


def read(llm: PreTrainedModel, batch: Batch, embeddings: Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
    """The LLM's output for a batch; `kwargs` go to the LLM.

    Where the batch has labels, `logits` are (L, V) at the places of `batch.scored` alone and `loss` is their mean
    negative log likelihood (nats). The other hidden states are left out before the output layer: with a large
    vocabulary it is most of the memory and much of the work.

    Args:
        embeddings: (B, T, H) in place of those of `batch.input_ids`.
    """
    inputs = _inputs(llm, batch, embeddings)
    if batch.scored is None:
        return llm(**inputs, **kwargs)
    scored = batch.scored

    def leave_out(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].flatten(0, 1).index_select(0, scored.to(args[0].device))[None], *args[1:])

    hook = llm.get_output_embeddings().register_forward_pre_hook(leave_out)
    try:
        out = llm(**inputs, **kwargs)
    finally:
        hook.remove()
    out.logits = out.logits[0]
    out.loss = mean_nll(out.logits, batch.targets.to(out.logits.device))
    return out


def _inputs(llm: PreTrainedModel, batch: Batch, embeddings: Tensor | None) -> dict[str, Any]:
    """What the LLM reads of a batch; what all prompts begin with is read once, for all rows."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
    inputs |= batch.reading(llm.get_input_embeddings().weight.dtype)
    if batch.start is not None:
        learns = torch.is_grad_enabled() and any(p.requires_grad for p in llm.parameters())
        with torch.set_grad_enabled(learns):  # frozen: nothing of it depends on an item
            inputs["past_key_values"] = llm(input_ids=batch.start[None], use_cache=True).past_key_values
        inputs["past_key_values"].batch_repeat_interleave(len(batch.input_ids))
    return inputs


def hidden_states(
    llm: PreTrainedModel, batch: Batch, embeddings: Tensor | None = None, *, every_layer: bool = False
) -> Tensor:
    """(S, H) what the LLM's output layer would read once each slot of a batch has been read (`Batch.slot_read`).

    The output layer is left out. Arguments as in `read`.

    Args:
        every_layer: before it the input embeddings and what each layer but the last leaves, side by side:
            (S, (layers + 1) H).
    """
    layers = layer_states(llm, every_layer, **_inputs(llm, batch, embeddings), use_cache=False)
    return torch.cat([state.flatten(0, 1)[batch.slot_read.to(state.device)].to(layers[-1]) for state in layers], -1)


def layer_states(llm: PreTrainedModel, every_layer: bool = False, **inputs: Any) -> list[Tensor]:
    """(B, T, H) of the input embeddings, of what each layer but the last leaves, and of what the output layer would
    read, or the last of these alone; the output layer is left out.

    Args:
        inputs: for the LLM.
    """
    states: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states.append(args[0])
        return (args[0][:, :0], *args[1:])

    hook = llm.get_output_embeddings().register_forward_pre_hook(take)
    try:
        out = llm(**inputs, output_hidden_states=every_layer)
    finally:
        hook.remove()
    return [*(out.hidden_states[:-1] if every_layer else ()), *states]


def last_logits(llm: PreTrainedModel, **inputs: Any) -> Tensor:
    """(V,) float32 logits of what comes after the last place of one prompt; `inputs` as in `layer_states`."""

    def leave_out(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Copied: PyTorch folds no slice of a longer tensor, and would lay out frozen weights anew for it each time.
        return (args[0][:, -1:].clone(memory_format=torch.contiguous_format), *args[1:])

    hook = llm.get_output_embeddings().register_forward_pre_hook(leave_out)
    try:
        return llm(**inputs).logits[0, -1].float()
    finally:
        hook.remove()


def freeze(model: nn.Module) -> nn.Module:
    """No gradients for the weights, no dropout; gradients still flow through to the inputs."""
    return model.requires_grad_(False).eval()


def layers_of(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the list of modules that holds most of the weights."""
    size = lambda module: sum(p.numel() for p in module.parameters())
    return max((m for m in llm.modules() if isinstance(m, nn.ModuleList)), key=size)


def recompute_layers(llm: PreTrainedModel) -> PreTrainedModel:
    """Keep of every layer its input alone where gradients go through a frozen LLM, and read it again on the way back.

    A step takes a third more time, and memory no longer grows with what a layer computes (arXiv 1604.06174).
    Transformers has a switch of its own, which does nothing in an LLM that is not training, as a frozen one is not.
    """

    def again(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            caches = [part for part in (*args, *kwargs.values()) if isinstance(part, Cache)]
            cache = vars(caches[0].layers[number]) if caches else {}
            before = dict(cache)

            def once(*args: Any, **kwargs: Any) -> Any:
                cache.update(before)  # reading adds to what was read: each time to the same
                return forward(*args, **kwargs)

            return checkpoint(once, *args, use_reentrant=False, **kwargs)

        return read

    for number, layer in enumerate(layers_of(llm)):
        layer.forward = again(number, layer.forward)
    return llm


def shard_layers(llm: PreTrainedModel) -> PreTrainedModel:
    """Spread the layers of a frozen LLM over all processes (`ilm_lib.processes`, FSDP2): it may be too large for one.

    Each process keeps its part of every layer, and has the whole of one while it reads through it. All processes must
    then read equally often, and each ranks for all users. Alone, nothing is changed.
    """
    if processes.count() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        processes.keep_in_step()
        mesh = init_device_mesh(device(), (processes.count(),))
        for layer in layers_of(llm):
            fully_shard(layer, mesh=mesh)
    return llm


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all weights: equal if and only if nothing changed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if hasattr(tensor, "full_tensor"):  # of `shard_layers`
            tensor = tensor.full_tensor()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what a tokenizer does: its tokens' ids, merges, marks of a text's ends, ids of some texts."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges", []) if backend is not None else []
    does = [
        sorted(tokenizer.get_vocab().items()),
        [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
        [tokenizer.bos_token_id, tokenizer.eos_token_id],
        tokenizer(list(_PROBES), add_special_tokens=False)["input_ids"],
    ]
    return hashlib.sha256(json.dumps(does).encode()).hexdigest()


def context_length(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_position_embeddings", None) or 1 << 30
