import pytest
import torch

from ilm_lib.model import kernels
from ilm_lib.model.kernels import Trie, attention, beam_step, interleave, mean_nll, pair_similarity, table_nll


def test_interleave_is_a_loop_over_slots_forward_and_backward():
    torch.manual_seed(0)
    text, tokens = torch.randn(3, 9, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    row, start, entity = torch.tensor([[0, 0, 1], [0, 6, 1], [2, 2, 0], [1, 5, 1]]).T  # entity 1 three times
    out = interleave(text, tokens, row, start, entity)

    text_, tokens_ = (t.detach().clone().requires_grad_() for t in (text, tokens))
    positions = [list(text_[b]) for b in range(3)]
    for b, s, e in zip(row.tolist(), start.tolist(), entity.tolist()):
        for n in range(3):
            positions[b][s + n] = tokens_[e, n]
    expected = torch.stack([torch.stack(p) for p in positions])
    assert torch.equal(out, expected)

    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(text.grad, text_.grad)
    torch.testing.assert_close(tokens.grad, tokens_.grad)


def test_interleave_returns_a_new_tensor_in_the_type_of_the_text():
    text, tokens = torch.zeros(1, 3, 2, dtype=torch.bfloat16), torch.ones(1, 1, 2)
    out = interleave(text, tokens, *torch.tensor([[0], [1], [0]]))
    assert out.dtype == torch.bfloat16 and text.sum() == 0 and out.sum() == 2


@pytest.mark.parametrize("shape", [(5, 3, 2), (4, 1, 1), (4, 3, 1), (1, 2, 2)])
@pytest.mark.parametrize("selection", ["best", "positive"])
def test_pair_similarity_is_its_definition(shape, selection):
    B, N, M = shape
    torch.manual_seed(0)
    a, b = torch.randn(B, N, 6), torch.randn(B, M, 6)
    cosine = lambda i, n, j, m: torch.cosine_similarity(a[i, n], b[j, m], dim=0)
    pairs = [(n, m) for n in range(N) for m in range(M)]
    expected = torch.empty(B, B)
    own = [max(pairs, key=lambda p: float(cosine(i, p[0], i, p[1]))) for i in range(B)]
    for i in range(B):
        for j in range(B):
            expected[i, j] = (
                max(cosine(i, n, j, m) for n, m in pairs) if selection == "best" else cosine(i, own[i][0], j, own[j][1])
            )
    torch.testing.assert_close(pair_similarity(a, b, selection), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1, 30, 3000])  # at 3000 the probability of most targets is 0 in float32
def test_mean_nll_is_the_cross_entropy(scale, dtype):
    torch.manual_seed(0)
    logits, targets = (torch.randn(7, 11) * scale).to(dtype).requires_grad_(), torch.randint(11, (7,))
    found, wanted = mean_nll(logits, targets), torch.nn.functional.cross_entropy(logits.float(), targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted)
    for factor in (1.0, 0.25):
        (got,), (want,) = (torch.autograd.grad(factor * loss, logits, retain_graph=True) for loss in (found, wanted))
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(mean_nll(logits, targets), wanted)


@pytest.mark.parametrize("queries", [7, 40])  # one block of at least 16, and three
@pytest.mark.parametrize("scale", [1, 300])
def test_table_nll_is_the_cross_entropy_of_all_scores(monkeypatch, queries, scale):
    monkeypatch.setattr(kernels, "BLOCK", (1, 1))
    torch.manual_seed(0)
    inputs = [(torch.randn(*shape) * scale**0.5).requires_grad_() for shape in ((queries, 3), (11, 3), (11,))]
    out = torch.zeros(11).index_fill(0, torch.tensor([4]), -torch.inf)
    targets = torch.randint(4, (queries,))
    found = table_nll(*inputs[:2], inputs[2] + out, targets)
    wanted = torch.nn.functional.cross_entropy(inputs[0] @ inputs[1].T + inputs[2] + out, targets)
    torch.testing.assert_close(found, wanted)
    for got, want in zip(*(torch.autograd.grad(0.25 * loss, inputs) for loss in (found, wanted))):
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(table_nll(*inputs[:2], inputs[2] + out, targets), wanted)


