"""The nodes of a trie, in the order and with the ancestors that scoring all of them needs."""

from ilm_lib.model.exhaustive import _family
from ilm_lib.model.kernels import Trie


def test_every_node_has_its_ancestors_and_a_place_in_preorder():
    answers = [[3, 4, 6, 2], [3, 4, 5, 2], [8, 2], [3, 4, 6, 7, 2], [3, 9, 2]]
    trie = Trie.build(answers)
    ancestors, depth, preorder = _family(trie)
    for item, answer in enumerate(answers):
        path = trie.path[item, : len(answer)].tolist()
        for d, node in enumerate(path):
            assert depth[node] == d and ancestors[node].tolist() == path[: d + 1] + [-1] * (4 - d)
    order = preorder.tolist()
    assert sorted(order) == list(range(1, len(trie.token)))
    for node in order:  # a subtree is one run of the order, its root first
        below = [n for n in order if node in ancestors[n].tolist()]
        assert order[order.index(node) :][: len(below)] == below
