"""The Item-Language Model: an item encoder in front of a frozen LLM (section 3.3, Figure 2d).

ilm = ILM.from_pretrained("runs/toy/models/ilm-seed0")
ilm.generate(["Describe the film ", Item(17), " in two sentences."])
ilm.recommend(user=User(5), history=[Item(3), Item(8)], k=10)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from ilm_lib.model import door
from ilm_lib.model.backbone import context_length, freeze, hidden_states, read
from ilm_lib.model.catalogue import Catalogue
from ilm_lib.model.chat import Message
from ilm_lib.model.decode import Beams, beam_search
from ilm_lib.model.encoders import ItemEncoder, TokenCache, source_of
from ilm_lib.model.factor_score import FactorScore
from ilm_lib.model.finder import Finder, find, fits
from ilm_lib.model.fold_in import FoldIn
from ilm_lib.model.generate import generate
from ilm_lib.model.held import Readings, held_states
from ilm_lib.model.kernels import Trie, interleave
from ilm_lib.model.masks import takes_4d_mask
from ilm_lib.model.named import Named
from ilm_lib.model.prompts import Batch, Item, Prompt, PromptEncoder, User
from ilm_lib.model.readers import Prefill
from ilm_lib.model.recommend import Recommendation, recommend
from ilm_lib.model.reply import Reply, chat
from ilm_lib.model.saved import Saved
from ilm_lib.model.scoring import ScoreHead, without_llm
from ilm_lib.model.seekers import Seekers
from ilm_lib.sections import ItemPositions, Readout

MAX_KEPT = 1 << 29  # numbers in the table of item tokens kept for inference: 2 GiB in float32


class ILM(nn.Module, Named, Saved):
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
        head: what scores the catalogue; None: the LLM writes the items' names.
        factors: what the items' factors say beside the head; None: nothing.
        finder: how `find` finds items by words; None: it cannot.

    Raises:
        WrongValue: embeddings, catalogue and finder are not of the same items and users.
    """

    llm: PreTrainedModel
    encoder: ItemEncoder | None
    head: ScoreHead | None
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
        head: ScoreHead | None = None,
        factors: FactorScore | None = None,
        finder: Finder | None = None,
    ):
        super().__init__()
        door.agree(cf.shape, num_items, catalogue)
        fits(finder, num_items)
        self.llm, self.encoder, self.tokenizer, self.catalogue = freeze(llm), encoder, tokenizer, catalogue
        self.num_items, self.fold_in, self.head, self.factors = int(num_items), fold_in, head, factors
        self.finder = finder
        self.register_buffer("cf", cf, persistent=False)
        tokens = encoder.num_query_tokens if encoder else 0
        packs = partial(takes_4d_mask, llm)
        self.prompts = PromptEncoder(tokenizer, num_items, tokens, item_positions, packs=packs)
        self._trie: Trie | None = None
        self._token_cache, self.readings = TokenCache(num_items), Readings()
        self._table: tuple[Any, tuple[Tensor, Tensor]] | None = None
        self._seekers: tuple[Any, Seekers] | None = None

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
        self.readings.clear()
        self._table = None
        return self

    def embed(self, batch: Batch, guests: Tensor | None = None) -> Tensor:
        """(B, T, H) input embeddings: text tokens, with item tokens in the slots.

        Every distinct item and user of the batch is encoded once, however often it occurs.

        Args:
            guests: (G, d) embeddings of users beyond those of `cf`, `User(num_users)` and on.
        """
        text = self.llm.get_input_embeddings()(batch.input_ids)
        if self.encoder is None or not len(batch.entities):
            return text
        tokens = self.tokens(batch.entities, guests)
        return interleave(text, tokens, batch.slot_row, batch.slot_start, batch.slot_entity)

    def tokens(self, entities: Tensor, guests: Tensor | None = None) -> Tensor:
        """(E, N, H) tokens of distinct entities (E,) in rising order, items before users; `guests` as in `embed`.

        Without gradients items are encoded once (see `TokenCache`), unless their table would be too large.
        """
        encoder = self.encoder
        assert encoder is not None, "the bare LLM has no item tokens"
        if guests is not None and entities[-1] >= len(self.cf):
            own, strange = entities[entities < len(self.cf)], entities[entities >= len(self.cf)] - len(self.cf)
            return torch.cat([*([self.tokens(own)] if len(own) else []), encoder(guests[strange])])
        vectors = self.cf.__getitem__ if self.head is None else partial(self.head.learned, self.cf)
        encode = lambda entities: encoder(vectors(entities))
        size = self.num_items * encoder.num_query_tokens * self.llm.get_input_embeddings().embedding_dim
        if torch.is_grad_enabled() or size > MAX_KEPT:
            return encode(entities)
        return self._token_cache.look_up(encode, entities, source_of(self.cf, encoder, self.head))

    @torch.no_grad()
    def item_tokens(self) -> Tensor:
        """(I, N, H) what the LLM reads in the place of every item."""
        return self.tokens(torch.arange(self.num_items, device=self.device))

    def forward(self, batch: Batch, guests: Tensor | None = None, **kwargs: Any) -> CausalLMOutputWithPast:
        """The LLM's output for encoded prompts (see `backbone.read`: `loss` and the logits of labelled tokens alone
        where the batch has labels); `guests` as in `embed`.

        A batch without slots goes in as token ids, so its logits are the bare LLM's, bit for bit
        (appendix A of the paper).
        """
        return read(self.llm, batch, self.embed(batch, guests) if len(batch.entities) else None, **kwargs)

    def slot_states(self, batch: Batch, guests: Tensor | None = None, *, held: bool = False) -> Tensor:
        """(S, R) what the read-out has of every slot of encoded prompts (`ScoreHead.read`); held: see `held_states`."""
        assert self.head is not None, "a model without a head reads no slots"
        if self.head.context != "llm":
            states = without_llm(self.head.context, self.tokens(batch.entities, guests), batch)
        elif held:
            states = held_states(self, batch, guests, every_layer=self.head.states > 1)
        else:
            states = hidden_states(self.llm, batch, self.embed(batch, guests), every_layer=self.head.states > 1)
        return self.head.read(states, self.cf if guests is None else torch.cat([self.cf, guests]), batch)

    @torch.no_grad()
    def table(self) -> tuple[Tensor, Tensor]:
        """(I, d) and (I,) what the read-out holds its queries against, kept while nothing of it changes."""
        assert self.head is not None, "a model without a head scores nothing"
        source, items = (source_of(self.cf, self.head), id(self.factors)), self.cf[: self.num_items]
        if self._table is None or self._table[0] != source:
            table, bias = self.head.table(items)
            self._table = source, (self.factors.table(table, items) if self.factors else table, bias)
        return self._table[1]

    @property
    def seekers(self) -> Seekers:
        """What makes the vectors of those who talk to the model, kept while nothing of it changes."""
        made_of, kept = (self.cf, self.fold_in, self.finder), self._seekers
        if kept is None or any(a is not b for a, b in zip(kept[0], made_of)):
            kept = self._seekers = made_of, Seekers(self.cf[: self.num_items], self.fold_in, self.finder)
        return kept[1]

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
        texts = generate(self, prompts, max_new_tokens, kwargs)
        return texts[0] if single else texts

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Prompt], guests: Tensor | None = None) -> Prefill:
        """Read prompts once; `beam_search` may then run several times over the result. `guests` as in `embed`."""
        batch = self.encode(prompts, side="left")
        out = self(batch, guests, use_cache=True, logits_to_keep=1)
        return Prefill(out.past_key_values, out.logits[:, -1], batch.attention_mask, batch.position_ids[:, -1:] + 1)

    @property
    def trie(self) -> Trie:
        """Trie of all items' answers (built once)."""
        if self._trie is None:
            c = self.names()
            answer = lambda row: c.indexing.answer(c.target, row)
            self._trie = Trie.build([self.prompts.answer_ids(answer(i)) for i in range(self.num_items)], self.device)
        return self._trie

    @property
    def answer_length(self) -> int:
        return self.trie.path.shape[1]  # tokens of the longest answer, end-of-sequence included

    def search(self, prefill: Prefill, beams: int, banned: Tensor | None = None, constrained: bool = True) -> Beams:
        """Beam search for items; constrained to valid ids, or free (one more token, for slips)."""
        trie, most = self.trie if constrained else None, self.answer_length + (not constrained)
        eos_id = self.tokenizer.eos_token_id
        return beam_search(self.llm, prefill, beams=beams, eos_id=eos_id, banned=banned, trie=trie, max_new_tokens=most)

    def recommend(
        self,
        user: User | str | None = None,
        history: Iterable[Item | str] = (),
        k: int = 10,
        *,
        exclude_history: bool = True,
        readout: Readout | None = None,
    ) -> list[Recommendation]:
        """The k most probable next items, best first; fewer where the model has no more of them.

        Args:
            user: a User, or the id of one (see `user`). None: somebody the model does not know, whose vector comes
                from the history (`fold_in`), and whose place in the prompt has no user's number.
            history: Items, or titles or ids (see `item`), in time order; empty asks the straightforward task
                (the user embedding alone).
            k: how many, from 1.
            exclude_history: never recommend an item of `history`.
            readout: "beam", the LLM writes the items' names; "score", every item is scored; None: "score" where the
                model has a head for it.

        Raises WrongKind, WrongValue, OutOfRange, UnknownName or TooLong where an argument cannot be used (`refusals`).

        Example:
            >>> ilm.recommend(user=User(5), history=[Item(3), Item(8)], k=10)
            >>> ilm.recommend(user="alice", history=["Toy Story", "Heat (1995)"])
            >>> ilm.recommend(history=["Toy Story"])
        """
        return self.recommend_many([user], [history], k, exclude_history=exclude_history, readout=readout)[0]

    def recommend_many(
        self,
        users: Sequence[User | str | None] | None,
        histories: Sequence[Iterable[Item | str]],
        k: int = 10,
        *,
        exclude_history: bool = True,
        readout: Readout | None = None,
    ) -> list[list[Recommendation]]:
        """`recommend` for many at once, all of them checked before any work.

        Args:
            users: one for each history, or None for nobody the model knows.

        Example:
            >>> ilm.recommend_many(None, [["Toy Story"], ["Heat (1995)", "Casino (1995)"]], k=5)
        """
        return recommend(self, users, histories, k, exclude_history, readout)

    def chat(
        self,
        messages: Sequence[Message],
        k: int = 3,
        *,
        seen: Iterable[Item | str] = (),
        rejected: Iterable[Item | str] = (),
        tokens: bool = True,
        writes: bool = True,
    ) -> Reply:
        """The model's turn in a conversation: items, and the words around them (`reply.Reply`).

        It recommends by what was said and by the items named, none of which it recommends again; where it has been
        told nothing it asks back. What it has read of a dialogue stays in memory until `readings.clear()`, and is not
        read again where the dialogue goes on. One reply is made at a time.

        Args:
            messages: turns, the oldest first, the user's last: {"role": ..., "content": ...}, a text or a list of str
                and Item. Names of items in texts are found (see `link`).
            k: items to recommend, from 1.
            seen: Items, titles or ids that are not to be recommended either.
            rejected: the same of those the user does not want: where they were named they stay in the words that the
                LLM reads, and the seeker's vector has nothing of them.
            tokens: False reads titles alone, and the seeker's vector has nothing of items; to compare with.
            writes: False names the items alone, and the LLM writes nothing.

        Raises:
            WrongKind, WrongValue, OutOfRange, UnknownName, TooLong: see `refusals`; WrongValue for a model that was
                not trained on dialogues.

        Example:
            >>> ilm.chat([{"role": "user", "content": ["Something like ", Item(17), ", but funnier?"]}]).text
        """
        return chat(self, messages, k, seen=seen, rejected=rejected, tokens=tokens, writes=writes)

    def find(self, words: str, k: int = 10) -> list[Recommendation]:
        """The k items that words mean most probably, best first; nothing need be known of who asks (see `finder`).

        Args:
            words: what is looked for, in a few words; no title need be among them (for that, see `link`).
            k: how many, from 1; all items at most.

        Raises WrongKind or WrongValue for no text, an empty one, and a model without a finder.

        Example:
            >>> ilm.find("slow-burning science fiction", k=3)
        """
        return find(self, words, k)
