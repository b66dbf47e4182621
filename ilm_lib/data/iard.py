"""What people do in conversations about films: 336 dialogues of ReDial in which every turn has its intents.

IARD (Cai and Chen, "Predicting User Intents and Satisfaction with Dialogue-based Conversational Recommendations", UMAP
2020; MIT, github.com/wanlingcai1997/umap_2020_IARD) is one JSON object of dialogues by their ids; a film stands in a
text as `@111776 <Super Troopers (2001)>`. Labels of the seeker's turns (`SEEKER`) and of the recommender's
(`RECOMMENDER`); a turn may have several.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ilm_lib.data.conversations import Film, Turn
from ilm_lib.data.lines import DataError, read_lines

IARD = Path("conversation", "iard", "umap2020_IARD_Cai.json.gz")
SEEKER = {
    "IQU": "asks for films at first",
    "CON": "asks for more",
    "REF": "asks in other words",
    "STO": "asks for something else",
    "PRO": "says what it likes",
    "ANS": "answers a question",
    "ASK": "asks for an opinion",
    "SEE": "has seen it",
    "ACC": "accepts",
    "REJ": "rejects",
    "INQ": "asks about a film",
    "CRI-F": "criticises something about a film",
    "CRI-A": "says what else it should be",
    "CRI-C": "compares with another film",
    "NRE": "neither accepts nor rejects",
    "OTH": "greets, thanks and the like",
}
RECOMMENDER = {
    "REQ": "asks what is liked",
    "CLQ": "asks what is meant",
    "REC-S": "names a film",
    "REC-E": "asks about a film",
    "EXP-I": "says what a film is about",
    "EXP-P": "says why it fits",
    "EXP-S": "says what others think",
    "R-ANS": "answers a question",
    "RESP": "responds",
    "OTH": "greets, thanks and the like",
}
_FILM = re.compile(r"@(\d+)\s*<([^<>]*)>")
_FORM = "Write it as IARD does"
_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class ActedDialogue:
    """A dialogue and what each of its turns does.

    Attributes:
        turns: the oldest first.
        acts: of each turn, labels of `SEEKER` or `RECOMMENDER`.
        accepted: places among the turns in which the seeker accepts a film.
    """

    id: str
    turns: tuple[Turn, ...]
    acts: tuple[tuple[str, ...], ...]
    accepted: tuple[int, ...]


def read_iard(path: Path) -> list[ActedDialogue]:
    """The dialogues of IARD's file, plain or .gz, in its order.

    Raises DataError, with the line, for a missing file, for what is no JSON, and for what is no such dialogue or turn.
    """
    lines = read_lines(path)[0]
    whole = [""] * lines[-1][0]
    for number, text in lines:
        whole[number - 1] = text
    text = "\n".join(whole)
    try:
        _DECODER.decode(text)
    except (json.JSONDecodeError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise DataError(path, line, f"is no JSON ({str(error).partition(':')[0]})", _FORM) from None
    return [_dialogue(path, text, name, at) for name, at in _members(path, text, 0)]


def _dialogue(path: Path, text: str, name: str, start: int) -> ActedDialogue:
    parts = dict(_members(path, text, start))
    if not {"dialogue_info", "accepted_recommendation"} <= set(parts):
        raise DataError(
            path, _line(text, start), f"dialogue {name!r} has no dialogue_info or accepted_recommendation", _FORM
        )
    turns, acts = [], []
    for place, at in _members(path, text, parts["dialogue_info"]):
        turn, does = _turn(path, text, f"turn {place!r} of dialogue {name!r}", at)
        turns.append(turn)
        acts.append(does)
    accepted = _value(text, parts["accepted_recommendation"])
    places = accepted if isinstance(accepted, list) else [accepted]
    for place in places:
        if type(place) is not int or not 1 <= place <= len(turns) or "ACC" not in acts[place - 1]:
            wrong = f"dialogue {name!r} has a film accepted in turn {place!r}, which has no ACC"
            raise DataError(path, _line(text, parts["accepted_recommendation"]), wrong, _FORM)
    return ActedDialogue(name, tuple(turns), tuple(acts), tuple(place - 1 for place in places))


def _turn(path: Path, text: str, name: str, at: int) -> tuple[Turn, tuple[str, ...]]:
    record = _value(text, at)
    try:
        role, said, acts = record["role"], record["utterance_text"], tuple(record["sub-intent/action"])
        if role not in ("seeker", "recommender"):
            raise ValueError(f"role {role!r}")
        if strange := [act for act in acts if act not in (SEEKER if role == "seeker" else RECOMMENDER)]:
            raise ValueError(f"intent {strange[0]!r}")
        said.encode()  # no half of a surrogate pair
        return Turn(role == "recommender", tuple(_content(" ".join(html.unescape(said).split())))), acts
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        wrong = f"{name} is none of IARD ({type(error).__name__}: {error})"
        raise DataError(path, _line(text, at), wrong, _FORM) from None


def _content(text: str) -> Iterator[str | Film]:
    at = 0
    for mark in _FILM.finditer(text):
        if mark.start() > at:
            yield text[at : mark.start()]
        yield Film(mark[1], " ".join(mark[2].split()))
        at = mark.end()
    if at < len(text):
        yield text[at:]


def _members(path: Path, text: str, at: int) -> Iterator[tuple[str, int]]:
    """The keys of the object that starts there, and where their values do; DataError where it is none."""
    seen: set[str] = set()
    at = _after_space(text, at)
    if text[at] != "{":
        raise DataError(path, _line(text, at), "is no JSON object", _FORM)
    at = _after_space(text, at + 1)
    while text[at] != "}":
        at = at if text[at] == '"' else _after_space(text, at + 1)  # after a comma
        key, end = _DECODER.raw_decode(text, at)
        if key in seen:
            raise DataError(path, _line(text, at), f"{key!r} stands twice in one object", _FORM)
        seen.add(key)
        start = _after_space(text, _after_space(text, end) + 1)  # after a colon
        yield key, start
        at = _after_space(text, _DECODER.raw_decode(text, start)[1])


def _value(text: str, at: int) -> Any:
    return _DECODER.raw_decode(text, at)[0]


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1
