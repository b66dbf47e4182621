"""Dialogues in the prompt of the read-out: where it asks, what it has read there, and what it is trained on."""

import numpy as np
import pytest
import torch
from conftest import CF, FOLD, ITEMS, USERS

from ilm_lib import ILM, Item, User
from ilm_lib.data.conversations import Dialogue, Film, Turn
from ilm_lib.model.recommend import dialogue_queries, place_queries
from ilm_lib.model.refusals import WrongValue
from ilm_lib.sections import Score
from ilm_lib.tasks.conversation import Question, questions_of, target_ranks
from ilm_lib.tasks.dialogues import DialogueTasks, Talk, dev_metrics, scores, talks_of
from ilm_lib.tasks.scoring import NO_LOSS
from ilm_lib.train.score import train_score

TURNS = [
    {"role": "user", "content": ["Hello, I liked ", Item(3), " and ", Item(5), "."]},
    {"role": "assistant", "content": ["Have you seen ", Item(7), "?"]},
    {"role": "user", "content": "No. Something sadder"},
    {"role": "assistant", "content": [Item(1), " then, or ", Item(2)]},
    {"role": "assistant", "content": "Both are sad."},
    {"role": "user", "content": ["Thanks"]},
]
TALK = Talk(TURNS, [[7], [1, 2], []])


def rendered(ilm, turns, **options):
    shown = ilm.head.prompt
    return shown.render(shown.template(ilm.tokenizer), ilm.names().spoken, turns, USERS, **options)


def words(prompt):
    return "".join(
        f"<{s.row}>" if isinstance(s, Item) else f"[{s.row - USERS}]" if isinstance(s, User) else s for s in prompt
    )


# ---------------------------------------------------------------- the prompt


def test_the_assistant_is_asked_where_it_is_to_speak(new_talker):
    asked = rendered(new_talker(), TURNS)
    assert words(asked.prompt).splitlines() == [
        "system: You recommend films.",
        "user: Hello, I liked Film 3<3> and Film 5<5>.",
        "assistant: [0]Have you seen Film 7<7>?",
        "user: No. Something sadder",
        "assistant: [1]Film 1<1> then, or Film 2<2>",
        "[2]Both are sad.",  # who speaks twice has one turn
        "user: Thanks",
        "assistant: [3]",
    ]
    assert asked.named == [[3, 5], [3, 5, 7], [3, 5, 7, 1, 2], [3, 5, 7, 1, 2]], "what a turn names is new to it"


def test_a_dialogue_that_is_told_ends_at_the_last_place(new_talker):
    asked = rendered(new_talker(), TURNS, told=True)
    assert words(asked.prompt).splitlines()[2:] == [
        "assistant: [0]Have you seen Film 7<7>?",
        "user: No. Something sadder",
        "assistant: [1]Film 1<1> then, or Film 2<2>",
        "[2]",
    ]
    assert asked.named == [[3, 5], [3, 5, 7], [3, 5, 7, 1, 2]]


@pytest.mark.parametrize(
    ("shown", "lines"),
    [
        ({"titles": False}, ["user: Hello, I liked <3> and <5>.", "assistant: [0]"]),
        ({"tokens": False}, ["user: Hello, I liked Film 3 and Film 5.", "assistant: [0]"]),
        ({"words": False, "titles": False}, ["user: <3><5>", "assistant: [0]"]),
    ],
)
def test_what_is_shown(new_talker, shown, lines):
    asked = rendered(new_talker(**shown), TURNS[:1])
    assert words(asked.prompt).splitlines()[1:] == lines
    assert asked.named == [[] if shown == {"tokens": False} else [3, 5]]


def test_who_opens_with_a_recommendation_is_asked_as_well(new_talker):
    asked = rendered(new_talker(), TURNS[1:2], told=True)
    assert words(asked.prompt).splitlines() == ["system: You recommend films.", "user: ", "assistant: [0]"]
    with pytest.raises(WrongValue, match="no turn is the assistant's"):
        rendered(new_talker(), TURNS[:1], told=True)


