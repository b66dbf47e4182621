"""The score read-out: the hidden state of the frozen LLM after an item, held against a table of all items.

The paper has the LLM write an item's name (`decode`), which shows little of what item tokens know. Here

    score of item i = q(h) . t_i + b_i,   q(h) = A h or A side(h, t),   t_i = W (v_i + f_i) / sqrt(d),

where h is the LLM's hidden state after a slot (of its last layer, or of all, side by side, each normed), side a small
trained network over the states of all slots so far and the table's rows of their items (`side.SideNetwork`), and
v_i + f_i the item's vector, the same that its tokens are made of: v_i is given, the free part f_i and the bias b_i are
learned of items that training met; an item it did not meet has v_i alone.

f_i is sqrt(F) times what is learned, and W is orthogonal at first and divided by sqrt(d). Beside given vectors with an
RMS of 1 a step of AdamW then moves a row as far as it moves one of SASRec's, and W no faster than an item. On Beauty
dev NDCG@10 after 600 steps without LLM is .025 with neither, .045 with f_i so, .049 with both; SASRec has .049.
Scoring all items in one step is what ILM's own group went on to (arXiv 2509.03746).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ilm_lib.model.dialogue import DialoguePrompt
from ilm_lib.model.history import HistoryPrompt
from ilm_lib.model.kernels import mean_nll, rival_nll, rivals, table_nll
from ilm_lib.model.likeness import Likeness
from ilm_lib.model.prompts import Batch
from ilm_lib.model.side import SideNetwork
from ilm_lib.sections import Context

SCORES = (1 << 21, 1 << 25)  # that `top_items` lays out at once on a CPU, whose caches hold them, and on a GPU


class ScoreHead(nn.Module):
    """The learned part of the read-out: (S, K H) hidden states of slots to scores of (I,) items.

    Args:
        llm_width: H.
        states: K, of how many layers the hidden states are read; each is normed by itself.
        vector_dim: F, size of an item's vector.
        num_items: I.
        side: layers and heads of the `SideNetwork` between hidden states and query (`SideNetwork.config`), whose width
            is `dim`; None: there is none, the query is linear in one slot's hidden states.
        dim: d, size of a query and of a row of the table.
        free: with a learned part f_i of the vector of every item that training meets.
        free_std: of the fresh free parts, beside given vectors with an RMS of 1; where items have few interactions,
            their given vectors hardly tell them apart.
        known: how many numbers of a vector, its first, come from interactions: an item that training does not meet has
            0 there. None: that is not told, and vectors are taken as they are.
        cold_dropout: share of the items of a step that are shown as if training did not meet them (see `hide`), so that
            the read-out learns what the rest of a vector is good for (DropoutNet, Volkovs et al., NeurIPS 2017); needs
            `known`.
        dropout: on the hidden state.
        context: what a score is read off: "llm", the hidden state; "last", the tokens of the last slot, and "mean",
            those of all slots so far, without the LLM: what it adds is the difference.
        prompt: how a history, or a dialogue, is shown.
        likeness: arguments of the `Likeness` of a slot's own vector to the items', which is added to the scores; the
            read-out of hidden states then begins at zero, and learns what to add. None: there is none.

    Attributes:
        share: (I,) of each item in the interactions for training; 0 for one that training does not meet.
        hidden: (I,) bool, the items that `hide` drew.
        free, free_scale: (I, F) weights and what they are multiplied by to be f_i.
    """

    share: Tensor
    hidden: Tensor

    def __init__(
        self,
        llm_width: int,
        vector_dim: int,
        num_items: int,
        *,
        states: int = 1,
        side: dict[str, int] | None = None,
        dim: int = 64,
        free: bool = True,
        free_std: float = 0.0,
        known: int | None = None,
        cold_dropout: float = 0.0,
        dropout: float = 0.0,
        context: Context = "llm",
        prompt: HistoryPrompt | DialoguePrompt | None = None,
        likeness: dict[str, Any] | None = None,
    ):
        super().__init__()
        if cold_dropout and known is None:
            raise ValueError("cold_dropout needs known, the numbers of a vector that come from interactions")
        self.known, self.cold_dropout = known, cold_dropout
        self.context: Context = context
        self.prompt = prompt or HistoryPrompt()
        self.norm, self.dropout = nn.LayerNorm(llm_width, elementwise_affine=False), nn.Dropout(dropout)
        self.states, self.llm_width = states, llm_width
        places = self.prompt.history_max + 1  # with a user in front
        self.side = SideNetwork(states * llm_width, dim, places=places, dropout=dropout, **side) if side else None
        self.query = nn.Linear(dim if side else states * llm_width, dim)
        if side:
            nn.init.eye_(self.query.weight)  # what is like an item is asked for, until more is known
        self.project = nn.Linear(vector_dim, dim)
        self.bias = nn.Parameter(torch.zeros(num_items))
        self.free_scale = vector_dim**0.5
        self.free = nn.Parameter(torch.zeros(num_items, vector_dim)) if free else None
        if self.free is not None and free_std:
            nn.init.normal_(self.free, std=free_std / self.free_scale)
        self.register_buffer("share", torch.full((num_items,), 1 / num_items))
        self.register_buffer("hidden", torch.zeros(num_items, dtype=torch.bool), persistent=False)
        self.likeness = Likeness(**likeness) if likeness else None
        if likeness:
            nn.init.zeros_(self.query.weight)
            nn.init.zeros_(self.query.bias)
        nn.init.orthogonal_(self.project.weight)  # items that are alike have rows that are
        nn.init.zeros_(self.project.bias)

    def config(self) -> dict[str, Any]:
        """What `ScoreHead.from_config` needs to make the head again."""
        return {
            "llm_width": self.llm_width,
            "states": self.states,
            "side": None if self.side is None else self.side.config(),
            "vector_dim": self.project.in_features,
            "num_items": len(self.bias),
            "dim": self.query.out_features,
            "free": self.free is not None,
            "known": self.known,
            "cold_dropout": self.cold_dropout,
            "dropout": self.dropout.p,
            "context": self.context,
            "prompt": vars(self.prompt).copy(),
            "likeness": None if self.likeness is None else self.likeness.config(),
        }

    @property
    def width(self) -> int:
        """Of a query and of a row of the table: d, and what a likeness has beside it."""
        return self.query.out_features + (0 if self.likeness is None else self.likeness.width)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ScoreHead:
        """A head of these sizes, with fresh weights."""
        shown = config["prompt"]
        of_dialogues = "system" in shown
        return cls(**{**config, "prompt": (DialoguePrompt if of_dialogues else HistoryPrompt)(**shown)})

    def read(self, hidden: Tensor, vectors: Tensor | None = None, batch: Batch | None = None) -> Tensor:
        """(S, K H) hidden states after all slots of a batch -> (S, R), what queries are made of; with a likeness,
        (S, R + F), the slots' own vectors behind it.

        Args:
            vectors, batch: (V, F) of the batch's entities and others, as in `learned`, and which of them and which
                prompt each slot has; for a side network.
        """
        states = self.norm(hidden.float().unflatten(-1, (self.states, -1))).flatten(-2)
        if self.side is None and self.likeness is None:
            return self.dropout(states)
        assert vectors is not None and batch is not None, "a side network, or a likeness, reads the slots of a batch"
        if self.side is None:
            states = self.dropout(states)
        else:
            own = self.rows(self.learned(vectors, batch.entities))  # (E, d)
            states = self.side(states, own[batch.slot_entity], batch)
        return states if self.likeness is None else torch.cat([states, vectors[batch.entities[batch.slot_entity]]], 1)

    def queries(self, states: Tensor) -> Tensor:
        """What `read` has of L slots -> (L, width)."""
        if self.likeness is None:
            return self.query(states)
        read, own = states.split([self.query.in_features, self.project.in_features], 1)
        return torch.cat([self.query(read), self.likeness.queries(own)], 1)

    def hide(self) -> None:
        """Draw the items that a step of training takes for new ones, in tokens, side network and table alike."""
        if self.cold_dropout:
            self.hidden = torch.rand_like(self.share) < self.cold_dropout

    def met(self, rows: Tensor | None = None) -> Tensor:
        """(R,) whether training meets items (R,), or all of them; in training without those that are hidden."""
        met = (self.share > 0) & ~self.hidden if self.training else self.share > 0
        return met if rows is None else met[rows]

    def learned(self, vectors: Tensor, rows: Tensor | None = None, met: Tensor | None = None) -> Tensor:
        """Given vectors, of items and perhaps users after them, with the items' free parts.

        Args:
            vectors: (V, F), V >= I.
            rows: (R,) which of them, items before users; None: all.
            met: of the items among them, as `met` has it.

        Returns:
            (R, F) or (V, F).
        """
        given = vectors if rows is None else vectors[rows]
        items = None if rows is None else rows[rows < len(self.bias)]
        met = self.met(items) if met is None else met
        own, rest = given[: len(met)], given[len(met) :]
        if self.known is not None:
            own = torch.cat([own[:, : self.known] * met[:, None], own[:, self.known :]], 1)
        if self.free is not None:
            free = self.free if items is None else self.free[items]
            own = own + self.free_scale * free * met[:, None]
        return torch.cat([own, rest])

    def table(self, vectors: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(I, F) given vectors -> the items' (I, width) and (I,) biases; with `rows` (R,), of these items alone."""
        met = self.met(rows)
        bias = self.bias if rows is None else self.bias[rows]
        table = self.rows(self.learned(vectors, rows, met))
        if self.likeness is not None:
            table = torch.cat([table, self.likeness.rows(vectors if rows is None else vectors[rows])], 1)
        return table, bias * met

    def rows(self, vectors: Tensor) -> Tensor:
        """(R, F) vectors -> (R, d) rows of the table."""
        return self.project(vectors) * self.query.out_features**-0.5

    def loss(
        self, states: Tensor, vectors: Tensor, targets: Tensor, negatives: int | None = None,
        banned: Sequence[Sequence[int]] | None = None,
    ) -> Tensor:  # fmt: skip
        """Mean negative log likelihood (nats) of the items that come next.

        Args:
            states: (L, R) of `read`, before each of them.
            vectors: (I, F) of all items.
            targets: (L,) item rows, all of them met by training.
            negatives: rank against the targets of all places and so many items that are drawn (`kernels.rivals`); None,
                or no fewer than there are: against all items.
            banned: item rows that each place may not have, none of them its target: it ranks against all others.
        """
        query = self.queries(states)
        if banned is not None:
            table, bias = self.table(vectors)
            scores = torch.addmm(bias.masked_fill(self.share == 0, -torch.inf), query, table.T)
            return mean_nll(scores.index_put(_bans(banned, query.device), scores.new_tensor(-torch.inf)), targets)
        if negatives is None or negatives >= len(self.bias):
            table, bias = self.table(vectors)
            return table_nll(query, table, bias.masked_fill(self.share == 0, -torch.inf), targets)
        items, own, chance = rivals(targets, self.share, negatives)
        table, bias = self.table(vectors, items)
        scores = torch.addmm(bias - chance, query, table.T).masked_fill(self.share[items] == 0, -torch.inf)  # (L, R)
        return rival_nll(scores, own, chance)


