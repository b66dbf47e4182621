"""An API key: read from the environment when it is sent, kept nowhere, and recognised where a server shows it."""

from __future__ import annotations

import base64
import html
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from ilm_lib.data.teachers import TeacherError

LONGEST = 4096  # characters; servers take no more in a header
SHORTEST = 12  # letters and digits; a shorter one is no secret ("EMPTY", "local"), and may stand in any text


class ApiKey:
    """The key in an environment variable; its value is no attribute, so that nothing can print it.

    Args:
        variable: name of the variable; None: there is no key.

    Raises:
        TeacherError: the name is most likely the key itself, or the key cannot be sent; neither is shown.
    """

    def __init__(self, variable: str | None):
        if variable and not (variable.isidentifier() and (variable in os.environ or variable.isupper())):
            raise TeacherError(
                "elm24.teacher_key_env is the name of an environment variable, not the key, and there is no such "
                "variable; set one and give its name, e.g. OPENAI_API_KEY"
            )
        self.variable = variable
        key = self.value()
        wrong = f"{len(key):,} characters" if len(key) > LONGEST else ""
        if not re.fullmatch("[!-~]*", key):
            wrong = "a blank, a line break or a character that is not ASCII"
        if wrong:
            raise TeacherError(
                f"the API key in the environment variable {variable} has {wrong}, so it cannot be sent. "
                "Set the variable to the key alone"
            )

    def value(self) -> str:
        """The key, or "" where there is none."""
        return os.environ.get(self.variable, "").strip() if self.variable else ""

    def shown_in(self, text: str) -> bool:
        """Whether a text holds the key: as it is, with other characters between, in two halves, or encoded."""
        key = _bare(self.value())
        if len(key) < SHORTEST:
            return False
        forms, half = [key, *_encoded(self.value().encode())], len(key) // 2
        escaped = re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
        for reading in (text, escaped, unquote(unquote(text)), html.unescape(text)):
            bare = _bare(reading)
            if any(form in bare for form in forms) or (key[:half] in bare and key[half:] in bare):
                return True
        return False

    def hidden(self, text: str) -> str:
        """A text without the key: [key] in its place, or nothing of the text where it is in another form."""
        key = self.value()
        text = text.replace(key, "[key]") if len(key) > 3 else text
        return "a message with the API key in it" if self.shown_in(text) else text


def _bare(text: str) -> str:
    """Letters and digits alone: what is left whatever stands between them."""
    return re.sub("[^0-9a-z]", "", text.lower())


def _encoded(key: bytes) -> Iterator[str]:
    """The key in hexadecimal, and what base64 makes of it wherever it stands in a longer text."""
    yield key.hex()
    for before in range(3):
        whole = base64.b64encode(bytes(before) + key).decode()
        yield _bare(whole[(8 * before + 5) // 6 : 8 * (before + len(key)) // 6])
