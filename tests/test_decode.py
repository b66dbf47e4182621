import pytest
import torch
from transformers import DynamicLayer

from ilm_lib.model.decode import beam_search
from ilm_lib.model.exhaustive import score_all
from ilm_lib.model.kernels import Trie
from ilm_lib.model.masks import takes_4d_mask
from ilm_lib.model.readers import Prefill, Room, Rows, Tree

KINDS = ["llama", "qwen2", "gpt2", "gemma3", "opt", "gpt_neox", "bloom"]
EOS, VOCAB = 2, 40
PROMPTS = [[1, 5, 9, 30, 7, 8, 21, 33, 4], [1, 17, 6], [1, 11, 12, 13, 12, 11]]
# Answers of four lengths with shared beginnings; 14 items, so 16 beams find them all.
ANSWERS = (
    [[3, a, EOS] for a in range(5, 10)]
    + [[3, 10, b, EOS] for b in (5, 9, 20, 21)]
    + [[4, 30, 31, c, EOS] for c in (5, 6, 7)]
    + [[4, EOS], [39, 38, EOS]]
)


@pytest.fixture(scope="module", params=KINDS)
def llm(request, new_llm):
    model = new_llm(request.param, VOCAB, spread=0.2, eos=EOS)
    likely_end = torch.zeros(VOCAB).index_fill_(0, torch.tensor(EOS), 3.0)  # answers end after a few tokens
    model.lm_head.register_forward_hook(lambda module, args, logits: logits + likely_end)
    return model


def left_padded(prompts):
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask


@torch.no_grad()
def read(llm, prompts=PROMPTS):
    ids, mask = left_padded(prompts)
    out = llm(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0), use_cache=True)
    return Prefill(out.past_key_values, out.logits[:, -1], mask)


def search(llm, prefill, trie=None, **kwargs):
    return beam_search(llm, prefill, **{"beams": 10, "eos_id": EOS, "max_new_tokens": 5, "trie": trie, **kwargs})


