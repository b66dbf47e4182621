"""`ILM.generate`: the frozen LLM continues interleaved prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ilm_lib.model import door
from ilm_lib.model.backbone import context_length
from ilm_lib.model.masks import takes_positions
from ilm_lib.model.prompts import Prompt

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM


@torch.no_grad()
def generate(ilm: ILM, prompts: Sequence[Prompt], max_new_tokens: int, kwargs: Mapping[str, Any]) -> list[str]:
    """One text for each prompt; arguments and errors as those of `ILM.generate`."""
    door.fit(prompts, ilm.num_items, ilm.num_users, encoder=ilm.encoder is not None)
    max_new_tokens = door.whole_number(max_new_tokens, "max_new_tokens")
    options = door.generation(ilm.llm, kwargs)
    batch = ilm.encode(prompts, side="left")
    door.room(context_length(ilm.llm), int(batch.position_ids.max()) + 1, max_new_tokens)
    inputs = {"inputs_embeds": ilm.embed(batch)} if len(batch.entities) else {"input_ids": batch.input_ids}
    if len(batch.entities) and takes_positions(ilm.llm):
        inputs["position_ids"] = batch.position_ids
    out = ilm.llm.generate(
        **inputs,
        attention_mask=batch.attention_mask,
        pad_token_id=ilm.prompts.pad_id,
        max_new_tokens=max_new_tokens,
        **options,
    )
    new = out if len(batch.entities) else out[:, batch.input_ids.shape[1] :]
    return [t.strip() for t in ilm.tokenizer.batch_decode(new, skip_special_tokens=True)]