def test_table_nll_in_bfloat16_is_near_that_in_float32():
    torch.manual_seed(0)
    exact = [torch.randn(50, 16).requires_grad_(), torch.randn(30, 16).requires_grad_(), torch.zeros(30)]
    targets = torch.randint(30, (50,))
    wanted = table_nll(*exact, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found = table_nll(exact[0].bfloat16(), exact[1].bfloat16(), exact[2], targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)
    for got, want in zip(*(torch.autograd.grad(loss, exact[:2]) for loss in (found, wanted))):
        torch.testing.assert_close(got, want, atol=0.001, rtol=0.02)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_pytorchs(masked):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    mask = (torch.rand(2, 1, 5, 5) < 0.5) | torch.eye(5, dtype=torch.bool) if masked else None
    out, wanted = attention(q, k, v, mask), torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(out, wanted)
    weight = torch.randn_like(out)
    for got, want in zip(*(torch.autograd.grad((o * weight).sum(), (q, k, v)) for o in (out, wanted))):
        torch.testing.assert_close(got, want)


ANSWERS = [[7, 3, 1], [7, 3, 5, 1], [7, 4, 1], [9, 1], [7, 3, 5, 6, 1]]  # 1 ends an answer


def walk(trie, answer):
    """The nodes of a token sequence, as far as the trie goes."""
    node, path = 0, []
    for token in answer:
        children = range(int(trie.first[node]), int(trie.first[node] + trie.count[node]))
        node = next((n for n in children if int(trie.token[n]) == token), None)
        if node is None:
            break
        path.append(node)
    return path


def test_the_trie_holds_every_answer_and_nothing_else():
    trie = Trie.build(ANSWERS)
    for i, answer in enumerate(ANSWERS):
        path = walk(trie, answer)
        assert len(path) == len(answer) and int(trie.item[path[-1]]) == i
        assert trie.path[i, : len(path)].tolist() == path and set(trie.path[i, len(path) :].tolist()) <= {path[-1]}
        assert all(int(trie.item[n]) == -1 for n in path[:-1])
    assert len(walk(trie, [7, 5])) == 1 and walk(trie, [3]) == [] and walk(trie, [8]) == []
    assert len(trie.token) == 1 + len({tuple(a[:n]) for a in ANSWERS for n in range(1, len(a) + 1)})
    assert int(trie.below[0]) == 5 and int(trie.below[walk(trie, [7, 3])[-1]]) == 3


def allowed_by_hand(trie, banned):
    """An item may be recommended unless banned; a node is open while such an item is below."""
    open_nodes = set()
    for i, answer in enumerate(ANSWERS):
        if i not in banned:
            open_nodes |= {0, *walk(trie, answer)}
    return torch.tensor([n in open_nodes for n in range(len(trie.token))])


@pytest.mark.parametrize(
    "banned", [[[0]], [[0, 1, 4]], [[3]], [[2, -1, -1]], [[-1, -1]], [[0, 1, 2, 3, 4]], [[0, 1], [4, -1], [3, 2]]]
)
def test_bans_close_just_the_banned_items_and_what_leads_to_nothing_else(banned):
    trie = Trie.build(ANSWERS)
    got = trie.allowed(torch.tensor(banned), len(banned))
    for row, items in zip(got, banned):
        assert torch.equal(row[1:], allowed_by_hand(trie, set(items))[1:])  # nothing leads to the root


def test_an_item_banned_twice_is_banned_once():
    trie = Trie.build(ANSWERS)
    got = trie.allowed(torch.tensor([[0, 0, 0, 0]]), 1)[0]  # a history may hold an item again
    assert torch.equal(got, allowed_by_hand(trie, {0}))


def test_no_bans_leave_everything_open():
    trie = Trie.build(ANSWERS)
    assert trie.allowed(None, 2).shape == (2, len(trie.token)) and trie.allowed(None, 2).all()


def test_equal_answers_are_refused():
    with pytest.raises(ValueError, match="same answer"):
        Trie.build([[7, 3, 1], [7, 1], [7, 3, 1]])


def test_beam_step_takes_the_best_of_all_continuations():
    scores = torch.tensor([[-1.0, -5.0], [-9.0, 0.0]])
    logits = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0))
    total = scores[:, :, None] + logits.log_softmax(-1)
    for columns, allowed in (
        (None, None),
        (torch.tensor([[[1, 3, 4], [0, 2, 5]]] * 2), torch.tensor([[[True, True, False]] * 2] * 2)),
    ):
        left = total if columns is None else total.gather(2, columns).masked_fill(~allowed, -torch.inf)
        wanted = left.flatten(1).sort(descending=True)
        best, beam, token, place = beam_step(scores, logits, 3, columns, allowed)
        torch.testing.assert_close(best, wanted.values[:, :3])
        assert torch.equal(place, wanted.indices[:, :3]) and torch.equal(beam, place // left.shape[2])
        row, column = torch.arange(2)[:, None], place % left.shape[2]
        assert torch.equal(token, column if columns is None else columns[row, beam, column])
    assert beam_step(scores, logits, 20)[0].shape == (2, 12)  # no more than there are


def test_trie_finds_what_all_answers_begin_with():
    trie = Trie.build([[3, 4, 5, 2], [3, 4, 6, 2], [3, 4, 6, 7, 2]])
    assert trie.stem == (3, 4) and trie.widths == (1, 1, 1, 2, 1, 0) and trie.most == (1, 1, 2, 2, 1)
    assert Trie.build([[3, 2], [4, 2]]).stem == () and Trie.build([[3, 4, 2]]).stem == (3, 4)
