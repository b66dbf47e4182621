"""Simulated seekers: users of MovieLens who look for a film that they went on to rate, and say so in words.

A seeker knows the film's genres, tags, decade and phrases of its plot, and has seen and liked others. It opens with
what it is in the mood for, and answers each recommendation: accepts the film it looks for, says that it knows one, or
what is wrong with one and right about its own. It never says the title, nor any word of it (`leaks`); films that it
names stand there as films.

`TemplateSeeker` speaks by rules, the same at equal seeds. Others may take its place: a `Conversation` asks no more than
`opens` and `replies`. One of them has an LLM word what the rules decide (`seekers_hf`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ilm_lib.data.conversations import Film, FilmCatalogue, Turn
from ilm_lib.model.titles import names_of, words_of
from ilm_lib.tasks.seeker_words import (
    ACCEPT,
    DECADES,
    KNOWN,
    LESS,
    LIKED,
    MORE,
    NOT_THIS,
    NOTHING,
    OLDER,
    OPENINGS,
    SAID,
    SPARE,
)

Content = tuple[str | Film, ...]

PHRASE = range(3, 9)  # words of a phrase of the plot that may be said
SMALL = set("a an and at by for from he her his in into is it its of on or she the their them they to who with".split())


@dataclass(frozen=True)
class Facts:
    """What may be said of a film; nothing of it holds a word of the title."""

    title: frozenset[str]  # its words as `words_of` has them, articles and the like left out
    genres: tuple[str, ...]
    tags: tuple[str, ...]
    decade: str  # "nineties"; "" where the year is unknown
    phrases: tuple[str, ...]

    @property
    def sayable(self) -> int:
        """How many things there are to say."""
        return len(self.genres) + len(self.tags) + len(self.phrases) + (self.decade != "")


class Fact(NamedTuple):
    """One thing to say of a film: what kind of thing, in a word or phrase, and as a part of a sentence."""

    kind: str  # of `SAID`
    core: str
    said: str


@dataclass(frozen=True)
class Wish:
    """What a seeker wants.

    Attributes:
        goal: row of the film that it will accept.
        liked: rows of films that it may name, the most telling first.
        seen: rows of all that it has seen.
    """

    goal: int
    liked: tuple[int, ...]
    seen: frozenset[int]


class Reply(NamedTuple):
    """What a seeker answers, and whether it has what it wanted."""

    content: Content
    accepted: bool


class Seeker(Protocol):
    """One who looks for a film."""

    def opens(self) -> Content:
        """The first turn."""

    def replies(self, recommended: Sequence[int]) -> Reply:
        """The answer to the films of a turn, by row."""


class TemplateSeeker:
    """A seeker that speaks by rules.

    Args:
        wish: what it wants.
        facts: of every film of the catalogue.
        films: the films as they stand in turns, by row.
        seed: of its choice of words and of the order in which it says what it knows.

    Attributes:
        unsaid: what it has not said yet, in the order in which it will.
        acts: what each of its turns so far does, in the labels of IARD (`data/iard.py`).
    """

    def __init__(self, wish: Wish, facts: Sequence[Facts], films: Sequence[Film], seed: int = 0):
        self.wish, self.facts, self.films = wish, facts, films
        # Not of the goal alone: who looks for the same film would say the same, and a film be known by how one speaks.
        self.rng = np.random.default_rng([seed, wish.goal, *wish.liked])
        goal = facts[wish.goal]
        facts_of_kind = lambda kind, cores: [Fact(kind, core, self._told(kind, core)) for core in cores if core]
        genres = self._mixed(facts_of_kind("genre", goal.genres))
        other = facts_of_kind("tag", goal.tags) + facts_of_kind("plot", goal.phrases)
        other += facts_of_kind("decade", [goal.decade])
        # A genre first, as people do; then the rest in any order.
        self.unsaid = [*genres[:1], *self._mixed([*other, *genres[1:]])]
        self.acts: list[tuple[str, ...]] = []
        self.liked = list(wish.liked)

    def opens(self) -> Content:
        """What it is in the mood for, and most often a film that it liked."""
        said, acts = self._asks(OPENINGS), ["IQU"]
        if self.liked and self.rng.random() < 0.8:
            said += (" ", *self._say(LIKED, film=self.films[self.liked.pop(0)]))
            acts.append("PRO")
        return self._turn(said, acts)

    def replies(self, recommended: Sequence[int]) -> Reply:
        """Accepts the film it looks for; else says what is wrong with the first one and one thing more of its own."""
        if self.wish.goal in recommended:
            return Reply(self._turn(self._say(ACCEPT, film=self.films[self.wish.goal]), ["ACC"]), True)
        said: Content = ()
        acts: list[str] = []
        if recommended:
            act, critique = self._critique(recommended[0])
            said, acts = (*critique, " "), [act]
        if self.unsaid:
            said, act = said + self._asks(MORE), "CRI-A"
        elif self.liked:
            said, act = said + self._say(LIKED, film=self.films[self.liked.pop(0)]), "PRO"
        else:
            said, act = said + self._say(NOTHING), "CON"
        return Reply(self._turn(said, [*acts, act]), False)

    def _turn(self, said: Content, acts: Sequence[str]) -> Content:
        self.acts.append(tuple(acts))
        return _joined(said)

    def _critique(self, row: int) -> tuple[str, Content]:
        """What it does, and says, about a film that it does not look for."""
        film, goal, other = self.films[row], self.facts[self.wish.goal], self.facts[row]
        if row in self.wish.seen:
            return "SEE", self._say(KNOWN, film=film)
        strange = [g.lower() for g in other.genres if g not in goal.genres and not leaks(g, goal.title)]
        if strange and self.rng.random() < 0.5:
            return "CRI-F", self._say(LESS, film=film, genre=self._one(strange))
        if goal.decade and _later(other.decade, goal.decade) and self.rng.random() < 0.5:
            return "CRI-F", self._say(OLDER, film=film, decade=goal.decade)
        return "REJ", self._say(NOT_THIS, film=film)

    def _asks(self, templates: Sequence[str]) -> Content:
        """A sentence that says the next fact."""
        return self._say(templates, fact=self.unsaid.pop(0).said if self.unsaid else "something good")

    def _told(self, kind: str, core: str) -> str:
        """A fact as a part of a sentence."""
        core = core.lower() if kind == "genre" else core
        said = [template.format(core) for template in SAID[kind]]
        if core[:1] in "aeiou":
            said = [text.replace("a " + core, "an " + core) for text in said]
        title = self.facts[self.wish.goal].title
        return next((text for text in said if not leaks(text, title)), core)

    def _say(self, templates: Sequence[str], **given: str | Film) -> Content:
        """One of the templates, a film in its place as a film; another one where it has a word of the title."""
        title = self.facts[self.wish.goal].title
        words = {name: value for name, value in given.items() if isinstance(value, str)}
        drawn = int(self.rng.integers(len(templates)))
        others = (*templates[drawn:], *templates[:drawn], *SPARE[tuple(templates)])
        chosen = next((t for t in others if not leaks(t.format(film="", **words), title)), others[-1])
        head, mark, tail = chosen.partition("{film}")
        return (head.format(**words), given["film"], tail.format(**words)) if mark else (head.format(**words),)

    def _one(self, choices: Sequence[str]) -> str:
        return choices[self.rng.integers(len(choices))]

    def _mixed(self, choices: Sequence[Fact]) -> list[Fact]:
        return [choices[n] for n in self.rng.permutation(len(choices))]


def facts_of(catalogue: FilmCatalogue, tags: Mapping[Any, Sequence[str]]) -> list[Facts]:
    """What may be said of each film, (M,).

    Args:
        tags: by the ids of the catalogue.
    """
    return [_facts(catalogue, row, tags.get(movie, ())) for row, movie in enumerate(catalogue.ids)]


def _facts(catalogue: FilmCatalogue, row: int, tags: Sequence[str]) -> Facts:
    year, names = names_of(catalogue.titles[row])
    title = frozenset(word.key for name, _ in names for word in words_of(name)) - SMALL
    clean = lambda texts: tuple(text for text in dict.fromkeys(texts) if text and not leaks(text, title))
    decade = "" if year is None else DECADES.get(min(max(year // 10 * 10, 1920), 2010), "")
    decade = "" if leaks(decade, title) else decade
    genres = catalogue.genres[row].split(", ")
    return Facts(title, clean(genres), clean(tags), decade, clean(_phrases(catalogue.plots[row])))


def leaks(text: str, title: Set[str]) -> bool:
    """Whether a text has a word of a title (`Facts.title`), or one like it: "batmobile" for "Batman"."""
    said = {word.key for word in words_of(text)} - SMALL
    alike = lambda a, b: a == b or (min(len(a), len(b)) > 3 and (a[:4] == b[:4] or a.endswith(b) or b.endswith(a)))
    return any(alike(word, of_title) for word in said for of_title in title)


def _phrases(plot: str) -> list[str]:
    """Stretches of a plot without names: from one comma or full stop to the next, no capital letter but the first."""
    found = []
    for stretch in re.split(r"[.,;:!?()\"“”—–]|\s-\s", plot):
        words = stretch.split()
        if len(words) in PHRASE and all(word[0].islower() for word in words[1:]):
            found.append(" ".join([words[0].lower(), *words[1:]]))
    return found[:4]


def _later(decade: str, other: str) -> bool:
    names = list(DECADES.values())
    return decade in names and names.index(decade) > names.index(other)


def _joined(content: Content) -> Content:
    """Neighbouring texts as one, empty ones left out."""
    out: list[str | Film] = []
    for segment in content:
        if isinstance(segment, str) and out and isinstance(out[-1], str):
            out[-1] += segment
        elif segment != "":
            out.append(segment)
    return tuple(out)


def wishes_of(
    catalogue: FilmCatalogue, facts: Sequence[Facts], users: Sequence[int], *, least: int = 4, liked: int = 3
) -> dict[int, Wish]:
    """By user, the last film rated as the goal, and the films before it as what the seeker knows.

    Users whose last film has fewer than `least` things to say of it, or who rated nothing before, have no wish.

    Args:
        users: rows of `catalogue.histories`.
        liked: how many of the films before may be named, the latest first.
    """
    found = {}
    for user in users:
        *before, goal = catalogue.histories[user].tolist()
        if before and facts[goal].sayable >= least:
            found[int(user)] = Wish(goal, tuple(before[: -liked - 1 : -1]), frozenset(before))
    return found


class Conversation:
    """A conversation with a seeker, turn by turn, so that many can be held at once.

    Args:
        seeker: speaks first.
        films: by row, as they stand in turns.
        rows: the row of a film by its id, one table for many conversations.

    Attributes:
        turns: so far.
        named: rows of the films named so far, each once.
        found: the turn of recommendations, from 1, in which the seeker's film was among them; None: in none yet.

    Example:
        >>> talk = Conversation(seeker, films, {film.id: row for row, film in enumerate(films)})
        >>> while talk.found is None and len(talk.turns) < 11:
        ...     talk.recommend(best_films(talk.turns, talk.named))
    """

    def __init__(self, seeker: Seeker, films: Sequence[Film], rows: Mapping[str, int]):
        self.seeker, self.films, self.rows = seeker, films, rows
        self.turns: list[Turn] = []
        self.named: list[int] = []
        self.found: int | None = None
        self._say(Turn(False, seeker.opens()))

    def recommend(self, rows: Sequence[int]) -> None:
        """A turn that names these films, and the seeker's reply."""
        listed = [part for row in rows for part in (self.films[row], ", ")][:-1]
        self._say(Turn(True, _joined(("How about ", *listed, "?"))))
        reply = self.seeker.replies(rows)
        self._say(Turn(False, reply.content))
        if reply.accepted and self.found is None:
            self.found = sum(turn.recommender for turn in self.turns)

    def _say(self, turn: Turn) -> None:
        self.turns.append(turn)
        self.named += [row for row in dict.fromkeys(self.rows[f.id] for f in turn.films) if row not in self.named]


def catalogue_films(catalogue: FilmCatalogue) -> list[Film]:
    """The films of a catalogue as they stand in simulated turns: by its ids."""
    return [Film(str(movie), title) for movie, title in zip(catalogue.ids, catalogue.titles, strict=True)]
