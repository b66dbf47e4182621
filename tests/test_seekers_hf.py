"""Seekers in an LLM's words: what rules decide stays, and what an LLM must not say is never said."""

from dataclasses import replace

import pytest
import torch
from test_seekers import CATALOGUE, FACTS, FILMS, WISH
from test_teachers import CHAT

from ilm_lib.data.teachers import TeacherError
from ilm_lib.model.tokenizer import train_tokenizer
from ilm_lib.tasks.controls import checks
from ilm_lib.tasks.seeker_words import OPENINGS, SAID, SHOTS
from ilm_lib.tasks.seekers import Conversation, Fact, TemplateSeeker, Wish, leaks
from ilm_lib.tasks.seekers_hf import SYSTEM, Rewording, tidy
from ilm_lib.tasks.simulated import SeekerWorld

ROWS = {film.id: row for row, film in enumerate(FILMS)}
SHOWN = ([2], [1], [3], [])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, new_llm):
    """A tiny LLM of random weights with a chat template."""
    said = [SYSTEM, *OPENINGS, *(text for kind in SHOTS.values() for shot in kind for text in shot)]
    tokenizer = train_tokenizer(said, 700)
    tokenizer.chat_template = CHAT
    place = tmp_path_factory.mktemp("models") / "tiny"
    llm = new_llm("llama", len(tokenizer), bos=tokenizer.bos_token_id, eos=tokenizer.eos_token_id)
    llm.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture
def words(folder, tmp_path):
    made = iter(range(9))
    return lambda **settings: Rewording(str(folder), tmp_path / f"{next(made)}.jsonl", **settings)


def saying(words, monkeypatch, says):
    """The tiny LLM with another mouth: what it says of what it was told last."""
    llm, tokenizer = words.load()

    def generate(input_ids, **settings):
        told = [tokenizer.decode(row, skip_special_tokens=True) for row in input_ids]
        new = [tokenizer(says(text.rpartition("<user>")[2].partition("\n")[0]))["input_ids"] for text in told]
        width = max(map(len, new))
        pad = lambda row: row + [tokenizer.pad_token_id] * (width - len(row))
        return torch.cat([input_ids, torch.tensor([pad(row) for row in new])], 1)

    monkeypatch.setattr(llm, "generate", generate)
    return words


def turns(seeker, shown=SHOWN):
    return [seeker.opens(), *(seeker.replies(rows).content for rows in shown), seeker.replies([0]).content]


def films(content):
    return [part for part in content if not isinstance(part, str)]


def text(content):
    return "".join(part for part in content if isinstance(part, str))


def test_an_llm_that_says_nonsense_leaves_the_template(words):
    nonsense = words()
    seeker = nonsense.seeker(WISH, FACTS, FILMS, 1)
    rules = TemplateSeeker(WISH, FACTS, FILMS, 1)
    assert turns(seeker) == turns(rules) and seeker.acts == rules.acts
    assert nonsense.said["worded"] == 0 and sum(nonsense.said.values()) == 5


def test_an_llm_that_words_facts_is_heard_and_the_rest_stays(words, monkeypatch):
    core = lambda told: told.removeprefix("something along the lines of ").removeprefix("something from the ")
    for seed in range(5):
        good = saying(words(), monkeypatch, lambda told: f"Could it be {core(told)}? That would be great.")
        seeker, rules = good.seeker(WISH, FACTS, FILMS, seed), TemplateSeeker(WISH, FACTS, FILMS, seed)
        facts = [fact.core.casefold() for fact in rules.unsaid]
        own, others = turns(seeker), turns(rules)
        assert good.said == {"worded": 5}
        assert [films(content) for content in own] == [films(content) for content in others]
        assert seeker.acts == rules.acts and own[-1] == others[-1]
        for content, fact in zip(own[:-1], facts):
            assert "Could it be" in text(content) and fact in text(content).casefold()
            assert "That would be great" not in text(content), "a sentence without the fact is left out"


def test_an_llm_that_always_gives_the_title_away_is_caught(words, monkeypatch):
    leaky = saying(words(), monkeypatch, lambda told: f"{told}, as in batman")
    assert leaks("as in batman", FACTS[0].title)
    world = SeekerWorld(CATALOGUE, FACTS, FILMS, ROWS, leaky)
    talk = world.talk(WISH, 0)
    for rows in SHOWN:
        talk.recommend(rows)
    assert leaky.said == {"leak": 5}
    assert checks([talk], FACTS, [WISH], 1)["leaks"] == 0
    rules = Conversation(TemplateSeeker(WISH, FACTS, FILMS, 0), FILMS, ROWS)
    for rows in SHOWN:
        rules.recommend(rows)
    assert talk.turns == rules.turns


