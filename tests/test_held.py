"""What the LLM has read of a conversation is held: only what is new is read, and nothing comes out otherwise."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import FOLD, ITEMS
from test_reply import items_of, said

from ilm_lib import ILM, Item
from ilm_lib.model import held
from ilm_lib.model.held import Reading, Readings, common, piece_ends, places_of
from ilm_lib.model.pen import Pen
from ilm_lib.model.recommend import dialogue_queries, place_queries

KINDS = ["llama", "qwen2", "gpt2", "gemma3", "opt", "gpt_neox", "bloom"]  # gemma3 looks back over six places
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SAYS = [
    "Something like Film 3, please, but sadder than that",
    "No, another one. Funnier!",
    "I liked Film 5. What else?",
]


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch):
    monkeypatch.setattr(held, "SHORT", 12)
    monkeypatch.setattr(held, "LONG", 40)
    monkeypatch.setattr("ilm_lib.model.pen.SENTENCE", 5)


@pytest.fixture(scope="module")
def new_taught(new_talker):
    """new_taught("gpt2"): as new_talker; the LLM has a chat template, and items have texts."""

    def make(llm="llama", **given):
        bare = new_talker(llm, side={"layers": 1, "heads": 2}, history_max=40, **given)
        tokenizer = copy.deepcopy(bare.tokenizer)
        tokenizer.chat_template = TEMPLATE
        names = replace(bare.catalogue, texts=[f"{title}. Drama. It ends badly." for title in bare.catalogue.titles])
        return ILM(bare.llm, tokenizer, bare.encoder, bare.cf, ITEMS, names, "slot", FOLD, bare.head).eval()

    return make


def talked(ilm, *says, fresh=False):
    """The replies of a conversation, and how many places the LLM read before it wrote each."""
    turns, replies, counts, read = [], [], [], Reading.read
    with pytest.MonkeyPatch.context() as patch:
        counted = lambda own, call, places, *a, **b: (counts.append(len(places)), read(own, call, places, *a, **b))[1]
        patch.setattr(Reading, "read", counted)
        for text in says:
            turns = [*turns, *said(text)]
            if fresh:
                ilm.readings.clear()
            counts.append(0)
            reply = ilm.chat(turns, k=2)
            replies.append((reply.recommended, reply.content))
            turns = [*turns, {"role": "assistant", "content": reply.content}]
    starts = [at for at, count in enumerate(counts) if not count]
    return replies, [sum(counts[start:stop]) for start, stop in zip(starts, [*starts[1:], None])]


def the_same(a, b, atol=1e-5):
    for (found, content), (wanted, expected) in zip(a, b, strict=True):
        assert content == expected and [one.item for one in found] == [one.item for one in wanted]
        scores = [[one.log_probability for one in some] for some in (found, wanted)]
        assert scores[0] == pytest.approx(scores[1], abs=atol)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_is_answered_as_if_all_of_it_were_read_anew(new_taught, kind, attention):
    ilm = new_taught(kind)
    ilm.llm.set_attn_implementation(attention)
    told, counts = talked(ilm, *SAYS)
    anew, all_of_it = talked(ilm, *SAYS, fresh=True)
    the_same(told, anew)
    # The third turn does not fit into every LLM's 512 tokens beside the first: then the prompt begins elsewhere.
    assert counts[0] == all_of_it[0] and counts[1] < all_of_it[1] - 30


def test_the_held_read_is_the_read_of_training(new_taught):
    """Piece by piece or whole, several dialogues at once or one: the same queries."""
    ilm = new_taught()
    dialogues = [ilm.chat(said(*SAYS[: n + 1] * 2)[:-1], writes=False).understood for n in range(3)]
    shown, name = ilm.head.prompt, ilm.names()
    for turns in dialogues:
        asked = shown.render(shown.template(ilm.tokenizer), name.spoken, turns, ilm.num_users)
        expected = dialogue_queries(ilm, [turns])
        for _ in range(2):
            torch.testing.assert_close(place_queries(ilm, [asked], held=True)[-1:], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_even_rounding_is_the_same_in_bfloat16(new_taught, kind):
    ilm = new_taught(kind)
    ilm.llm.to(torch.bfloat16)
    ilm.encoder.to(torch.float32)
    told, _ = talked(ilm, *SAYS)
    the_same(told, talked(ilm, *SAYS, fresh=True)[0], atol=0.05)


@pytest.mark.parametrize("edit", ["Something like Film 4 then", "Something like Film 3, please, but sadder than this"])
def test_an_earlier_turn_may_be_edited(new_taught, edit):
    ilm = new_taught()
    turns = said(SAYS[0])
    for text in SAYS[1:]:
        turns = [*turns, {"role": "assistant", "content": ilm.chat(turns, k=2).content}, *said(text)]
    ilm.chat(turns, k=2).text
    turns[0] = {"role": "user", "content": edit}
    found = [(reply.recommended, reply.content) for reply in (ilm.chat(turns, k=2), ilm.chat(turns, k=2))]
    ilm.readings.clear()
    anew = ilm.chat(turns, k=2)
    the_same(found, [(anew.recommended, anew.content)] * 2)


def test_what_is_rejected_later_changes_what_was_read_of_the_seeker(new_taught):
    ilm = new_taught()
    turns = said(SAYS[0], "How about Film 4?", SAYS[1])
    ilm.chat(turns).text
    told = ilm.chat(turns, rejected=["Film 4"])
    told = told.recommended, told.content
    ilm.readings.clear()
    anew = ilm.chat(turns, rejected=["Film 4"])
    the_same([told], [(anew.recommended, anew.content)])


def test_conversations_do_not_disturb_each_other(new_taught, monkeypatch):
    ilm = new_taught()
    alone, _ = talked(ilm, *SAYS)
    ilm.readings.clear()
    others = ["A western, please, as long as you can find", "Nothing like Film 7", "and another one"]
    turns = {}
    for text, other in zip(SAYS, others):
        for who, says in (("a", text), ("b", other)):
            turns[who] = [*turns.get(who, []), *said(says)]
            reply = ilm.chat(turns[who], k=2)
            turns[who].append({"role": "assistant", "content": reply.content})
    assert [turn["content"] for turn in turns["a"][1::2]] == [content for _, content in alone]
    assert len(ilm.readings) >= 4, "two conversations, read to rank and to write"
    monkeypatch.setattr(held, "HELD", 1)
    ilm.chat([*turns["a"], *said("more")], k=2).text
    assert len(ilm.readings) == 1


def test_two_replies_may_be_written_in_turn(new_taught):
    ilm = new_taught()
    turns = said(SAYS[0], "How about Film 4?", SAYS[1], "How about Film 6?", SAYS[2])
    expected = ilm.chat(turns, k=2).content
    one, two = iter(ilm.chat(turns, k=2)), iter(ilm.chat(turns, k=2))
    parts = [[], []]
    for a, b in zip(one, two, strict=True):
        parts[0].append(a)
        parts[1].append(b)
    joined = ["".join(ilm.title(p) if isinstance(p, Item) else p for p in own) for own in (*parts, expected)]
    assert joined[0] == joined[1] == joined[2]


CHANGES = {
    "the LLM's weights": lambda ilm: ilm.llm.get_input_embeddings().weight.mul_(1.5),
    "the encoder's weights": lambda ilm: ilm.encoder.out.weight.mul_(-1),
    "the vectors": lambda ilm: ilm.cf.mul_(-1),
    "the precision": lambda ilm: ilm.llm.to(torch.float64),
    "attention": lambda ilm: ilm.llm.set_attn_implementation("eager"),
    "the read-out's free parts": lambda ilm: ilm.head.free.add_(1),
}


@pytest.mark.parametrize("what", CHANGES)
@torch.no_grad()
def test_what_is_held_goes_with_what_it_was_made_of(new_taught, what):
    ilm = new_taught()
    turns = said(SAYS[0], "How about Film 4?", SAYS[1])
    ilm.chat(turns, writes=False)
    assert len(ilm.readings) == 1
    CHANGES[what](ilm)
    batch = ilm.encode([[Item(3), " and a text that is long enough to be held"]])
    reading = ilm.readings.take(ilm, "slots", places_of(ilm, batch), 0)
    assert not len(ilm.readings) and not reading.places


def test_training_and_copying_forget(new_taught):
    ilm = new_taught()
    ilm.chat(said(SAYS[0], "How about Film 4?", SAYS[1])).text
    assert len(ilm.readings) == 2
    assert not len(copy.deepcopy(ilm.readings))
    ilm.train().eval()
    assert not len(ilm.readings)


def test_a_read_that_is_broken_off_is_not_held(new_taught, monkeypatch):
    ilm = new_taught()
    turns = said(SAYS[0], "How about Film 4?", SAYS[1])
    expected = ilm.chat(turns, k=2).content
    reply = iter(ilm.chat(turns, k=2))
    while next(reply) != expected[1]:
        pass
    next(reply), next(reply)  # it writes
    with monkeypatch.context() as patch:
        patch.setattr(ilm.llm.model.layers[-1], "forward", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            next(reply)
    assert len(ilm.readings) == 1, "that of the read-out"
    assert ilm.chat(turns, k=2).content == expected


def test_layers_that_cannot_go_back_are_read_anew(new_taught, monkeypatch):
    """As those with a state in the place of keys; here a window is taken for one."""
    ilm = new_taught("gemma3")
    expected, _ = talked(ilm, *SAYS, fresh=True)
    ilm.readings.clear()
    monkeypatch.setattr(held, "DynamicSlidingWindowLayer", type(None))
    told, _ = talked(ilm, *SAYS)
    assert [content for _, content in told] == [content for _, content in expected]


def test_a_reply_that_nobody_hears_to_its_end_is_held(new_taught):
    ilm = new_taught()
    reply = iter(ilm.chat(said(SAYS[0], "How about Film 4?", SAYS[1]), k=2))
    for _ in range(4):
        next(reply)
    assert len(ilm.readings) == 1
    reply.close()
    del reply
    assert len(ilm.readings) == 2


def test_pieces_end_where_what_stands_before_says():
    end, word = (7, -1), (1, -1)
    places = [word] * 5 + [end] + [word] * 8 + [end] + [word] * 50 + [end]
    assert piece_ends(places, 7) == [15, 55] and piece_ends([*places, *[word] * 30], 7) == [15, 55, 95]
    assert all(piece_ends(places[:n], 7) == [e for e in [15, 55] if e <= n] for n in range(len(places)))
    assert common(places, places[:9]) == 9 and common(places, [*places[:3], end]) == 3 and common([], places) == 0


def test_nothing_is_held_of_what_is_too_short(new_taught, monkeypatch):
    monkeypatch.setattr(held, "SHORT", 500)
    monkeypatch.setattr(held, "LONG", 500)
    ilm = new_taught()
    reply = ilm.chat(said("Film 3"), k=1)
    assert items_of(reply.content) and not len(ilm.readings) and isinstance(ilm.readings, Readings)
    assert "".join(Pen(ilm).sentence(["a film"])) == "".join(Pen(ilm).sentence(["a film"]))
