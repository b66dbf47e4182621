"""What a language model is asked to write for a row of the ELM-24 tasks: the row's prompt with titles in place of
its placeholders, the facts of the films, the length, and the rule that the films stay unnamed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ilm_lib.data import elm24_words as words

MAX_PLOT = 200  # words of a plot that a teacher reads


@dataclass(frozen=True)
class Request:
    """One text to be written: the task's name and the whole instruction."""

    task: str
    instruction: str


class Teacher(Protocol):
    """Writes the target texts; `name` goes to the column `teacher` of the rows."""

    name: str

    def write(self, requests: Sequence[Request]) -> Sequence[str | None]:
        """A text for each request, None where the teacher gave no usable one."""


def instruct(task: str, prompt: str, film: dict, other: dict | None = None) -> str:
    """The instruction for a row.

    Args:
        task: its name.
        prompt: a wording with `{film}`, and `{other}` for two films.
        film: a record of `build_elm24`.
        other: the record of a second film.
    """
    films = [film] if other is None else [film, other]
    names = [title(record) or unknown for record, unknown in zip(films, ("an untitled film", "another untitled film"))]
    facts = "\n".join(f"- {name}: {card(record)}" for name, record in zip(names, films))
    form = f"one paragraph of at most {words.TASKS[task][1]} words"
    if task in ("five pos char.", "five neg char."):
        form = "exactly five points of two to six words each, on one line with commas between them"
    unnamed = (
        "Do not name the film."
        if other is None
        else "Do not name the films; call them the first film and the second film."
    )
    return (
        f"{prompt.format(film=names[0], other=names[-1])}\n\nFacts:\n{facts}\n\n"
        f"Write {form}, in plain text, and nothing else. {unnamed}"
    )


def title(record: dict) -> str:
    """The title as one would say it: "Matrix, The (1999)" is "The Matrix (1999)"."""
    return article_first((record.get("title") or "").strip())


def article_first(title: str) -> str:
    return re.sub(r"^(.+), (The|A|An)(?= \(|$)", r"\2 \1", title)


def year(record: dict) -> str:
    """The year that MovieLens puts after a title, or ""."""
    found = re.search(r"\((\d{4})\)\s*$", record.get("title") or "")
    return found[1] if found else ""


def genres(record: dict) -> list[str]:
    """Without MovieLens' "(no genres listed)"."""
    return [g for g in record.get("genres") or [] if g and not g.startswith("(")]


def card(record: dict) -> str:
    """Year, genres, tags and plot, as far as the record has them."""
    plot = (record.get("overview") or "").split()
    parts = {
        "year": year(record),
        "genres": ", ".join(genres(record)),
        "tags": ", ".join(t for t in record.get("tags") or [] if t),
        "plot": " ".join(plot[:MAX_PLOT]) + (" ..." if len(plot) > MAX_PLOT else ""),
    }
    return "; ".join(f"{name} {value}" for name, value in parts.items() if value) or "nothing is on record"
