import re

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ilm_lib.data.templates import OUR_TEMPLATES
from ilm_lib.model.indexing import Indexing
from ilm_lib.model.packing import best_fit, pack_rows
from ilm_lib.model.prompts import Item, PromptEncoder, User
from ilm_lib.model.tokenizer import train_tokenizer

ODD = [
    "",
    " ",
    "a  b\n\tc ",
    "Amélie – «L'été», 95¢",
    "攻殻機動隊",
    "👩‍👩‍👧 ok\u200b!",
    "e\u0301 vs é",
    "\x00\x7f",
    "item_0042",
    "[ PAD ]",
    "١٢٣ 3.14159 ½",
    "don't_stop__now",
    "\u2028\u00a0x",
]


@pytest.fixture
def encoder(tokenizer):
    return PromptEncoder(tokenizer, num_items=5, num_query_tokens=3)


@pytest.mark.parametrize("text", ODD)
def test_the_tokenizer_is_lossless(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_come_in_pairs(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("item_12345 7")["input_ids"])
    assert [t for t in tokens if t.isdigit()] == ["12", "34", "5", "7"]
    assert all(len(tokenizer(f"{i:02d}")["input_ids"]) == 1 for i in range(100))


def test_whole_names_are_one_token_each_and_the_longest_wins():
    names = ["item_12", "item_1234", "user_12"]
    whole = train_tokenizer(["What follows Toy items item_12 , item_1234 for Toy user_12 ?"], 500, whole=names)
    text = "Toy user_12 has item_1234 , item_12 and item_99 ."
    tokens = whole.convert_ids_to_tokens(whole(text)["input_ids"])
    assert [t for t in tokens if t in names] == ["user_12", "item_1234", "item_12"] and "99" in tokens
    assert whole.decode(whole(text)["input_ids"]) == text
    assert PromptEncoder(whole, num_items=5, num_query_tokens=0).cuts


def test_every_pair_is_one_token_however_many_words_want_a_place():
    words = [f"{a}{b}{c}{d} " * 99 for a in "bcdfg" for b in "aeiou" for c in "klmnp" for d in "aeiou"]
    small = train_tokenizer(words, 500)
    assert len(small) <= 500
    assert all(len(small(f"{i:02d}")["input_ids"]) == 1 for i in range(100))


@pytest.mark.parametrize("text", [t for t in ODD if t] + ["What follows Toy items item_301 ?"])
def test_a_prompt_of_text_has_exactly_the_ids_of_its_text(encoder, tokenizer, text):
    want = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    for prompt in ([text], list(text)):  # strings are joined before they are tokenized
        ids, slots = encoder.encode(prompt)
        assert ids.tolist() == want and len(slots) == 0


PRE_TOKENIZERS = {  # how tokenizers find words, and whether a text may be cut before a blank
    "gpt2": (pre_tokenizers.ByteLevel(add_prefix_space=False), True),
    "a word begins with a mark": (pre_tokenizers.Metaspace(prepend_scheme="always"), True),
    "a text begins with a mark": (pre_tokenizers.Metaspace(prepend_scheme="never"), False),
    "no words": (pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), False),
}