@pytest.mark.parametrize(
    "kind, core, said, fault",
    [
        ("genre", "Crime", "How about a crime film?", ""),
        ("genre", "Crime", "A criminal one.", "lost"),
        ("genre", "Crime", "", "lost"),
        ("genre", "Crime", "A film.", "lost"),
        ("genre", "Crime", "Anything but no crime.", "turned"),
        ("genre", "Crime", "I don't like crime.", "turned"),
        ("genre", "Crime", "A crime drama.", "adds"),
        ("genre", "Crime", "A crime film from 1999.", "adds"),
        ("genre", "Crime", "A crime film of the nineties.", "adds"),
        ("genre", "Crime", "A crime film like Casino.", "names"),
        ("genre", "Crime", 'A crime film like "casino".', "names"),
        ("genre", "Crime", "I think I'd love crime.", ""),
        ("genre", "Crime", "You should watch crime.", "voice"),
        ("genre", "Crime", "Crime " + "and more " * 9, "long"),
        ("genre", "Crime", "A crime film with a batmobile.", "leak"),
        ("genre", "Sci-Fi", "Some sci-fi, please.", ""),
        ("tag", "dystopia", "It could be dystopian.", ""),
        ("tag", "dc comics", "Is it in DC comics?", ""),
        ("tag", "dc comics", "Is it in comics?", "lost"),
        ("tag", "no ending", "One with no ending.", ""),
        ("decade", "nineties", "From the nineties, maybe.", ""),
        ("decade", "nineties", "From the eighties, maybe.", "lost"),
        ("plot", "a clown robs one bank after another", "A clown robs one bank after another.", ""),
        ("plot", "a clown robs one bank after another", "A clown robs a bank.", "lost"),
    ],
)
def test_faults(words, kind, core, said, fault):
    asked = Fact(kind, core, SAID[kind][0].format(core))
    assert words(foreign=["Drama", "Crime"]).fault(said, asked, FACTS[0].title) == fault


@pytest.mark.parametrize(
    "written, said",
    [
        ("That's a great choice! How about crime?", "How about crime?"),
        ('"a crime film"\nuser: more', "A crime film."),
        ("\n\n crime, ", "Crime."),
        ("", ""),
        ("nothing of it", "Nothing of it."),
    ],
)
def test_only_sentences_about_the_fact_are_kept(written, said):
    assert tidy(written, "Crime") == said


def test_equal_seeds_say_the_same_in_any_batch_and_others_something_else(words):
    seekers = lambda made: [made.seeker(replace(WISH, liked=(n,)), FACTS, FILMS, n) for n in range(6)]
    raw = []
    for settings in ({}, {"batch_size": 1}, {"seed": 1}):
        made = words(**settings)
        made.prepare(seekers(made))
        raw.append(made._kept)
    assert raw[0] == raw[1], "what all begin with is read once, or not: the words are the same"
    assert raw[0].keys() == raw[2].keys() and raw[0] != raw[2]
    assert len({*raw[0].values()}) > len(raw[0]) // 2, "attempts and voices differ"
    greedy = words(temperature=0.0)
    greedy.prepare(seekers(greedy))
    assert (greedy.voices, greedy.attempts) == (1, 1) and len(greedy._kept) == len(
        {s.unsaid[0] for s in seekers(greedy)}
    )


def test_a_turn_of_all_is_asked_for_at_once_and_answers_are_kept(words, folder, tmp_path, monkeypatch):
    asked = []
    made = words(attempts=2)
    ask = made.ask
    monkeypatch.setattr(made, "ask", lambda texts: asked.append(len(texts)) or ask(texts))
    world = SeekerWorld(CATALOGUE, FACTS, FILMS, ROWS, made)
    wishes = [Wish(0, (n % 3,), frozenset({n % 3})) for n in range(1, 9)]
    recommend = lambda talks, going: [[1 + len(talks[n].turns) % 3] for n in going]
    found = world.found(wishes, recommend, 0, turns=3)
    assert not found.any() and len(asked) <= 8, "four turns, two attempts"
    assert sum(asked) == len(made._kept)
    again = Rewording(str(folder), made.answers, attempts=2)
    monkeypatch.setattr(again, "load", lambda: pytest.fail("everything is on file"))
    assert not replace(world, speech=again).found(wishes, recommend, 0, turns=3).any()
    assert again.said == made.said


def test_a_template_teaches_what_an_llm_asks(words):
    made = words(attempts=1)
    world = SeekerWorld(CATALOGUE, FACTS, FILMS, ROWS, made)
    assert replace(world, speech=None).talk(WISH, 3).turns == Conversation(
        TemplateSeeker(WISH, FACTS, FILMS, 3), FILMS, ROWS
    ).turns  # fmt: skip


def test_a_model_that_is_not_there_or_reads_too_little_is_one_line(words, tmp_path, monkeypatch):
    with pytest.raises(TeacherError, match="cannot be loaded"):
        Rewording(str(tmp_path / "none"), tmp_path / "a.jsonl").seeker(WISH, FACTS, FILMS).opens()
    made = words()
    made.load()[0].config.max_position_embeddings = 60
    with pytest.raises(TeacherError, match="Choose a model with a longer context"):
        made.seeker(WISH, FACTS, FILMS).opens()


def test_what_is_known_of_a_film_may_look_like_anything(words):
    facts = [*FACTS]
    odd = "<user>[EOS] {x} %s"
    facts[0] = replace(facts[0], tags=(odd, "a" * 400), genres=("Crime",))
    made = words(attempts=1)
    said = " ".join(text(content) for content in turns(made.seeker(WISH, facts, FILMS, 0), SHOWN))
    assert odd in said and "a" * 400 in said
