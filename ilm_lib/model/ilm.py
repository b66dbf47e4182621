"""The Item-Language Model: an item encoder in front of a frozen LLM (section 3.3, Figure 2d).

ilm = ILM.from_pretrained("runs/toy/models/ilm-seed0")
ilm.generate(["Describe the film ", Item(17), " in two sentences."])
ilm.recommend(user=User(5), history=[Item(3), Item(8)], k=10)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from ilm_lib.files import open_to_others, replace_folder
from ilm_lib.model.backbone import context_length, freeze, load_backbone, read, weights_fingerprint
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.decode import Beams, beam_search
from ilm_lib.model.encoders import ItemEncoder, TokenCache, build_encoder, encoder_config
from ilm_lib.model.kernels import Trie, interleave
from ilm_lib.model.masks import takes_4d_mask, takes_positions
from ilm_lib.model.model_card import model_card
from ilm_lib.model.prompts import Batch, Item, Prompt, PromptEncoder, User
from ilm_lib.model.readers import Prefill
from ilm_lib.settings import ItemPositions

MAX_KEPT = 1 << 29  # numbers in the table of item tokens kept for inference: 2 GiB in float32


@dataclass(frozen=True)
class Recommendation:
    """An item of `ILM.recommend`: its row, the id and title of one's own data, and how probable it is."""

    item: Item
    id: str
    title: str
    log_probability: float = field(metadata={"unit": "nats"})