@pytest.mark.parametrize("most", range(1, 9))
def test_the_oldest_go_where_there_are_too_many(new_talker, most):
    ilm = new_talker(history_max=most)
    for told in (False, True):
        asked = rendered(ilm, TURNS, told=told)
        slots = [s for s in asked.prompt if isinstance(s, (Item, User))]
        assert len(slots) <= most + 1 and isinstance(asked.prompt[-1], User)
        ilm.slot_states(ilm.encode([asked.prompt]), torch.zeros(len(asked.named), CF))  # fits the side network
    many = [{"role": "user", "content": [Item(n % ITEMS) for n in range(50)]}]
    assert dialogue_queries(ilm, [many]).isfinite().all()


# ---------------------------------------------------------------- what is read


@pytest.mark.parametrize("llm", ["llama", "gpt2", "qwen2", "gemma3"])
@pytest.mark.parametrize("encoder", ["mlp", "qformer"])
def test_a_dialogue_read_once_asks_what_its_beginnings_ask(new_talker, llm, encoder):
    """Nothing of a turn, or after it, is known where it is asked for: a planted hint there changes no query."""
    ilm = new_talker(llm, encoder=encoder)
    whole = place_queries(ilm, [rendered(ilm, TURNS, told=True)])
    for place, end in ((0, 1), (1, 3)):
        beginning = [*TURNS[:end], {"role": "assistant", "content": "the answer is 42"}]
        alone = place_queries(ilm, [rendered(ilm, beginning, told=True)])[-1]
        torch.testing.assert_close(whole[place], alone, atol=1e-4, rtol=1e-4)
    other = place_queries(ilm, [rendered(ilm, [{"role": "user", "content": "Bye"}, *TURNS[1:]], told=True)])
    assert (whole - other).abs().amax(1).min() > 1e-3, "what was said before is known"


def test_prompts_together_ask_what_each_asks_alone(new_talker):
    ilm = new_talker()
    dialogues = [TURNS[:1], TURNS, TURNS[:3]]
    together = dialogue_queries(ilm, dialogues)
    for query, turns in zip(together, dialogues):
        torch.testing.assert_close(query[None], dialogue_queries(ilm, [turns]), atol=1e-4, rtol=1e-4)


def test_a_history_is_asked_for_as_one_tells_it(new_talker):
    ilm = new_talker()
    best = ilm.recommend(history=[Item(3), Item(5)], k=4)
    assert len(best) == 4 and not {3, 5} & {one.item.row for one in best}
    told = dialogue_queries(ilm, [[{"role": "user", "content": [Item(3), ", ", Item(5)]}]])
    table, bias = ilm.table()
    order = (told @ table.T + bias)[0].argsort(descending=True).tolist()
    assert [one.item.row for one in best] == [row for row in order if row not in (3, 5)][:4]


def test_save_and_load(new_talker, tmp_path):
    ilm = new_talker(titles=False)
    again = ILM.from_pretrained(ilm.save_pretrained(tmp_path / "model"))
    assert again.head.prompt == ilm.head.prompt
    torch.testing.assert_close(dialogue_queries(again, [TURNS]), dialogue_queries(ilm, [TURNS]))


# ---------------------------------------------------------------- training


def test_targets_stand_at_the_places_that_ask(new_talker):
    ilm = new_talker()
    tasks = DialogueTasks.of(ilm)
    drawn = set()
    for number in range(20):
        histories = tasks.training_batches(ilm.prompts, [TALK], 1, seed=0)(number)
        asked = histories.targets[histories.targets != NO_LOSS].tolist()
        entities = histories.batch.entities[histories.batch.slot_entity]
        assert (histories.targets[entities < ITEMS] == NO_LOSS).all() and asked[0] == 7
        drawn.add(asked[1])
        assert len(asked) == 2 and histories.weight == 2
        zero = FOLD.many(ilm.cf[:ITEMS].numpy(), [[3, 5], [3, 5, 7], [3, 5, 7, 1, 2]])
        np.testing.assert_allclose(histories.guests.numpy(), zero, atol=1e-6)
    assert drawn == {1, 2}, "of several, each in its turn"


