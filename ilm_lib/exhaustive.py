"""Every item scored, not only those a beam meets: the ranking that beam search approximates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ilm_lib.decode import Prefill, Tree
from ilm_lib.kernels import Trie
from ilm_lib.masks import takes_4d_mask
from ilm_lib.model import ILM
from ilm_lib.progress import progress
from ilm_lib.recommendation import RecommendationTasks


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
        above = ancestors[own[0], :depth[own[0]]]
        nodes = torch.cat([above, own])
        seen = ancestors[nodes][:, depth[nodes]] == nodes  # (n, n): is each of them on the other's way
        logits = Tree(llm, prefill).forward(trie.token[nodes].expand(B, -1), seen.expand(B, -1, -1), depth[nodes])
        write(own, logits[:, len(above):])
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
        here = path[fresh[:, d]]
        ancestors[here[:, d], :d + 1] = here[:, :d + 1]
        depth[here[:, d]] = d
    rows = path.cpu().numpy()
    met, first = np.unique(rows[np.lexsort(rows.T[::-1])], return_index=True)
    return ancestors, depth, torch.from_numpy(met[np.argsort(first)]).to(path.device)


@torch.no_grad()
def beam_recall(ilm: ILM, tasks: RecommendationTasks, *, task: str, users: np.ndarray, beams: int = 10,
                batch_size: int = 16) -> np.ndarray:
    """(U',) how much of the true top ten a beam finds: the ten most probable of all items, each item scored.

    Seen prompts, test split, history kept, in the model's own precision.
    """
    shares, starts = [], range(0, len(users), batch_size)
    for start in progress(starts, f"scoring every item, {task}", total=len(starts)):
        prefill = ilm.prefill(tasks.evaluation_prompts(task, "seen", "test", users[start:start + batch_size]))
        true = score_all(ilm.llm, prefill, ilm.trie).topk(10).indices
        found = ilm.search(prefill, beams).items[:, :10]
        shares.append((true[:, :, None] == found[:, None]).any(2).float().mean(1))
    return torch.cat(shares).cpu().numpy()