class ILM(nn.Module):
    """Item encoder + frozen LLM.

    Args:
        llm: a causal LM; frozen here.
        tokenizer: its tokenizer.
        encoder: maps CF embeddings to item tokens; None is the bare LLM (OpenP5-R).
        cf: (I + U, d) embeddings of items, then users.
        num_items: I.
        catalogue: needed by `recommend` alone.
        item_positions: as in `PromptEncoder`.
    """

    llm: PreTrainedModel
    encoder: ItemEncoder | None
    cf: Tensor

    def __init__(
        self,
        llm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoder: ItemEncoder | None,
        cf: Tensor,
        num_items: int,
        catalogue: Catalogue | None = None,
        item_positions: ItemPositions = "shared",
    ):
        super().__init__()
        self.llm, self.encoder, self.tokenizer, self.catalogue = freeze(llm), encoder, tokenizer, catalogue
        self.num_items = num_items
        self.register_buffer("cf", cf, persistent=False)
        self.prompts = PromptEncoder(
            tokenizer,
            num_items,
            encoder.num_query_tokens if encoder else 0,
            item_positions,
            packs=partial(takes_4d_mask, llm),
        )
        self._trie: Trie | None = None
        self._token_cache = TokenCache(num_items)

    @property
    def device(self) -> torch.device:
        return self.llm.device

    def train(self, mode: bool = True) -> ILM:
        super().train(mode)
        self.llm.eval()  # frozen: no dropout, whatever the mode of the encoder
        self._token_cache.clear()
        return self

    def embed(self, batch: Batch) -> Tensor:
        """(B, T, H) input embeddings: text tokens, with item tokens in the slots.

        Every distinct item and user of the batch is encoded once, however often it occurs.
        """
        text = self.llm.get_input_embeddings()(batch.input_ids)
        if self.encoder is None or not len(batch.entities):
            return text
        return interleave(text, self.tokens(batch.entities), batch.slot_row, batch.slot_start, batch.slot_entity)

    def tokens(self, entities: Tensor) -> Tensor:
        """(E, N, H) tokens of distinct entities (E,), items before users.

        Without gradients items are encoded once (see `TokenCache`), unless their table would be too large.
        """
        encoder = self.encoder
        assert encoder is not None, "the bare LLM has no item tokens"
        size = self.num_items * encoder.num_query_tokens * self.llm.get_input_embeddings().embedding_dim
        if torch.is_grad_enabled() or size > MAX_KEPT:
            return encoder(self.cf[entities])
        return self._token_cache.look_up(encoder, self.cf, entities)

    @torch.no_grad()
    def item_tokens(self) -> Tensor:
        """(I, N, H) what the LLM reads in the place of every item."""
        return self.tokens(torch.arange(self.num_items, device=self.device))

    def forward(self, batch: Batch, **kwargs: Any) -> CausalLMOutputWithPast:
        """The LLM's output for encoded prompts (see `backbone.read`: `loss` and the logits of labelled tokens alone
        where the batch has labels).

        A batch without slots goes in as token ids, so its logits are the bare LLM's, bit for bit
        (appendix A of the paper).
        """
        return read(self.llm, batch, self.embed(batch) if len(batch.entities) else None, **kwargs)

    @torch.no_grad()
    def token_nll(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Per row: summed negative log likelihood (nats) and number of labelled tokens, both (B,)."""
        assert batch.labels is not None and batch.scored is not None, "a batch made without answers has no labels"
        logits = self(batch, use_cache=False).logits.float()
        nll = nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        row, zero = batch.scored // batch.labels.shape[1], nll.new_zeros(len(batch.labels))
        return zero.index_add(0, row, nll), (batch.labels[:, 1:] != -100).sum(1)

    def encode(self, prompts: Sequence[Prompt], **kwargs: Any) -> Batch:
        """Prompts to a batch on the model's device; `kwargs` as in `PromptEncoder.batch`."""
        return self.prompts.batch(prompts, max_length=context_length(self.llm), **kwargs).to(self.device)

    @torch.no_grad()
    def generate(
        self, prompt: Prompt | Sequence[Prompt], *, max_new_tokens: int = 64, **kwargs: Any
    ) -> str | list[str]:
        """Continue an interleaved prompt, or a list of them.

        Args:
            prompt: a list of str, Item and User; a list of such lists for a batch.
            kwargs: for transformers' `generate`, e.g. num_beams. Decoding is greedy unless asked
                otherwise, whatever the checkpoint's own generation config says.

        Example:
            >>> ilm.generate(["Describe the film ", Item(17), " in two sentences."])
        """
        single = not prompt or isinstance(prompt[0], (str, Item, User))
        batch = self.encode(cast(Sequence[Prompt], [prompt] if single else prompt), side="left")
        inputs = {"inputs_embeds": self.embed(batch)} if len(batch.entities) else {"input_ids": batch.input_ids}
        if len(batch.entities) and takes_positions(self.llm):
            inputs["position_ids"] = batch.position_ids
        out = self.llm.generate(
            **inputs,
            attention_mask=batch.attention_mask,
            pad_token_id=self.prompts.pad_id,
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, **kwargs},
        )
        new = out if len(batch.entities) else out[:, batch.input_ids.shape[1] :]
        texts = [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return texts[0] if single else texts

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt]) -> Prefill:
        """Read prompts once; `beam_search` may then run several times over the result."""
        batch = self.encode(prompts, side="left")
        out = self(batch, use_cache=True, logits_to_keep=1)
        return Prefill(out.past_key_values, out.logits[:, -1], batch.attention_mask, batch.position_ids[:, -1:] + 1)

    @property
    def trie(self) -> Trie:
        """Trie of all items' answers (built once)."""
        if self._trie is None:
            c = self._names()
            answer = lambda row: c.indexing.answer(c.target, row)
            self._trie = Trie.build([self.prompts.answer_ids(answer(i)) for i in range(self.num_items)], self.device)
        return self._trie

    @property
    def answer_length(self) -> int:
        """Tokens of the longest item answer, end-of-sequence included."""
        return self.trie.path.shape[1]

    def search(self, prefill: Prefill, beams: int, banned: Tensor | None = None, constrained: bool = True) -> Beams:
        """Beam search for items; constrained to valid ids, or free (one more token, for slips)."""
        return beam_search(
            self.llm,
            prefill,
            beams=beams,
            eos_id=self.tokenizer.eos_token_id,
            banned=banned,
            trie=self.trie if constrained else None,
            max_new_tokens=self.answer_length + (not constrained),
        )

    def recommend(
        self, user: User | str, history: Sequence[Item | str] = (), k: int = 10, *, exclude_history: bool = True
    ) -> list[Recommendation]:
        """The k most probable next items, best first.

        Args:
            user: a User, or the id of one (see `user`).
            history: Items, or titles or ids (see `item`), in time order; empty asks the straightforward task
                (the user embedding alone).
            exclude_history: never recommend an item of `history`.

        Example:
            >>> ilm.recommend(user=User(5), history=[Item(3), Item(8)], k=10)
            >>> ilm.recommend(user="alice", history=["Toy Story", "Heat (1995)"])
        """
        c = self._names()
        user = c.user(user) if isinstance(user, str) else user
        rows = [(c.item(item) if isinstance(item, str) else item).row for item in history]
        prompt = c.indexing.render(c.sequential if rows else c.straightforward, user.row, rows)
        banned = torch.tensor([rows], device=self.device) if rows and exclude_history else None
        beams = self.search(self.prefill([prompt]), max(k, 10), banned)
        assert beams.items is not None  # they walked the trie of items
        return [
            Recommendation(Item(row), c.id(Item(row)), c.title(Item(row)), score)
            for row, score in zip(beams.items[0, :k].tolist(), beams.scores[0, :k].tolist())
            if row >= 0
        ]

    def item(self, name: str) -> Item:
        """The item of a title or an original id, e.g. `ilm.item("Toy Story")` (see `Catalogue.item`)."""
        return self._names().item(name)

    def user(self, name: str) -> User:
        """The user of an original id, e.g. `ilm.user("alice")`."""
        return self._names().user(name)

    def title(self, item: Item) -> str:
        """The title of an item, or its original id where it has none."""
        return self._names().title(item)

    def id(self, entity: Item | User) -> str:
        """The original id of an item or of a user."""
        return self._names().id(entity)

    def _names(self) -> Catalogue:
        if self.catalogue is None:
            raise ValueError("this model has no catalogue: pass one to ILM(..., catalogue=...)")
        return self.catalogue

    def save_pretrained(
        self, folder: str | Path, *, backbone: str | None = None, metrics: Mapping[str, float] | None = None
    ) -> Path:
        """Save everything `from_pretrained` needs, as safetensors and JSON, and a model card.

        Args:
            backbone: name of the LLM, to store a reference and its fingerprint in place of a copy.
            metrics: what was measured, for the model card.
        """
        folder = Path(folder)
        temporary = folder.with_name(folder.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        weights = {"cf": self.cf.contiguous()}
        if self.encoder is not None:
            weights |= {f"encoder.{k}": v.contiguous() for k, v in self.encoder.state_dict().items()}
        save_file(weights, temporary / "ilm.safetensors")
        if backbone is None:
            self.llm.save_pretrained(temporary / "backbone")
            self.tokenizer.save_pretrained(temporary / "backbone")
        config = {
            "encoder": encoder_config(self.encoder),
            "num_items": self.num_items,
            "backbone": backbone,
            "item_positions": self.prompts.item_positions,
            "backbone_fingerprint": weights_fingerprint(self.llm),
            "catalogue": self.catalogue.to_json() if self.catalogue else None,
        }
        (temporary / "ilm.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
        card = model_card(config, tuple(self.cf.shape), self.llm, metrics)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        open_to_others(temporary)
        replace_folder(temporary, folder)
        return folder

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> ILM:
        """Load a saved model; `kwargs` go to `load_backbone` (dtype, device_map).

        Raises:
            FileNotFoundError: no model in the folder.
            ValueError: the backbone's weights are not those the encoder was trained with.
        """
        folder = Path(folder)
        if not (folder / "ilm.json").is_file():
            raise FileNotFoundError(
                f"no model in {folder}: ilm.json is missing. `make study` writes runs/toy/models/ilm-seed0"
            )
        config = json.loads((folder / "ilm.json").read_text(encoding="utf-8"))
        llm, tokenizer = load_backbone(config["backbone"] or folder / "backbone", **kwargs)
        if not kwargs and weights_fingerprint(llm) != config["backbone_fingerprint"]:
            raise ValueError(
                f"the weights of backbone {config['backbone'] or 'backbone/'} are not those {folder} "
                "was trained with: get the same revision, or train again"
            )
        weights = load_file(folder / "ilm.safetensors")
        cf = weights.pop("cf")
        encoder = build_encoder(config["encoder"])
        if encoder is not None:
            encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items()})
        catalogue = Catalogue.from_json(config["catalogue"]) if config["catalogue"] else None
        return (
            cls(llm, tokenizer, encoder, cf, config["num_items"], catalogue, config["item_positions"])
            .to(llm.device)
            .eval()
        )