def test_every_talk_comes_once_before_any_comes_again(new_talker):
    ilm = new_talker()
    talks = [Talk([TURNS[0], TURNS[1]], [[row]]) for row in range(5)]
    batches = DialogueTasks.of(ilm).training_batches(ilm.prompts, [*talks, Talk(TURNS[:2], [[]])], 2, seed=1)
    for epoch in range(3):
        targets = torch.cat([batches(3 * epoch + part).targets for part in range(3)])
        assert sorted(targets[targets != NO_LOSS].tolist()) == [0, 1, 2, 3, 4]


def test_scores_come_in_the_order_of_the_questions(new_talker):
    ilm = new_talker()
    film = lambda row: Film(f"f{row}", f"Film {row}")
    one = Dialogue(
        "1", (Turn(False, ("I liked ", film(3))), Turn(True, (film(7), film(2))), Turn(True, (film(1),))), {}
    )
    other = Dialogue("2", (Turn(True, (film(4), " ", Film("x", "Unknown (1990)"))),), {})
    rows = {f"f{row}": row for row in range(ITEMS)}
    questions = questions_of([one, other], rows)
    assert [q.target for q in questions] == [7, 2, 1, 4]
    talks = talks_of([one, other], rows, questions)
    assert talks[0].targets == [[7, 2], [1]] and talks[1].turns[0]["content"] == [Item(4), " ", "Unknown (1990)"]
    found = scores(ilm, talks)
    np.testing.assert_array_equal(found[0], found[1])
    table, bias = ilm.table()
    for place, turns in ((0, talks[0].turns[:1]), (2, talks[0].turns[:2])):
        expected = (dialogue_queries(ilm, [turns]) @ table.T + bias)[0]
        np.testing.assert_allclose(found[place], expected.numpy(), atol=1e-4)
    assert len(target_ranks(found, questions)) == 4


def test_what_comes_after_the_last_question_is_not_read():
    film = lambda row: Film(f"f{row}", f"Film {row}")
    turns = (
        Turn(True, (film(7),)),
        Turn(False, ("and?",)),
        Turn(True, (film(2),)),
        Turn(False, ("ok",)),
        Turn(True, ("bye",)),
    )
    told, rows = [Dialogue("1", turns, {}), Dialogue("2", turns[3:], {})], {"f7": 7, "f2": 2}
    one, other = talks_of(told, rows, questions_of(told, rows))
    assert len(one.turns) == 3 and one.targets == [[7], [2]]
    assert other.turns == other.targets == []


def learned(new_talker, folder, talks, told):
    """dev NDCG@10 after training."""
    folder.mkdir()
    ilm = new_talker(side=None, titles=False)
    params = Score(steps=60, batch_size=8, lr=0.02, eval_every=60)
    train_score(folder, ilm, DialogueTasks.of(ilm).training_batches(ilm.prompts, talks, 8, 0), params, seed=0)
    return dev_metrics(ilm, told, [Question(n, 1, talk.targets[0][0], ()) for n, talk in enumerate(told)])[
        "dev NDCG@10"
    ]


def test_words_are_learned_from_and_shuffled_targets_teach_nothing(new_talker, tmp_path):
    rng = np.random.default_rng(0)
    colours = {"red": 1, "blue": 4, "green": 9, "black": 12}

    def talk(colour, row):
        return Talk(
            [{"role": "user", "content": f"I want {colour} now"}, {"role": "assistant", "content": [Item(row)]}],
            [[row]],
        )

    true = [talk(c, r) for c, r in colours.items()] * 6
    random = [talk(c, int(rng.choice([*colours.values()]))) for c in colours for _ in range(6)]
    told = [talk(c, r) for c, r in colours.items()]
    assert learned(new_talker, tmp_path / "a", true, told) > 0.95
    assert learned(new_talker, tmp_path / "b", random, told) < 0.85
