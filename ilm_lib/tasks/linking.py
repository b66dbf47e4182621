"""How well items are found in words: names put where recorded dialogues have films, and looked for again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ilm_lib.data.conversations import Dialogue, Film, FilmCatalogue
from ilm_lib.model.linker import Linker, Mention

#: How a film is named: as recorded, with its year; without it; in small letters besides; with one typing error.
Naming = Literal["with year", "without year", "small letters", "one error"]
_YEAR = re.compile(r"\s*\(\d{4}\)$")


class Named(NamedTuple):
    """Characters `start` to `end` of a text are the name of a film."""

    start: int
    end: int
    film: Film


@dataclass(frozen=True)
class Linked:
    """What a linker found.

    Attributes:
        named: mentions of films of the catalogue.
        found: items found, but for those in place of a film that the catalogue does not have.
        right: of these, the film that was meant at its place.
        elsewhere: text and mention of the items found where no film was marked. Some are wrong; others are films that
            a speaker named without marking them, so that `precision` is a lower bound.
    """

    named: int
    found: int
    right: int
    elsewhere: list[tuple[str, Mention]]

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else float("nan")

    @property
    def recall(self) -> float:
        return self.right / self.named if self.named else float("nan")


def said_in(dialogues: Iterable[Dialogue]) -> Iterator[str]:
    """What was said around the films: ordinary sentences for a `Linker`."""
    for dialogue in dialogues:
        for turn in dialogue.turns:
            yield " | ".join(segment for segment in turn.content if isinstance(segment, str))


def measure_linker(
    linker: Linker, catalogue: FilmCatalogue, dialogues: Sequence[Dialogue], naming: Naming, seed: int = 0
) -> Linked:
    """Precision and recall on the marked films of dialogues, message by message.

    A film is found where an item that overlaps its name is that film. Films outside the catalogue count neither for nor
    against: the catalogue may have one under another id.

    Args:
        seed: draws the typing errors.
    """
    rng = np.random.default_rng(seed)
    named = found = right = 0
    elsewhere = []
    for text, films in named_texts(dialogues, naming, rng):
        mentions = linker.mentions(text)
        rows = [catalogue.rows.get(film.id) for _, _, film in films]
        named += sum(row is not None for row in rows)
        for mention in mentions:
            here = [r for (start, end, _), r in zip(films, rows) if start < mention.end and mention.start < end]
            if here and all(row is None for row in here):
                continue
            found += 1
            right += mention.item.row in here
            if not here:
                elsewhere.append((text, mention))
    return Linked(named, found, right, elsewhere)


def named_texts(
    dialogues: Sequence[Dialogue], naming: Naming, rng: np.random.Generator
) -> Iterator[tuple[str, list[Named]]]:
    """The messages of dialogues with films in words, and where these stand."""
    for dialogue in dialogues:
        for turn in dialogue.turns:
            text, films = "", []
            for segment in turn.content:
                if isinstance(segment, str):
                    # Some marks are followed by a letter, "@111776is"; no name would be.
                    text += " " * (text != "" and segment[0].isalnum()) + segment
                    continue
                name = _worded(segment.name, naming, rng)
                films.append(Named(len(text), len(text) + len(name), segment))
                text += name
            yield text, films


def _worded(name: str, naming: Naming, rng: np.random.Generator) -> str:
    if naming == "with year":
        return name
    name = _YEAR.sub("", name)
    if naming == "small letters":
        return name.lower()
    return with_error(name, rng) if naming == "one error" else name


def with_error(name: str, rng: np.random.Generator) -> str:
    """A name with a letter left out, doubled by another, replaced, or in its neighbour's place; the first one stays."""
    places = [at for at, letter in enumerate(name) if at and letter.isalpha()]
    if not places:
        return name
    at, other = int(rng.choice(places)), chr(rng.integers(ord("a"), ord("z") + 1))
    before, letter, after = name[:at], name[at], name[at + 1 :]
    return before + (after, other + letter + after, other + after, after[:1] + letter + after[1:])[rng.integers(4)]
