"""A small causal transformer beside the frozen LLM, which reads the LLM's hidden states after every slot.

Ladder side-tuning (Sung et al., arXiv 2206.06522): what is trained sees the layers of a frozen model and is not inside
of it, so the LLM's weights, and what it says, stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ilm_lib.model.kernels import attention
from ilm_lib.model.prompts import Batch


class SideNetwork(nn.Module):
    """(S, W) states and (S, D) rows of the slots of a batch -> (S, D); a slot sees itself and those before it in its
    prompt.

    The row of a slot is its item's in the table that queries are held against (a user's is made in the same way). Each
    layer adds to what comes in, so at first an item asks for those that are like it, as in SASRec.

    Args:
        states_width: W.
        width: D.
        layers: transformer layers, pre-norm.
        heads: of attention; D is a multiple.
        places: most slots in a prompt.
        dropout: on what enters, and on what every layer adds.
    """

    def __init__(self, states_width: int, width: int, layers: int, heads: int, places: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.enter, self.place = nn.Linear(states_width, width), nn.Embedding(places, width)
        self.layers = nn.ModuleList(SideLayer(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.place.weight, std=0.02)

    def config(self) -> dict[str, int]:
        """Its sizes besides the width, by the names of the arguments."""
        return {"layers": len(self.layers), "heads": self.heads}

    def forward(self, states: Tensor, own: Tensor, batch: Batch) -> Tensor:
        prompt = batch.slot_prompt
        begin = torch.searchsorted(prompt, prompt)  # (S,) the first slot of its prompt
        place = torch.arange(len(prompt), device=prompt.device) - begin
        x = self.dropout(self.enter(states) + own * own.shape[1] ** 0.5 + self.place(place))  # (S, D)
        row, column = _laid_out(batch.slot_row)
        rows, columns = (int(t.max()) + 1 if len(t) else 0 for t in (row, column))
        owner = torch.full((rows, columns), -1, device=row.device).index_put((row, column), prompt)  # -1: padding
        sees = (owner[:, :, None] == owner[:, None, :]).tril()[:, None]  # (R, 1, C, C); padding sees padding
        x = x.new_zeros(rows, columns, x.shape[1]).index_put((row, column), x)  # (R, C, D)
        for layer in self.layers:
            x = layer(x, sees)
        return self.norm(x[row, column])


class SideLayer(nn.Module):
    """Attention and a feed-forward network, each over a norm and added to what comes in, (R, C, D) both ways."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm, self.norm_up = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, sees: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (R, heads, C, D')
        x = x + self.dropout(self.out(attention(q, k, v, sees).transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(nn.functional.gelu(self.up(self.norm_up(x)))))


def _laid_out(slot_row: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) rows of slots, several prompts one after another in each -> (S,) rows that have a slot, and columns."""
    row = slot_row.unique(return_inverse=True)[1]
    by_row = row.argsort(stable=True)
    sorted_row = row[by_row]
    column = torch.empty_like(row)
    column[by_row] = torch.arange(len(row), device=row.device) - torch.searchsorted(sorted_row, sorted_row)
    return row, column