def without_llm(context: Context, tokens: Tensor, batch: Batch) -> Tensor:
    """(S, H) what the read-out has of each slot without the LLM: "last" and "mean" of `ScoreHead`.

    Args:
        tokens: (E, N, H) of the distinct entities of the batch.
    """
    own = tokens.mean(1)[batch.slot_entity]  # (S, H)
    if context == "last":
        return own
    # A running mean within each prompt; slots are in the order of prompts.
    total = own.cumsum(0, dtype=torch.float64)
    number = torch.arange(len(own), device=own.device)
    begin = torch.searchsorted(batch.slot_prompt, batch.slot_prompt)  # where the slot's prompt begins
    before = torch.cat([total.new_zeros(1, total.shape[1]), total])[begin]
    return ((total - before) / (number - begin + 1)[:, None]).to(own.dtype)


@torch.no_grad()
def top_items(
    queries: Tensor, table: Tensor, bias: Tensor, k: int, banned: Sequence[Sequence[int]] | None = None,
    *, block: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The k items of the highest scores, exactly, in blocks of items, so that (B, I) scores are never laid out whole.

    Args:
        queries: (B, d).
        table, bias: (I, d) and (I,).
        banned: item rows that each row of the batch may not have.
        block: items scored at once; None: as many as make `SCORES` scores, and no fewer than 1,024.

    Returns:
        (B, k') item rows, best first, and their log probabilities (nats) among all items, bans or not; k' is k or,
        where there are no more, I. -1 and -inf where fewer are left.
    """
    B, I = len(queries), len(table)
    block = block or max(1 << 10, SCORES[queries.device.type != "cpu"] // max(1, B))
    total = queries.new_full((B,), -torch.inf)
    found, items = queries.new_empty(B, 0), torch.empty(B, 0, dtype=torch.long, device=queries.device)
    row, ban = _bans(banned, queries.device)
    for start in range(0, I, block):
        scores = torch.addmm(bias[start : start + block], queries, table[start : start + block].T)  # (B, block)
        total = torch.logaddexp(total, scores.logsumexp(1))
        here = (ban >= start) & (ban < start + block)
        scores[row[here], ban[here] - start] = -torch.inf
        best, place = scores.topk(min(k, scores.shape[1]), 1)
        found, order = torch.cat([found, best], 1).sort(stable=True, dim=1, descending=True)
        found, items = found[:, :k], torch.cat([items, place + start], 1).gather(1, order)[:, :k]
    return torch.where(found > -torch.inf, items, -1), found - total[:, None]


def _bans(banned: Sequence[Sequence[int]] | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and items of all bans."""
    if banned is None:
        return (torch.zeros(0, dtype=torch.long, device=device),) * 2
    row = torch.arange(len(banned)).repeat_interleave(torch.tensor([len(items) for items in banned]))
    item = torch.cat([torch.as_tensor(items, dtype=torch.long) for items in banned]) if len(row) else row
    return row.to(device), item.to(device)
