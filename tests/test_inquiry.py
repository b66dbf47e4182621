"""Questions about items: their forms, what people's dialogues say of them, and what the model answers."""

from dataclasses import replace

import pytest

from ilm_lib import Item
from ilm_lib.data.iard import IARD, read_iard
from ilm_lib.model.inquiry import asked_about
from ilm_lib.profiles import data_dir

OFFERED = {"role": "assistant", "content": ["How about ", Item(7), " or ", Item(2), "?"]}


def user(*content):
    return {"role": "user", "content": list(content)}


@pytest.mark.parametrize(
    ("content", "about"),
    [
        (["What is ", Item(3), " about?"], [3]),
        (["I liked ", Item(4), ". what\u2019s ", Item(3), " about"], [3]),
        (["Tell me more about ", Item(3), " please"], [3]),
        (["Haven't seen it. Is it a comedy?"], [7, 2]),
        (["What is that about?"], [7, 2]),
        (["whats it about"], [7, 2]),
        (["What is the first one about?"], [7]),
        (["and was the last movie any good?"], [2]),
        (["Is the third one a comedy?"], []),
        (["Who's in ", Item(3), "?"], [3]),
        (["What is the plot of ", Item(3), "? I liked ", Item(4)], [3]),
        (["Was ", Item(3), " any good? I liked ", Item(4)], [3]),
        (["Something like ", Item(3), ", but funnier?"], []),
        (["Is there something scarier?"], []),
        (["I want to know what ", Item(3), " fans like"], []),
        (["That is a good one, thanks. Another?"], []),
        ([], []),
    ],
)
def test_who_asks_about_items_is_told_from_who_wants_others(content, about):
    found = [item.row for item in asked_about([user("Hi"), OFFERED, user(*content)])]
    assert found == about, "those in the question, else those of the turn before"


def test_where_nothing_was_named_nothing_is_asked_about():
    assert asked_about([user("What is it about?")]) == []
    assert asked_about([{"role": "user", "content": "Is it a comedy?"}]) == []
    assert asked_about([user("Is \ue000 a comedy?")]) == [], "a character that stands for items inside is text"


@pytest.mark.skipif(not (data_dir() / IARD).is_file(), reason=f"needs {IARD} in ILM_DATA_DIR")
def test_in_peoples_dialogues_few_turns_are_taken_for_questions_wrongly():
    found = hit = asked = 0
    for dialogue in read_iard(data_dir() / IARD)[1::2]:  # the forms were written from the others
        said = [[Item(0) if not isinstance(p, str) else p for p in turn.content] for turn in dialogue.turns]
        turns = [{"role": "", "content": content} for content in said]
        for n, (turn, acts) in enumerate(zip(dialogue.turns, dialogue.acts)):
            if not turn.recommender:
                taken, labelled = bool(asked_about(turns[: n + 1])), "INQ" in acts
                found, hit, asked = found + taken, hit + (taken and labelled), asked + labelled
    assert (hit, found, asked) == (39, 41, 66)


# ---------------------------------------------------------------- the answer


def test_an_items_own_words_are_told_and_where_it_has_none_the_llms(new_talker):
    ilm = new_talker(side=None)
    texts = ["", *[f"{title}. Drama. {'It ends badly. ' * 40}" for title in ilm.catalogue.titles[1:]]]
    ilm.catalogue = replace(ilm.catalogue, texts=texts)
    told = ilm.chat([user("What is ", Item(3), " about?")]).text
    assert told.startswith(f"{ilm.title(Item(3))}: Drama. It ends badly.") and 70 < len(told.split()) < 90
    assert ilm.chat([user("Is ", Item(0), " any good?")]).text.startswith(f"{ilm.title(Item(0))} is")
    both = ilm.chat([user("I liked those"), OFFERED, user("What are they about?")])
    assert [p for p in both.content if isinstance(p, Item)] == [Item(7), Item(2)] and both.text.count("\n") == 1


def test_the_model_tells_of_the_item_and_recommends_nothing(new_talker):
    ilm = new_talker(side=None)
    reply = ilm.chat([user("What is ", Item(3), " about?")])
    assert reply.recommended == [] and [p for p in reply.content if isinstance(p, Item)] == [Item(3)]
    assert len(reply.text) > len(ilm.title(Item(3))) + 3
    asked = [
        user("I liked ", Item(1)),
        {"role": "assistant", "content": ilm.chat([user("I liked ", Item(1))], k=1).content},
    ]
    (offered,) = [p for p in asked[1]["content"] if isinstance(p, Item)]
    about = ilm.chat([*asked, user("What is it about?")])
    assert [p for p in about.content if isinstance(p, Item)] == [offered] and not about.recommended
    again = ilm.chat(
        [*asked, user("What is it about?"), {"role": "assistant", "content": about.content}, user("Another")]
    )
    assert again.recommended and offered not in [one.item for one in again.recommended]
