"""The Item-Language Model: an item encoder in front of a frozen LLM (section 3.3, Figure 2d).

ilm = ILM.from_pretrained("runs/toy/models/ilm-seed0")
ilm.generate(["Describe the film ", Item(17), " in two sentences."])
ilm.recommend(user=User(5), history=[Item(3), Item(8)], k=10)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from ilm_lib.model import door
from ilm_lib.model.backbone import context_length, freeze, read
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.decode import Beams, beam_search
from ilm_lib.model.encoders import ItemEncoder, TokenCache
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.folder import read_folder, write_folder
from ilm_lib.model.kernels import Trie, interleave
from ilm_lib.model.masks import takes_4d_mask, takes_positions
from ilm_lib.model.prompts import Batch, Item, Prompt, PromptEncoder, User
from ilm_lib.model.readers import Prefill
from ilm_lib.model.refusals import TooLong, WrongValue
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
        fold_in: how `recommend` gets the vector of a user whom `cf` does not hold; None: it cannot.

    Raises:
        WrongValue: embeddings and catalogue are not of the same items and users.
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
        fold_in: FoldIn | None = None,
    ):
        super().__init__()
        door.agree(cf.shape, num_items, catalogue)
        self.llm, self.encoder, self.tokenizer, self.catalogue = freeze(llm), encoder, tokenizer, catalogue
        self.num_items, self.fold_in = int(num_items), fold_in
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

    @property
    def num_users(self) -> int:
        """U; 0 where the model was saved without its users."""
        return len(self.cf) - self.num_items

    def train(self, mode: bool = True) -> ILM:
        super().train(mode)
        self.llm.eval()  # frozen: no dropout, whatever the mode of the encoder
        self._token_cache.clear()
        return self

    def embed(self, batch: Batch, guest: Tensor | None = None) -> Tensor:
        """(B, T, H) input embeddings: text tokens, with item tokens in the slots.

        Every distinct item and user of the batch is encoded once, however often it occurs.

        Args:
            guest: (d,) the embedding of a user beyond those of `cf`, `User(num_users)`.
        """
        text = self.llm.get_input_embeddings()(batch.input_ids)
        if self.encoder is None or not len(batch.entities):
            return text
        own = batch.entities if guest is None else batch.entities[:-1]  # entities are in order: the guest is the last
        tokens = [self.tokens(own)] if len(own) else []
        if guest is not None:
            tokens.append(self.encoder(guest[None]))
        return interleave(text, torch.cat(tokens), batch.slot_row, batch.slot_start, batch.slot_entity)

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

    def forward(self, batch: Batch, guest: Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
        """The LLM's output for encoded prompts (see `backbone.read`: `loss` and the logits of labelled tokens alone
        where the batch has labels); `guest` as in `embed`.

        A batch without slots goes in as token ids, so its logits are the bare LLM's, bit for bit
        (appendix A of the paper).
        """
        return read(self.llm, batch, self.embed(batch, guest) if len(batch.entities) else None, **kwargs)

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
        self, prompt: str | Prompt | Sequence[Prompt], *, max_new_tokens: int = 64, **kwargs: Any
    ) -> str | list[str]:
        """Continue an interleaved prompt, or a list of them.

        Args:
            prompt: a list of str, Item and User, or a text alone; a list of such lists for a batch. Adjacent strings
                are one text, so ["A", "B"] is one prompt and [["A"], ["B"]] are two. All text is data: a special
                token that is written in it, "[EOS]", is text.
            max_new_tokens: of the answer; the LLM must be able to read prompt and answer.
            kwargs: for transformers' `generate`, e.g. num_beams. Decoding is greedy unless asked
                otherwise, whatever the checkpoint's own generation config says.

        Raises:
            WrongKind, WrongValue, OutOfRange, TooLong: an argument cannot be used (see `refusals`).

        Example:
            >>> ilm.generate(["Describe the film ", Item(17), " in two sentences."])
        """
        prompts, single = door.as_prompts(prompt)
        door.fit(prompts, self.num_items, self.num_users, encoder=self.encoder is not None)
        max_new_tokens = door.whole_number(max_new_tokens, "max_new_tokens")
        options = door.generation(self.llm, kwargs)
        batch = self.encode(prompts, side="left")
        door.room(context_length(self.llm), int(batch.position_ids.max()) + 1, max_new_tokens)
        inputs = {"inputs_embeds": self.embed(batch)} if len(batch.entities) else {"input_ids": batch.input_ids}
        if len(batch.entities) and takes_positions(self.llm):
            inputs["position_ids"] = batch.position_ids
        out = self.llm.generate(
            **inputs,
            attention_mask=batch.attention_mask,
            pad_token_id=self.prompts.pad_id,
            max_new_tokens=max_new_tokens,
            **options,
        )
        new = out if len(batch.entities) else out[:, batch.input_ids.shape[1] :]
        texts = [t.strip() for t in self.tokenizer.batch_decode(new, skip_special_tokens=True)]
        return texts[0] if single else texts

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt], guest: Tensor | None = None) -> Prefill:
        """Read prompts once; `beam_search` may then run several times over the result. `guest` as in `embed`."""
        batch = self.encode(prompts, side="left")
        out = self(batch, guest, use_cache=True, logits_to_keep=1)
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
        self,
        user: User | str | None = None,
        history: Iterable[Item | str] = (),
        k: int = 10,
        *,
        exclude_history: bool = True,
    ) -> list[Recommendation]:
        """The k most probable next items, best first; fewer where the model has no more of them.

        Args:
            user: a User, or the id of one (see `user`). None: somebody the model does not know, whose vector comes
                from the history (`fold_in`), and whose place in the prompt has no user's number.
            history: Items, or titles or ids (see `item`), in time order; empty asks the straightforward task
                (the user embedding alone).
            k: how many, from 1.
            exclude_history: never recommend an item of `history`.

        Raises:
            WrongKind, WrongValue, OutOfRange, UnknownName, TooLong: an argument cannot be used (see `refusals`).

        Example:
            >>> ilm.recommend(user=User(5), history=[Item(3), Item(8)], k=10)
            >>> ilm.recommend(user="alice", history=["Toy Story", "Heat (1995)"])
            >>> ilm.recommend(history=["Toy Story"])
        """
        c, k = self._names(), door.whole_number(k, "k")
        exclude_history = door.yes_or_no(exclude_history, "exclude_history")
        rows = door.history_rows(history, c, self.num_items)
        asker, guest = door.asker(self, user, rows)
        prompt = c.indexing.render(c.sequential if rows else c.straightforward, asker, rows)
        banned = torch.tensor([rows], device=self.device) if rows and exclude_history else None
        try:
            prefill = self.prefill([prompt], guest)
        except TooLong as error:
            raise TooLong(f"history has {len(rows)} items: {error}") from None
        beams = self.search(prefill, max(min(k, self.num_items), 10), banned)
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
            raise WrongValue("this model has no catalogue: pass one to ILM(..., catalogue=...)")
        return self.catalogue

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        backbone: str | None = None,
        metrics: Mapping[str, float] | None = None,
        users: bool = True,
    ) -> Path:
        """Save everything `from_pretrained` needs, as safetensors and JSON, a manifest, and a model card.

        The folder is replaced whole, where a model is in it. Its README.md, the card, may be edited; any other change
        is found by `from_pretrained`.

        Args:
            backbone: name of the LLM, to store a reference and fingerprints of its weights and tokenizer in place of
                a copy.
            metrics: what was measured, for the model card.
            users: False leaves the users' vectors and ids out. The loaded model knows no User and recommends for a
                history. Item vectors, encoder and an LLM trained on users' prompts were made from what users did and
                may still tell of it, most where `backbone.index_tokens` gave each user a token of the LLM.

        Raises:
            ModelFolderError: the folder holds something else than a model, or a weight is not finite.
            WrongValue: `users=False`, and the model could not recommend without them.
        """
        return write_folder(self, folder, backbone, metrics, users=door.yes_or_no(users, "users"))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, dtype: torch.dtype | str = "auto", device_map: str | None = None
    ) -> ILM:
        """Load a saved model, after every file was found to be as it was saved.

        Nothing is unpickled, and no code of the folder or of the LLM is run.

        Args:
            dtype: of the LLM's weights; "auto" keeps the saved ones.
            device_map: as in transformers, e.g. "auto".

        Raises:
            NoModel: no model in the folder; also a FileNotFoundError.
            ModelFolderError: a file is missing, changed, of another version or does not fit the others, or the LLM
                that the model names is not the one it was trained with; also a ValueError.
        """
        llm, *rest = read_folder(folder, dtype, device_map)
        return cls(llm, *rest).to(llm.device).eval()
