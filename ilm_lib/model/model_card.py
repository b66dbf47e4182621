"""The README.md of a saved model: what it is, what it was made of, how to use it; in the form that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from transformers import PreTrainedModel

PAPER = "https://arxiv.org/abs/2406.02844"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_BODY = """
# {title}

An Item-Language Model ([paper]({paper})): a frozen language model that reads items and users of a recommender system
as a few tokens, made from their collaborative filtering embeddings.

| part | what it is |
| --- | --- |
| item encoder | {encoder} |
| embeddings | {items:,} items and {users} users, {dim} numbers each |
| language model | {llm}, frozen |
| read-out | {readout} |

## Use

```python
from ilm_lib import ILM, Item, User

ilm = ILM.from_pretrained("this folder")  # from a hub: huggingface_hub.snapshot_download(name) returns the folder
{example}
```

Items and users are counted from 0, in the order of the data that the model was trained on.

## What it was trained on

{data}
{measured}
## Before you share it

{privacy}
- `ilm.json` holds the titles of the items.
- The code is Apache-2.0. These weights carry the terms of the data and of the language model they come from.
- It knows these items and no others, and what it writes of them may be wrong.
"""
_WITH_USERS = """\
- **Vectors of all {users:,} users are inside** (`cf` in `ilm.safetensors`, rows {items} and on). They were computed
  from what each user did, and tell something of it. Where users are people, ask them first, or save the model with
  `users=False`."""
_WITHOUT_USERS = """\
- **No user's vector or id is inside**: it was saved with `users=False`. Item vectors, item encoder and language
  model were still made from what users did; a language model trained on prompts about users may remember some of it."""
_LEARNED = " The item encoder{} learned; the weights of the language model did not change."
_USER_TOKENS = """
- **{count:,} tokens of the language model stand for one user each**, and what it learned of them is in its weights."""


def model_card(
    config: Mapping[str, Any],
    dim: int,
    llm: PreTrainedModel,
    metrics: Mapping[str, float] | None = None,
    user_tokens: int = 0,
) -> str:
    """A model card in Markdown with YAML front matter.

    Args:
        config: what `ilm.json` of the model holds.
        dim: d, numbers in an embedding.
        llm: the frozen language model.
        metrics: what was measured, e.g. {"dev HR@10": 0.12}; left out where nothing was.
        user_tokens: tokens of the language model that each name a user.
    """
    catalogue, kind = config["catalogue"], (config["encoder"] or {}).get("kind")
    name, backbone, items = catalogue["dataset"] if catalogue else None, config["backbone"], config["num_items"]
    users = config["num_users"]
    head: dict[str, Any] = {
        "license": "other",
        "license_name": "terms-of-the-data-and-the-language-model",
        "library_name": "ilm_lib",
        "pipeline_tag": "text-generation",
        "tags": ["recommendation", "item-language-model", "collaborative-filtering", *([kind] if kind else [])],
    }
    if backbone and _HUB_NAME.fullmatch(backbone):  # a folder of this machine means nothing elsewhere
        head["base_model"] = backbone
    if name and _HUB_NAME.fullmatch(name):
        head["datasets"] = [name]
    if metrics:
        head["metrics"] = list(metrics)
    size = f"{type(llm).__name__}, {llm.num_parameters():,} parameters"
    title = f"Item-Language Model of {name}" if name else "Item-Language Model"
    body = _BODY.format(
        title=title,
        paper=PAPER,
        encoder=_encoder(config["encoder"]),
        items=items,
        users=f"{users:,}" if users else "no",
        dim=dim,
        readout=_readout(config.get("head"), config.get("factors")),
        llm=f"[{backbone}](https://huggingface.co/{backbone}), {size}" if "base_model" in head else size,
        example=_example(items, users, bool(catalogue), reads_items=kind is not None),
        data=(f"Interactions of {name}." if name else "Interactions of a data set that has no name here.")
        + (_LEARNED.format(" and the read-out" if config.get("head") else "") if kind else ""),
        measured=_measured(metrics),
        privacy=(_WITH_USERS if users else _WITHOUT_USERS).format(items=items, users=users)
        + (_USER_TOKENS.format(count=user_tokens) if user_tokens else ""),
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def _encoder(config: Mapping[str, Any] | None) -> str:
    if config is None:
        return "none: the language model alone"
    if config["kind"] == "mlp":
        return f"two-layer network, {config['num_tokens']} tokens an item"
    q = config["params"]
    return f"Q-Former, {q['num_query_tokens']} tokens an item, {q['layers']} layers of width {q['width']}"


def _readout(head: Mapping[str, Any] | None, factors: Mapping[str, Any] | None) -> str:
    if head is None:
        return "beam: the language model writes the names of items"
    beside = f", with the user's recent factors beside it, weight {factors['weight']:g}" if factors else ""
    return f"score: its hidden state is held against a table of all items, {head['dim']} numbers each{beside}"


def _example(items: int, users: int, recommends: bool, *, reads_items: bool) -> str:
    film = f"Item({min(17, items - 1)})" if reads_items else '"Heat (1995)"'
    lines = [f'ilm.generate(["Describe the film ", {film}, " in two sentences."])']
    if recommends:
        lines.insert(0, f"ilm.recommend({'user=User(0), ' if users else ''}history=[Item(0), Item(1)], k=10)")
    return "\n".join(lines)


def _measured(metrics: Mapping[str, float] | None) -> str:
    if not metrics:
        return ""
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    return f"\n| measured | value |\n| --- | --- |\n{rows}\n"
