"""Arguments of a command, of which what is wrong is one line and not a wall of usage."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from ilm_lib.errors import Refusal
from ilm_lib.explain import shown


class BadArgument(Refusal, ValueError):
    """An argument that a command cannot use; the message names it, with what it takes."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises BadArgument and guesses no option from its first letters."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise BadArgument(f"{message[:200]}; `{self.prog} --help` lists what it takes")


def whole(most: int, least: int = 1) -> Callable[[str], int]:
    """The type of an option that counts: digits alone, `least` or more and no more than `most`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text.strip()) or len(text) > 20 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number from {least} to {most:,}")
        return int(text)

    return read
