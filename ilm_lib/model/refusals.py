"""What the library refuses, each also a built-in error, so that an `except ValueError` goes on to catch it."""

from __future__ import annotations

from collections.abc import Sequence

from ilm_lib.errors import Refusal


class WrongKind(Refusal, TypeError):
    """An argument is of a kind that is not taken, as a number in the place of an Item."""


class WrongValue(Refusal, ValueError):
    """An argument has a value that cannot be used."""


class TooLong(WrongValue):
    """A prompt is longer than what the LLM reads."""


class OutOfRange(Refusal, IndexError):
    """An Item or a User has a row that the model does not know."""


class UnknownName(Refusal, LookupError):
    """No item or user has a name, or several have it."""


class ModelFolderError(Refusal, ValueError):
    """A folder of `save_pretrained` cannot be used; the message names the file."""


class NoModel(ModelFolderError, FileNotFoundError):
    """There is no model where one was looked for."""


def brief(value: object, length: int = 60) -> str:
    """How a value is shown in a message: as Python shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def refuse_long(lengths: Sequence[int], most: int) -> None:
    """Raise TooLong for prompts of which the longest has more than `most` tokens; it says which, and its length."""
    if (longest := max(lengths)) > most:
        which = f"prompt {lengths.index(longest)} of {len(lengths)}" if len(lengths) > 1 else "the prompt"
        raise TooLong(
            f"{which} is {longest} tokens long and the LLM reads {most}: give less text, fewer items, or a "
            "shorter history (in a study data.history_max)"
        )
