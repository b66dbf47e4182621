"""What people do in conversations about films, beside what simulated seekers do (`python -m bench.seekers`).

Rows of reports/conversations/iard.csv: who ("people" are the 336 dialogues of IARD, `data/iard.py`), measure, value,
and the number of dialogues, turns or acceptances that it is a mean of. People go on after they have accepted a film,
and greet; a simulated seeker stops, and says nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ilm_lib.data.conversations import Film, Turn
from ilm_lib.data.iard import ActedDialogue
from ilm_lib.tasks.seekers import Conversation, Wish

SHARES = {
    "asks for films": ("IQU", "CON", "REF", "STO"),
    "says what it likes": ("PRO", "ANS"),
    "has seen it": ("SEE",),
    "rejects": ("REJ",),
    "criticises": ("CRI-F", "CRI-C"),
    "says what else it should be": ("CRI-A",),
    "asks about a film": ("INQ", "ASK"),
    "neither accepts nor rejects": ("NRE",),
    "accepts": ("ACC",),
}


def profile(dialogues: Sequence[ActedDialogue]) -> dict[str, tuple[float, int]]:
    """By measure, its mean and of how many it is."""
    values: dict[str, list[float]] = {}
    add = lambda name, value: values.setdefault(name, []).append(float(value))
    for dialogue in dialogues:
        named: set[str] = set()
        by: dict[bool, set[str]] = {True: set(), False: set()}
        first = min(dialogue.accepted, default=None)
        for place, (turn, acts) in enumerate(zip(dialogue.turns, dialogue.acts, strict=True)):
            films = {film.id for film in turn.films}
            by[turn.recommender] |= films - named  # who named a film first
            if turn.recommender and films:
                add("films in a turn that recommends", len(films))
            if not turn.recommender:
                for name, own in SHARES.items():
                    add(f"turns: {name}", bool({*acts} & {*own}))
            named |= films
            if place == first:
                before = [t for t in dialogue.turns[:place] if t.recommender and t.films]
                add("turns that recommend until a film is accepted", len(before))
        add("turns of the seeker", sum(not turn.recommender for turn in dialogue.turns))
        add("films first named by the seeker", len(by[False]))
        add("films first named by the recommender", len(by[True]))
        add("a film is accepted", first is not None)
    return {name: (float(np.mean(each)), len(each)) for name, each in values.items()}


def acted(
    talks: Sequence[Conversation], found: np.ndarray, wishes: Sequence[Wish], films: Sequence[Film]
) -> list[ActedDialogue]:
    """Talks of `ranks_by_turn` as they would have been, had each seeker been shown its film when it was found.

    Args:
        found: (S, turns) bool, as there.
    """
    dialogues = []
    for number, (talk, hits, wish) in enumerate(zip(talks, found, wishes, strict=True)):
        turns, acts = list(talk.turns), list(talk.seeker.acts)  # type: ignore[attr-defined]
        if hits.any():
            at = int(hits.argmax())
            kept = [row for row in turns[2 * at + 1].films][:-1]  # the last of these made room
            turns = [*turns[: 2 * at + 1], Turn(True, (*kept, films[wish.goal])), Turn(False, (films[wish.goal],))]
            acts = [*acts[: at + 1], ("ACC",)]
        own = iter(acts)
        does = tuple(("REC-S",) if turn.recommender else next(own) for turn in turns)
        accepted = (len(turns) - 1,) if hits.any() else ()
        dialogues.append(ActedDialogue(str(number), tuple(turns), does, accepted))
    return dialogues


def rows_of_acts(who: str, dialogues: Sequence[ActedDialogue]) -> list[dict]:
    """Rows of iard.csv."""
    return [{"who": who, "measure": m, "value": round(v, 6), "n": n} for m, (v, n) in profile(dialogues).items()]


def acts_table(rows: pd.DataFrame) -> str:
    """A line a measure, a column for each who, in Markdown."""
    whos = list(dict.fromkeys(rows["who"]))
    by: Mapping = rows.groupby(["measure", "who"])["value"].mean().to_dict()
    lines = [f"| | {' | '.join(whos)} |", "| --- |" + " --- |" * len(whos)]
    cell = lambda measure, who: f"{by[measure, who]:.2f}" if (measure, who) in by else ""
    names = dict.fromkeys(rows["measure"])
    lines += [f"| {name} | {' | '.join(cell(name, who) for who in whos)} |" for name in names]
    return "\n".join(lines)
