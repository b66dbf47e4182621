"""Every item scored, not only those a beam meets: the ranking that beam search approximates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ilm_lib.model.kernels import Trie
from ilm_lib.model.masks import takes_4d_mask
from ilm_lib.model.readers import Prefill, Tree

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def score_all(llm: PreTrainedModel, prefill: Prefill, trie: Trie, *, width: int = 512) -> Tensor:
    """(B, I) log probability of every item's answer.

    Nodes of the trie are read side by side, `width` of them in a pass, in preorder: a node's ancestors are then in its
    own pass or above its pass's first node, and those few are read again. Time and memory grow with the catalogue, not
    with its square.

    Raises:
        ValueError: the LLM cannot read the tree mask this needs.
    """
    if not takes_4d_mask(llm, prefill.mask.shape[1] + trie.path.shape[1]):
        raise ValueError(f"{type(llm).__name__} takes no 4-D attention mask: rank with beam_search")
    ancestors, depth, preorder = _family(trie)
    inner = preorder[trie.count[preorder] > 0]  # nodes the LLM reads: neither root nor leaf
    B = len(prefill.logits)
    step = prefill.logits.new_zeros(B, len(trie.token), dtype=torch.float)  # log p of a node given its parent

    def write(nodes: Tensor, logits: Tensor) -> None:
        """Logits (B, n, V) after n nodes, to their children."""
        child, row = trie.children(nodes)
        step[:, child] = logits[:, row, trie.token[child]].float() - logits.float().logsumexp(-1)[:, row]

    write(preorder.new_zeros(1), prefill.logits[:, None])
    for own in inner.split(width):
        above = ancestors[own[0], : depth[own[0]]]
        nodes = torch.cat([above, own])
        seen = ancestors[nodes][:, depth[nodes]] == nodes  # (n, n): is each of them on the other's way
        logits = Tree(llm, prefill).forward(trie.token[nodes].expand(B, -1), seen.expand(B, -1, -1), depth[nodes])
        write(own, logits[:, len(above) :])
    return (step[:, trie.path] * _fresh(trie.path)).sum(-1)


def _fresh(path: Tensor) -> Tensor:
    """Where a path (I, L) has a node for the first time: padding repeats the leaf, which counts once."""
    fresh = torch.ones_like(path, dtype=torch.bool)
    fresh[:, 1:] = path[:, 1:] != path[:, :-1]
    return fresh


def _family(trie: Trie) -> tuple[Tensor, Tensor, Tensor]:
    """(nodes, L) the nodes an answer passes down to a node, itself included, -1 after it; (nodes,) how many are above
    it, the root left out; and all nodes but the root in preorder."""
    path, fresh = trie.path, _fresh(trie.path)
    ancestors = path.new_full((len(trie.token), path.shape[1]), -1)
    depth = path.new_zeros(len(trie.token))
    for d in range(path.shape[1]):
        paths = path[fresh[:, d]]  # of the items whose answer is longer than d
        ancestors[paths[:, d], : d + 1] = paths[:, : d + 1]
        depth[paths[:, d]] = d
    rows = path.cpu().numpy()
    nodes, first = np.unique(rows[np.lexsort(rows.T[::-1])], return_index=True)
    return ancestors, depth, torch.from_numpy(nodes[np.argsort(first)]).to(path.device)