@torch.no_grad()
def answer_scores(llm, prompt):
    """(I,) log probability of every answer, one unpadded forward pass each."""
    scores = []
    for answer in ANSWERS:
        logp = llm(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        scores.append(sum(logp[len(prompt) + i - 1, token] for i, token in enumerate(answer)))
    return torch.stack(scores)


def hugging_face(llm, prompts, length_penalty=0.0, **kwargs):
    """Rows of (tokens before the end, score), best first."""
    ids, mask = left_padded(prompts)
    out = llm.generate(
        input_ids=ids,
        attention_mask=mask,
        num_beams=10,
        num_return_sequences=10,
        do_sample=False,
        length_penalty=length_penalty,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
        **kwargs,
    )
    rows = [(s[: s.index(EOS)] if EOS in s else None) for s in out.sequences[:, ids.shape[1] :].tolist()]
    scores = out.sequences_scores.tolist()
    return [list(zip(rows[i : i + 10], scores[i : i + 10])) for i in range(0, len(rows), 10)]


def ours(beams, b):
    return [
        ([t for t in row if t >= 0], score)
        for row, score in zip(beams.tokens[b].tolist(), beams.scores[b].tolist())
        if score > -torch.inf
    ]


def assert_same_answers(found, wanted):
    assert len(found) == len(wanted)
    for (tokens, score), (tokens_, score_) in zip(found, wanted):
        assert score == pytest.approx(score_, abs=1e-4) and tokens == tokens_


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_free_search_is_hugging_faces(llm, penalty):
    found = search(llm, read(llm), max_new_tokens=24, length_penalty=penalty)
    assert found.items is None
    for b, wanted in enumerate(hugging_face(llm, PROMPTS, penalty, max_new_tokens=24)):
        ended = [answer for answer in wanted if answer[0] is not None]  # the others ran into the limit
        assert len(ended) == 10 or penalty  # which favours long answers
        assert_same_answers(ours(found, b)[: len(ended)], ended)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_constrained_search_is_hugging_faces_with_allowed_tokens(llm, penalty):
    found = search(llm, read(llm), Trie.build(ANSWERS), max_new_tokens=5, length_penalty=penalty)

    def allowed(row, ids, width=len(PROMPTS[0])):
        done = ids[width:].tolist()
        return [a[len(done)] for a in ANSWERS if a[: len(done)] == done and len(a) > len(done)] or [EOS]

    for b, wanted in enumerate(hugging_face(llm, PROMPTS, penalty, max_new_tokens=5, prefix_allowed_tokens_fn=allowed)):
        assert_same_answers(ours(found, b), wanted)


def test_with_beams_to_spare_constrained_search_ranks_every_item(llm):
    found = search(llm, read(llm), Trie.build(ANSWERS), beams=16)
    for b, prompt in enumerate(PROMPTS):
        scores, items = answer_scores(llm, prompt).sort(descending=True)
        assert found.items[b].tolist() == [*items.tolist(), -1, -1]
        torch.testing.assert_close(found.scores[b, :14], scores, atol=1e-4, rtol=0)
        assert found.scores[b, 14:].tolist() == [-torch.inf] * 2
        assert [[*tokens, EOS] for tokens, _ in ours(found, b)] == [ANSWERS[i] for i in items]


@pytest.mark.parametrize(
    "banned",
    [[[0, 3, 5], [9, 10, 11], [-1, -1, -1]], [[12, -1], [0, 13], [5, 6]], [[2, 2], [5, 5], [13, 13]]],
    ids=["three", "padded", "twice"],
)
def test_bans_take_items_out_and_leave_the_order_of_the_rest(llm, banned):
    prefill, trie = read(llm), Trie.build(ANSWERS)
    every = search(llm, prefill, trie, beams=16)
    found = search(llm, prefill, trie, beams=16, banned=torch.tensor(banned))
    for b, bans in enumerate(banned):
        rest = [(i, s) for i, s in zip(every.items[b].tolist(), every.scores[b].tolist()) if i not in {*bans, -1}]
        assert found.items[b].tolist() == [i for i, _ in rest] + [-1] * (16 - len(rest))
        assert found.scores[b, : len(rest)].tolist() == pytest.approx([s for _, s in rest], abs=1e-5)


def test_with_everything_banned_nothing_is_found(llm):
    found = search(llm, read(llm), Trie.build(ANSWERS), banned=torch.arange(14).expand(3, -1))
    assert (found.items == -1).all() and (found.scores == -torch.inf).all()


def test_fewer_items_than_beams(llm):
    found = search(llm, read(llm), Trie.build(ANSWERS[:3]))
    assert found.items.shape == found.scores.shape == (3, 10)
    assert all(sorted(row[:3]) == [0, 1, 2] and set(row[3:]) == {-1} for row in found.items.tolist())
    assert (found.scores[:, :3] > -torch.inf).all() and (found.scores[:, 3:] == -torch.inf).all()


def test_what_did_not_end_is_no_answer(llm):
    for found in (search(llm, read(llm), max_new_tokens=1), search(llm, read(llm), Trie.build(ANSWERS[:3]))):
        missing = found.scores == -torch.inf
        assert missing.any() and (found.tokens[missing] == -1).all()


def test_a_prefill_can_be_searched_again(llm):
    prefill, trie = read(llm), Trie.build(ANSWERS)
    length, keys = prefill.cache.get_seq_length(), [layer.keys.clone() for layer in prefill.cache.layers]
    first = search(llm, prefill, trie)
    search(llm, prefill, max_new_tokens=9)
    second = search(llm, prefill, trie)
    assert torch.equal(first.items, second.items) and torch.equal(first.scores, second.scores)
    assert prefill.cache.get_seq_length() == length
    assert all(torch.equal(layer.keys, k) for layer, k in zip(prefill.cache.layers, keys))


def test_readers_leave_the_prefill_alone_and_agree(llm):
    prefill, kinds = read(llm), [Rows] + [Tree] * takes_4d_mask(llm, 20)
    keys = [layer.keys.clone() for layer in prefill.cache.layers]
    stem, beam = torch.tensor([[5, 6]] * 3), torch.tensor([[0, 0, 0], [0, 0, 0], [0, 0, 0]])
    steps = [
        (torch.tensor([[7, 8, 9]] * 3), beam),
        (torch.tensor([[3, 4]] * 3), torch.tensor([[2, 0], [1, 1], [0, 2]])),
    ]
    outputs = []
    with torch.no_grad():
        for reader in (kind(llm, prefill) for kind in kinds):
            outputs.append([reader.read_stem(stem), *(reader.read(*step) for step in steps)])
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(layer.keys, k) for layer, k in zip(prefill.cache.layers, keys))