@pytest.mark.parametrize("kind", PRE_TOKENIZERS)
def test_any_tokenizer_gives_the_ids_of_the_whole_text(kind):
    split, may_cut = PRE_TOKENIZERS[kind]
    raw = Tokenizer(models.BPE(unk_token="[UNK]"))
    raw.pre_tokenizer = split
    if kind == "a text begins with a mark":
        raw.normalizer = normalizers.Prepend(" ")
    texts = [t.source.replace("{", " ").replace("}", " ") + " Toy item_13 , item_4 " for t in OUR_TEMPLATES]
    raw.train_from_iterator(
        texts * 3,
        trainers.BpeTrainer(
            vocab_size=900, special_tokens=["[EOS]", "[UNK]"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="[EOS]")
    encoder = PromptEncoder(tokenizer, 5, 0)
    assert encoder.cuts == may_cut
    prompts = [INDEXING.render(t.source, 1, [2, 0, 1] * ("{history}" in t.source)) for t in OUR_TEMPLATES]
    for prompt in [*prompts, *([text] for text in ODD), *map(list, ODD)]:
        text = "".join(s for s in prompt if isinstance(s, str))
        assert encoder.encode(prompt)[0].tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    "source",
    [t.source for t in OUR_TEMPLATES]
    + [
        "{history}",
        "Of {dataset}'s {history}, and then?",
        "  {user_id}{history} . ",
        "For user_{user_id} has {history}!",
    ],
)
def test_rendered_pieces_are_the_filled_template(encoder, tokenizer, source):
    history = [2, 0, 0, 1] * ("{history}" in source)
    prompt = INDEXING.render(source, 0, history)
    named = " , ".join(f"item_{INDEXING.item_index[i]}" for i in history)
    text = source.format(dataset="ML1M", user_id=1, history=named)
    assert "".join(s for s in prompt if isinstance(s, str)) == text
    bare = PromptEncoder(tokenizer, num_items=5, num_query_tokens=0)
    assert bare.cuts and bare.encode(prompt)[0].tolist()[1:] == tokenizer(text)["input_ids"]


def test_without_query_tokens_the_slots_are_left_out(tokenizer):
    bare = PromptEncoder(tokenizer, num_items=5, num_query_tokens=0)
    assert bare.encode(["user_7", User(1), " saw it"]) == bare.encode(["user_7 saw it"])


PROMPTS = [["Toy ", Item(4), " and ", User(1), " or ", Item(4)], [Item(0), " then ?"], ["no slot at all"]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_slots_lie_where_their_segment_was(encoder, tokenizer, side):
    batch = encoder.batch(PROMPTS, side=side)
    assert batch.entities.tolist() == [0, 4, 6]  # distinct; user 1 follows the five items
    assert batch.entities[batch.slot_entity].tolist() == [4, 6, 4, 0] and batch.slot_row.tolist() == [0, 0, 0, 1]
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    for b, prompt in enumerate(PROMPTS):
        slots, row, at = batch.slot_start[batch.slot_row == b].tolist(), batch.input_ids[b].tolist(), 0
        mask = batch.attention_mask[b].bool()
        at = int(mask.int().argmax()) + 1  # after the beginning of sequence
        assert row[at - 1] == tokenizer.bos_token_id
        for segment in prompt:
            if isinstance(segment, str):
                assert row[at : at + len(ids(segment))] == ids(segment)
                at += len(ids(segment))
            else:
                assert slots.pop(0) == at
                at += 3
        assert not slots and at == (len(row) if side == "left" else int(mask.sum()))
        assert (batch.position_ids[b][~mask] == 0).all()


@pytest.mark.parametrize("pack", [False, True])
def test_items_do_not_move_the_positions_of_text(tokenizer, pack):
    prompts = [["Toy", Item(4), " and", User(1), " or", Item(4), Item(0)], [Item(0), " then ?"], ["no slot at all"]]
    answers = [" yes", " no", " perhaps so"]
    bare, shared, own = (
        PromptEncoder(tokenizer, 5, tokens, positions)
        for tokens, positions in ((0, "shared"), (3, "shared"), (3, "own"))
    )
    for prompt, answer in zip(prompts, answers):
        text, near, far = (e.batch([prompt], [answer]) for e in (bare, shared, own))
        slots = torch.zeros_like(near.segment, dtype=torch.bool)
        slots[near.slot_row[:, None], near.slot_start[:, None] + torch.arange(3)] = True
        assert near.position_ids[~slots].tolist() == text.position_ids[0].tolist() == list(range(text.segment.shape[1]))
        before = near.position_ids.roll(1)
        assert torch.equal(near.position_ids[slots], before[slots])  # each as the token before it
        assert far.position_ids[0].tolist() == list(range(far.segment.shape[1]))
    for encoder in (bare, shared, own):  # packed or not, every prompt counts from 0
        batch = encoder.batch(prompts, answers, pack=pack)
        found = [
            batch.position_ids[r][batch.segment[r] == n].tolist()
            for r in range(len(batch.segment))
            for n in range(1, int(batch.segment[r].max()) + 1)
        ]
        alone = [encoder.batch([p], [a]).position_ids[0].tolist() for p, a in zip(prompts, answers)]
        assert sorted(found) == sorted(alone)


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_are_the_answer_or_all_text_but_never_slots(encoder, tokenizer, side):
    answers = [" item_301", " item_4", " yes"]
    target, text = (encoder.batch(PROMPTS, answers, side=side, loss_on=on) for on in ("target", "text"))
    assert torch.equal(target.input_ids, text.input_ids)
    for b, answer in enumerate(answers):
        want = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        labels, mask = target.labels[b], target.attention_mask[b].bool()
        assert labels[labels != -100].tolist() == want
        assert labels[mask][-len(want) :].tolist() == want
        slots = torch.zeros_like(mask)
        for start in text.slot_start[text.slot_row == b]:
            slots[start : start + 3] = True
        slots[mask.int().argmax()] = True  # nothing comes before the first token
        assert torch.equal(text.labels[b], text.input_ids[b].masked_fill(~mask | slots, -100))


@pytest.mark.parametrize("on", ["target", "text"])
def test_packed_rows_hold_the_same_prompts(encoder, on):
    prompts = [*PROMPTS, [Item(3)], ["yes"], ["a b c d e f g h"], [Item(1), " and ", Item(1)]]
    answers = [" item_301", " item_4", " yes", "", " no", " item_99 .", " item_4"]
    plain, packed = (encoder.batch(prompts, answers, loss_on=on, pack=p) for p in (False, True))
    assert packed.packed and not plain.packed and len(packed.segment) < len(plain.segment)
    assert plain.segment.shape[1] <= packed.segment.shape[1] < 1.25 * plain.segment.shape[1] + 16
    assert packed.segment.shape[1] % 16 == 0

    def held(batch):
        """Every prompt's ids, labels and positions, and its slots as (entity, start in the prompt)."""
        found = []
        for b, numbers in enumerate(batch.segment):
            for n in set(numbers.tolist()) - {0}:
                here = numbers == n
                at = here.nonzero().flatten().tolist()
                assert at == list(range(at[0], at[-1] + 1))
                slots = [
                    (int(batch.entities[e]), int(s) - at[0])
                    for r, s, e in zip(batch.slot_row, batch.slot_start, batch.slot_entity)
                    if int(r) == b and int(s) in at
                ]
                found.append(
                    (
                        batch.input_ids[b, here].tolist(),
                        batch.labels[b, here].tolist(),
                        batch.position_ids[b, here].tolist(),
                        slots,
                    )
                )
        return sorted(found)

    assert held(packed) == held(plain)
    for batch in (packed, plain):
        after = batch.labels.flatten()[1:]
        assert batch.scored.tolist() == (after != -100).nonzero().flatten().tolist()


@pytest.mark.parametrize("positions", ["shared", "slot", "own"])
def test_what_all_prompts_begin_with_stands_once(tokenizer, monkeypatch, positions):
    """Ids, positions, labels and slots of the rest are those of the whole prompts."""
    encoder = PromptEncoder(tokenizer, 50, 3, positions)
    begin = "Say in a few plain words of your own "
    prompts = [[begin, Item(3), "?"], [begin + "what", Item(1), " and ", Item(3), " share"], [begin, Item(1)]]
    answers = [" item_301", " yes no yes", " no"]
    short = encoder.batch(prompts, answers, pack=True)
    monkeypatch.setattr("ilm_lib.model.packing.SHORTEST", 1000)
    whole = encoder.batch(prompts, answers, pack=True)
    assert whole.start is None and short.start is not None
    P = len(short.start)
    assert (
        short.start.tolist() == encoder.encode(prompts[0])[0][:P].tolist()
        and 8 <= P <= encoder.encode(prompts[0])[1][0]
    )

    def held(batch, skip):
        found = []
        for b, n in {(b, n) for b, row in enumerate(batch.segment.tolist()) for n in row if n}:
            at = (batch.segment[b] == n).nonzero().flatten()[skip:]
            mine = [(int(s - at[0]), int(batch.entities[e])) for r, s, e in
                    zip(batch.slot_row, batch.slot_start, batch.slot_entity) if r == b and s in at]  # fmt: skip
            rows = (batch.input_ids, batch.labels, batch.position_ids)
            found.append((*(row[b, at].tolist() for row in rows), mine))
        return sorted(found)

    assert held(short, 0) == held(whole, P)
    see = short.reading(torch.float32)["attention_mask"][:, 0] == 0
    assert see[..., :P].all() and see.shape[2] == P + short.segment.shape[1]


def test_no_start_is_shared_where_it_is_asked_for(encoder):
    """The loss on all text, a row a prompt, one prompt alone, and prompts that differ early have none."""
    same = ["a b c d e f g h i j k l m n o p q r"] * 2
    batch = lambda prompts, **k: encoder.batch([[p] for p in prompts], [" yes"] * len(prompts), **k)
    assert batch(same, pack=True).start is not None
    assert len(batch(same, pack=True).scored) == len(batch(same).scored)  # the first token of an answer follows one
    assert batch(same, pack=True, loss_on="text").start is None and batch(same).start is None
    assert batch(same[:1], pack=True).start is None and batch(["x" + same[0], same[0]], pack=True).start is None


def test_a_packed_prompt_sees_itself_alone(encoder):
    batch = encoder.batch([["a b c d"], ["e"], ["f g"]], pack=True)
    see = batch.reading(torch.float32)["attention_mask"][:, 0] == 0
    for row, numbers in zip(see, batch.segment.tolist()):
        wanted = [[(a == b and j <= i) for j, b in enumerate(numbers)] for i, a in enumerate(numbers)]
        assert row.tolist() == wanted
    assert max(map(max, batch.segment.tolist())) > 1


def test_rows_the_llm_cannot_read_are_not_packed(tokenizer):
    encoder = PromptEncoder(tokenizer, 5, 3, packs=lambda length: length <= 6)
    assert encoder.batch([["a"], ["b"], ["c d"]], pack=True).packed
    long = encoder.batch([["a"], ["b"], [Item(1), Item(2), " c d"]], pack=True)
    assert not long.packed and len(long.segment) == 3


def test_rows_are_as_wide_as_leaves_least_empty():
    lengths = np.array([160, 144, 32, 32])  # 160 | 144 | 32 32 leaves 112 empty, 160 32 | 144 32 but 16
    for widest, wanted in ((999, 192), (176, 160)):
        row, _, _, width = pack_rows(lengths, lambda width: width <= widest)
        assert width == wanted and row.max() + 1 == -(-lengths.sum() // width)


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [9, 1, 8, 2, 7, 3, 6, 4, 5, 5], list(range(1, 40))])
def test_best_fit_lays_every_prompt_once(lengths):
    lengths = np.array(lengths)
    row, offset, number, _ = best_fit(lengths, max(lengths))
    taken = np.zeros((row.max() + 1, max(lengths)), dtype=int)
    for r, o, n, length in sorted(zip(row, offset, number, lengths), key=lambda p: p[2]):
        assert (taken[r, o : o + length] == 0).all() and (n == 1 or taken[r, o - 1] == n - 1)
        taken[r, o : o + length] = n
    assert (taken > 0).sum() == lengths.sum() and taken[:, 0].all()
    assert len(taken) <= np.ceil(lengths.sum() / max(lengths)) * 11 / 9 + 1


def test_too_long_a_prompt_is_refused_with_its_length(encoder):
    width = encoder.batch(PROMPTS).input_ids.shape[1]
    assert encoder.batch(PROMPTS, max_length=width).input_ids.shape[1] == width
    with pytest.raises(ValueError, match=f"{width} tokens.*{width - 1}"):
        encoder.batch(PROMPTS, max_length=width - 1)


@pytest.mark.parametrize("slot, error", [(Item(5), IndexError), (7, TypeError), (None, TypeError)])
def test_bad_slots_are_refused(encoder, slot, error):
    with pytest.raises(error):
        encoder.batch([["film ", slot]])


def test_a_tokenizer_without_an_end_is_refused(tokenizer):
    import copy

    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence"):
        PromptEncoder(endless, 5, 1)


INDEXING = Indexing("ML1M", np.array([1, 17]), np.array([1001, 1002, 1444]), " , ")


def test_every_index_is_followed_by_its_slot():
    prompt = INDEXING.render("What follows {dataset} items {history} for {dataset} user_{user_id} ?", 1, [2, 0])
    assert [s for s in prompt if not isinstance(s, str)] == [Item(2), Item(0), User(1)]
    text = "".join(s if isinstance(s, str) else {Item: "<I>", User: "<U>"}[type(s)] for s in prompt)
    assert text == "What follows ML1M items item_1444<I> , item_1001<I> for ML1M user_17<U> ?"


def test_a_template_without_history_has_the_user_alone():
    assert INDEXING.render("{dataset} user_{user_id}", 0) == ["ML1M", " user_1", User(0)]


@pytest.mark.parametrize("target", ["{dataset} {target}", "{dataset} item_{target}", " {target} "])
def test_answers_match_the_papers_expression(target):
    for row, index in enumerate(INDEXING.item_index):
        answer = INDEXING.answer(target, row)
        assert answer.startswith(" ") and re.match(r".*item_(\d+)$", answer)[1] == str(index)
        assert answer.count("item_") == 1 and ("ML1M" in answer) == ("dataset" in target)
