"""Simulated seekers: what they say follows from what they know, and never gives the title away."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ilm_lib.data.conversations import TAGS, Film, FilmCatalogue, Turn, read_catalogue, read_tags
from ilm_lib.data.lines import DataError
from ilm_lib.profiles import data_dir
from ilm_lib.tasks.seekers import Conversation, TemplateSeeker, Wish, catalogue_films, facts_of, leaks, wishes_of

CATALOGUE = FilmCatalogue(
    ids=[3, 5, 7, 9],
    titles=["Batman Returns (1992)", "Heat (1995)", "Up (2009)", "Old, The (1920)"],
    genres=["Action, Crime", "Crime, Thriller", "Animation", ""],
    plots=[
        "A hero rides in his batmobile, a clown robs one bank after another, Gotham City burns.",
        "",
        "A man flies.",
        "",
    ],
    shares=np.array([0.3, 0.2, 0.1, 0.0]),
    histories=[np.array([1, 2, 0]), np.array([1]), np.array([2, 3])],
    rows={},
)
TAGS_OF = {3: ["dc comics", "batmobile", "returning hero", "dark"], 5: ["heist"]}
FACTS = facts_of(CATALOGUE, TAGS_OF)
FILMS = catalogue_films(CATALOGUE)
WISH = Wish(goal=0, liked=(1,), seen=frozenset({1}))


def text(content) -> str:
    return "".join(s if isinstance(s, str) else f"[{s.name}]" for s in content)


def test_facts_hold_no_word_of_the_title():
    assert FACTS[0].tags == ("dc comics", "dark"), "batmobile and returning begin like words of the title"
    assert FACTS[0].phrases == ("a clown robs one bank after another",)
    assert FACTS[0].decade == "nineties" and FACTS[0].genres == ("Action", "Crime")
    assert (FACTS[2].decade, FACTS[3].decade) == ("two thousands", "silent era")
    assert FACTS[0].sayable == 6 and FACTS[3].sayable == 1


@pytest.mark.parametrize(
    "said, title, leak",
    [
        ("the heat of the night", {"heat"}, True),
        ("heated talk", {"heat"}, True),
        ("a batmobile", {"batman"}, True),
        ("superman", {"man"}, False),  # three letters end many words
        ("the man", {"man"}, True),
        ("it is of the", {"of", "it"}, False),
        ("", {"heat"}, False),
    ],
)
def test_leaks(said, title, leak):
    assert leaks(said, title) is leak


def test_a_wish_is_the_last_film_and_what_came_before():
    wishes = wishes_of(CATALOGUE, FACTS, range(3), least=1)
    assert wishes == {0: Wish(0, (2, 1), frozenset({1, 2})), 2: Wish(3, (2,), frozenset({2}))}, "one film is no history"
    assert list(wishes_of(CATALOGUE, FACTS, range(3), least=4)) == [0]


def test_a_seeker_accepts_its_film_and_says_what_is_wrong_with_others():
    seeker = TemplateSeeker(WISH, FACTS, FILMS, seed=1)
    first = text(seeker.opens())
    assert "an action film" in first or "a crime film" in first
    known = seeker.replies([1])
    assert (
        not known.accepted
        and "[Heat (1995)]" in text(known.content)
        and ("seen" in text(known.content) or "know" in text(known.content))
    )
    reply = seeker.replies([2, 0])
    assert reply.accepted and FILMS[0] in reply.content


def test_equal_seeds_say_the_same_and_others_something_else():
    said = lambda seed: [
        text((s := TemplateSeeker(WISH, FACTS, FILMS, seed)).opens()),
        *(text(s.replies([2]).content) for _ in range(4)),
    ]
    assert said(0) == said(0)
    assert len({tuple(said(seed)) for seed in range(20)}) > 10


def test_a_seeker_says_everything_once():
    for seed in range(20):
        seeker = TemplateSeeker(WISH, FACTS, FILMS, seed)
        said = " ".join([text(seeker.opens()), *(text(seeker.replies([]).content) for _ in range(5))])
        for fact in (
            "action film",
            "crime film",
            "dc comics",
            "dark",
            "nineties",
            "a clown robs one bank after another",
        ):
            assert said.count(fact) == 1, fact


def test_what_is_said_of_another_film_does_not_give_the_title_away():
    facts = facts_of(replace(CATALOGUE, titles=["Thriller Night (1999)", *CATALOGUE.titles[1:]]), TAGS_OF)
    for seed in range(40):
        seeker = TemplateSeeker(Wish(0, (), frozenset()), facts, FILMS, seed)
        assert "thriller" not in text(seeker.replies([1]).content), (
            "a genre of Heat, and a word of the film it looks for"
        )


@pytest.mark.parametrize(
    "title", ["Something (1992)", "I, Looking (1992)", "Along the Lines (1992)", "No Story Like This (1992)"]
)
def test_no_sentence_of_its_own_has_a_word_of_the_title(title):
    facts = facts_of(replace(CATALOGUE, titles=[title, *CATALOGUE.titles[1:]]), TAGS_OF)
    for seed in range(40):
        seeker = TemplateSeeker(Wish(0, (1,), frozenset({1})), facts, FILMS, seed)
        told = [seeker.opens(), *(seeker.replies([row]).content for row in (1, 2, 3, 1, 2, 3, 1, 2))]
        assert len(told) == len(seeker.acts) and all(told)
        for said in (s for content in told for s in content if isinstance(s, str)):
            assert not leaks(said, facts[0].title), said


def test_a_decade_that_gives_the_title_away_is_not_known():
    facts = facts_of(replace(CATALOGUE, titles=["Two Men (2001)", *CATALOGUE.titles[1:]]), TAGS_OF)
    assert facts[0].decade == "" and facts[1].decade == "nineties"


def test_acts_say_what_each_turn_does():
    seeker = TemplateSeeker(replace(WISH, seen=frozenset({1, 3})), FACTS, FILMS, seed=1)
    seeker.opens()
    seeker.replies([1])
    seeker.replies([])
    seeker.replies([0])
    assert seeker.acts[0] in {("IQU",), ("IQU", "PRO")}
    assert seeker.acts[1:] == [("SEE", "CRI-A"), ("CRI-A",), ("ACC",)]


def test_a_seeker_with_nothing_left_to_say_goes_on():
    seeker = TemplateSeeker(Wish(3, (), frozenset()), FACTS, FILMS)
    said = [text(seeker.opens()), *(text(seeker.replies([]).content) for _ in range(5))]
    assert all(said) and "else" in said[-1]


def test_a_conversation_goes_turn_by_turn_until_the_film_is_found():
    talk = Conversation(TemplateSeeker(WISH, FACTS, FILMS, 1), FILMS, {film.id: row for row, film in enumerate(FILMS)})
    assert len(talk.turns) == 1 and talk.found is None
    talk.recommend([2])
    assert talk.turns[1] == Turn(True, ("How about ", Film("7", "Up (2009)"), "?"))
    assert 2 in talk.named, "what was recommended counts as named"
    talk.recommend([])
    talk.recommend([2, 0])
    assert talk.found == 3 and len(talk.turns) == 7 and talk.named.count(2) == 1
    talk.recommend([0])
    assert talk.found == 3, "the first time counts"


def test_tags_are_read_by_film(tmp_path):
    path = tmp_path / "tags.csv"
    path.write_text("movieId,title,genres,keywords\n1,A,B,dark| cold |\n2,A,B,\n")
    assert read_tags(path) == {1: ["dark", "cold"], 2: []}
    path.write_text("movieId,keywords\nx,dark\n")
    with pytest.raises(DataError, match="2: 'x' is no MovieLens id"):
        read_tags(path)


@pytest.mark.slow
@pytest.mark.skipif(not (data_dir() / TAGS).is_file(), reason="the tags are not in the data folder")
def test_no_title_leaks_in_a_thousand_conversations():
    catalogue = read_catalogue(data_dir())
    facts, films = facts_of(catalogue, read_tags(data_dir() / TAGS)), catalogue_films(catalogue)
    rng = np.random.default_rng(0)
    users = rng.permutation(len(catalogue.histories))[:1100]
    wishes = list(wishes_of(catalogue, facts, users).values())[:1000]
    assert len(wishes) == 1000
    words, rows = set(), {film.id: row for row, film in enumerate(films)}
    for seed, wish in enumerate(wishes):
        talk = Conversation(TemplateSeeker(wish, facts, films, seed), films, rows)
        while talk.found is None and len(talk.turns) < 11:
            talk.recommend(rng.choice(len(films), 2, replace=False).tolist())
        told = [t for t in talk.turns if not t.recommender]
        if films[wish.goal] in told[-1].films:
            told = told[:-1]  # accepted
        assert not any(films[wish.goal] in t.films for t in told)
        said = " ".join(s for t in told for s in t.content if isinstance(s, str))
        assert not leaks(said, facts[wish.goal].title), (films[wish.goal], said)
        words.add(said)
    assert len(words) > 990, "seekers say different things"