def test_room_grows_when_it_is_full():
    layer, plain = DynamicLayer(), DynamicLayer()
    new = lambda n: (torch.randn(2, 3, n, 4), torch.randn(2, 3, n, 4))
    first = new(5)
    layer.update(*first), plain.update(*first)
    room = Room(layer, room=3)
    for n in (2, 4, 1):
        more = new(n)
        assert all(torch.equal(a, b) for a, b in zip(room.update(*more), plain.update(*more)))
        assert room.get_seq_length() == plain.get_seq_length() and torch.equal(room.keys, plain.keys)
    assert layer.get_seq_length() == 5


def test_the_fallback_finds_the_same(llm, monkeypatch):
    found = [search(llm, read(llm), trie, max_new_tokens=n) for trie, n in ((None, 9), (Trie.build(ANSWERS), 5))]
    monkeypatch.setattr("ilm_lib.model.readers.takes_4d_mask", lambda model, length: False)
    for a, (trie, n) in zip(found, ((None, 9), (Trie.build(ANSWERS), 5))):
        b = search(llm, read(llm), trie, max_new_tokens=n)
        assert torch.equal(a.tokens, b.tokens)
        torch.testing.assert_close(a.scores, b.scores, atol=1e-4, rtol=0)


def test_which_models_read_a_tree(llm):
    kind = llm.config.model_type
    assert takes_4d_mask(llm, 5) == (kind != "bloom")  # its position biases come from the two-dimensional mask
    assert not (kind == "gemma3_text" and takes_4d_mask(llm, 7))  # longer than its window


@pytest.mark.parametrize("width", [1, 3, 512])  # a pass for every node, some, and all
def test_score_all_is_every_answers_probability(llm, width):
    if not takes_4d_mask(llm, 20):
        with pytest.raises(ValueError, match="4-D attention mask"):
            score_all(llm, read(llm), Trie.build(ANSWERS))
        return
    for answers in (ANSWERS, ANSWERS[5:9]):  # with and without a common beginning
        scores = score_all(llm, read(llm), Trie.build(answers), width=width)
        for b, prompt in enumerate(PROMPTS):
            wanted = {tuple(a): s for a, s in zip(ANSWERS, answer_scores(llm, prompt).tolist())}
            assert scores[b].tolist() == pytest.approx([wanted[tuple(a)] for a in answers], abs=1e-4)


@pytest.mark.parametrize("constrained", [True, False])
def test_a_left_padded_batch_is_its_rows(llm, constrained):
    trie = Trie.build(ANSWERS) if constrained else None
    together = search(llm, read(llm), trie, max_new_tokens=9)
    for b, prompt in enumerate(PROMPTS):
        alone = search(llm, read(llm, [prompt]), trie, max_new_tokens=9)
        assert torch.equal(together.tokens[b], alone.tokens[0])
        torch.testing.assert_close(together.scores[b], alone.scores[0], atol=1e-4, rtol=0)
