"""What a refusal must look like; the tables of rough cases beside this file are held to it."""

import re
from collections.abc import Callable

import pytest

from ilm_lib.errors import LONGEST, Refusal


def refused(call: Callable[[], object], *names: str) -> str:
    """The message with which `call` refuses, which must be plain and hold every one of `names`."""
    with pytest.raises(Refusal) as caught:
        call()
    return plain(str(caught.value), *names)


def plain(message: str, *names: str) -> str:
    """A message, after it was found short, in one piece, without a traceback, and to hold every one of `names`."""
    bare = re.sub(r"(?:/[^/:\n]+)+/", "", message)  # where a test's folder lies is no fault of the message
    assert len(bare) <= LONGEST, f"{len(bare)} characters: {message}"
    assert "Traceback" not in message and message.count("\n") <= 2, message
    for name in names:
        assert name in message, f"{name!r} is not in: {message}"
    return message
