"""What is written in a conversation: measures with known answers, and how probable a person's words are."""

import math

import numpy as np
import pytest
import torch

from ilm_lib import Item
from ilm_lib.data.conversations import Dialogue, Film, Turn
from ilm_lib.model.reply import FRAME, LEADS
from ilm_lib.study.replies import before_people
from ilm_lib.tasks.replies import Name, Written, distinct, person_nll, reply_measures, write

ASKS = [{"role": "user", "content": ["I liked ", Item(3), ", something sadder?"]}]
SAID = ["Have you seen ", Item(7), "? It made me cry"]


def test_different_ngrams_over_all():
    assert distinct(["a good film", "A good book"], 1) == 4 / 6
    assert distinct(["a good film", "a good book"], 2) == 3 / 4
    assert distinct(["so so so so"], 2) == 1 / 3 and distinct(["never the same word"], 2) == 1
    assert math.isnan(distinct(["word"], 2)) and math.isnan(distinct([], 1))


def test_replies_are_counted():
    good = [Written([3], [1, 2], [(1, " a sad one"), (2, " a long one")]), Written([], [4], [(4, " an old one")])]
    assert reply_measures(good, 10) == {
        "links_valid": 1, "repeated": 0, "distinct-1": 6 / 9, "distinct-2": 1.0
    }  # fmt: skip
    bad = [Written([1], [1, 2], [(1, " x"), (2, " x"), (5, " x"), (12, " x")])]  # 5 not recommended, 12 no item
    found = reply_measures(bad, 10)
    assert (found["links_valid"], found["repeated"], found["distinct-1"]) == (0.5, 0.5, 0.25)
    assert all(map(math.isnan, reply_measures([Written([3], [], [])], 10).values())), "one who asks back names nothing"


def test_a_model_writes_real_items_that_are_new(new_talker):
    ilm = new_talker()
    replies = write(ilm, [ASKS, [{"role": "user", "content": "Hello"}]])
    assert replies[0].named == [3] and len(replies[0].recommended) == 2 and not replies[1].recommended
    assert [row for row, _ in replies[0].said] == replies[0].recommended and all(text for _, text in replies[0].said)
    found = reply_measures(replies, ilm.num_items)
    assert (found["links_valid"], found["repeated"]) == (1, 0)
    assert write(ilm, [ASKS]) == write(ilm, [ASKS])


def test_what_stands_around_items_is_not_counted_as_written(new_talker):
    ilm = new_talker()
    (reply,) = write(ilm, [ASKS])
    whole = ilm.chat(ASKS, 2).text
    fixed = [part for part in (*LEADS, FRAME) if part in whole]
    assert fixed and len(reply.said) == 2
    assert not any(part in text for part in fixed for _, text in reply.said)


# ---------------------------------------------------------------- a person's words


@torch.no_grad()
@pytest.mark.parametrize("llm", ["llama", "gpt2"])
def test_words_between_films_count_and_nothing_else(new_talker, llm):
    ilm = new_talker(llm)
    (nats,), (count,) = person_nll(ilm, [(ASKS, SAID)])
    titles = ilm.names().spoken
    shown = ilm.head.prompt
    before = [p for p in shown.render(shown.template(ilm.tokenizer), titles, ASKS, ilm.num_users).prompt][:-1]
    expected, tokens = 0.0, 0
    for start, words in (
        ([*before, "Have"], " you seen"),
        ([*before, "Have you seen", f" {titles[7]}", Item(7), "?"], " It made me cry"),
    ):
        batch = ilm.encode([start], answers=[words])
        nll = torch.nn.functional.cross_entropy(ilm(batch).logits.float(), batch.targets, reduction="none")
        expected, tokens = expected + nll[:-1].sum().item(), tokens + len(nll) - 1  # the last one closes an answer
    assert count == tokens and nats == pytest.approx(expected, rel=1e-4)


def test_the_same_words_count_however_films_are_shown(new_talker):
    ilm = new_talker()
    with_tokens, titles = (person_nll(ilm, [(ASKS, SAID)], tokens=tokens) for tokens in (True, False))
    assert with_tokens[1] == titles[1] > 0 and with_tokens[0] != titles[0]


def test_names_of_films_that_the_catalogue_lacks_are_read_and_do_not_count(new_talker):
    ilm = new_talker()
    said = lambda name: [(ASKS, ["Have you seen ", name, "? It made me cry"])]
    (nats,), (count,) = person_nll(ilm, said(Name("A Film of Many Words (1999)")))
    (other,), (as_many,) = person_nll(ilm, said(Name("Short (2001)")))
    assert count == as_many == person_nll(ilm, [(ASKS, SAID)])[1][0] and nats != other
    assert person_nll(ilm, said("A Film of Many Words (1999)"))[1][0] > count, "as words it would count"


def test_turns_together_are_as_each_alone(new_talker):
    ilm = new_talker()
    turns = [
        (ASKS, SAID),
        (ASKS, [Item(1), " then"]),
        ([{"role": "user", "content": "Hello there"}], ["What do you like?"]),
    ]
    together = person_nll(ilm, turns, batch=3)
    for n, turn in enumerate(turns):
        (nats,), (count,) = person_nll(ilm, [turn])
        assert together[0][n] == pytest.approx(nats, rel=1e-4) and together[1][n] == count
    assert together[1][1] > 0


def test_before_people_ends_where_a_new_film_answers_the_seeker():
    film = lambda n: Film(f"f{n}", f"Film {n}")
    one = Dialogue(
        "1", (Turn(True, ("Hi",)), Turn(False, (film(3),)), Turn(True, (film(3), " is good, ", film(7)))), {}
    )
    two = Dialogue("2", (Turn(True, (film(1),)), Turn(False, ("no",)), Turn(True, (film(2),))), {})
    none = Dialogue("3", (Turn(True, (film(1),)),), {})
    rows = {f"f{n}": n for n in range(10)}
    found = before_people([one, two, none], rows, 9)
    assert [content for _, content in found] == [[Item(3), " is good, ", Item(7)], [Item(2)]]
    assert [len(turns) for turns, _ in found] == [2, 2] and found[0][0][-1]["role"] == "user"
    assert len(before_people([one, two] * 20, rows, 5)) == 5
    strange = Dialogue("4", (Turn(False, ("Hi",)), Turn(True, (film(99), " or ", film(7)))), {})
    ((_, content),) = before_people([strange], rows, 9)
    assert content == ["Film 99", " or ", Item(7)] and [isinstance(p, Name) for p in content] == [True, False, False]
    assert np.unique([len(t) for t, _ in before_people([one, two] * 20, rows, 100)]).tolist() == [2]
