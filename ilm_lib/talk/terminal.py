"""`python -m ilm_lib chat`: a conversation with a model in the terminal.

Say what you like, or name something that you liked: the reply comes as it is written, and what it recommends stands
under it in order. Nothing that was named is recommended again. A line that begins with / is a command; /help lists
them. Lines may also come from a file or a pipe. Nothing of a conversation is kept.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TextIO

from ilm_lib.errors import Refusal
from ilm_lib.model.chat import Message
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Item
from ilm_lib.model.recommend import Recommendation
from ilm_lib.talk.marks import Marks, printable
from ilm_lib.talk.model_argument import add_model, load

HELP = """\
/help          these lines
/seen TITLE    leave it out from now on; a title, an id, or a number of the last list; alone: what is left out
/no TITLE      not for me: left out as well, and not taken for something that you like
/again         start anew; what you have seen or rejected stays left out
/quit          end (as the end of input and Ctrl-C do)"""


def add_arguments(commands: Any) -> None:
    """The sub-command and what it takes."""
    parser = commands.add_parser("chat", prog="python -m ilm_lib chat", description=__doc__)
    add_model(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command with its arguments. Raises Refusal."""
    for stream in (sys.stdin, sys.stdout):  # no letter that a terminal cannot show, or a file holds wrong, ends it
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")
    out = sys.stdout
    try:
        talk = Talk(load(args), args.k, out)
        if sys.stdin.isatty():
            talk.say("Say what you like, or name something that you liked. /help lists the commands.\n\n")
            talk.follow(typed())
        else:
            talk.follow(iter(sys.stdin.readline, ""))
    except KeyboardInterrupt:
        print(file=out)
    except BrokenPipeError:  # who read it, as `head`, has had enough; nothing is left to be flushed at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def typed() -> Iterator[str]:
    """Lines that somebody types, up to the end of input."""
    try:
        import readline  # noqa: F401  with it lines can be edited, and the last ones come again
    except ImportError:
        pass
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return


class Talk:
    """A conversation, and where it is written to.

    Args:
        ilm: a model that was trained on dialogues.
        k: items in a reply, from 1.
        out: titles are bold where it is a terminal, and the variable NO_COLOR is not set.
    """

    def __init__(self, ilm: ILM, k: int, out: TextIO):
        self.ilm, self.k, self.out = ilm, k, out
        self.marks = Marks(ilm.names())
        self.bold = out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.messages: list[Message] = []
        self.seen: list[Item] = []
        self.rejected: list[Item] = []
        self.listed: list[Recommendation] = []
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.say(f"{HELP}\n"),
            "/seen": partial(self._leave_out, self.seen),
            "/no": partial(self._leave_out, self.rejected),
            "/again": self._again,
        }

    def follow(self, lines: Iterator[str]) -> None:
        """Answer line after line, up to the last one or /quit. What the library refuses is one line, and it goes on."""
        for line in lines:
            word, _, rest = line.strip().partition(" ")
            try:
                if word in ("/quit", "/exit"):
                    return
                if word in self._commands:
                    self._commands[word](rest.strip())
                elif word.startswith("/"):
                    self.say(f"There is no command {word[:40]}; /help lists them.\n")
                elif word:
                    self._answer(line.strip())
            except Refusal as error:
                self.say(f"error: {error}\n")

    def say(self, text: str) -> None:
        """Write at once."""
        self.out.write(printable(text))
        self.out.flush()

    def title(self, item: Item) -> str:
        """The title as it is said, without what a terminal would obey."""
        return printable(self.marks.write(item))

    def _answer(self, line: str) -> None:
        asked: list[Message] = [*self.messages, {"role": "user", "content": self.marks.read(line)}]
        reply = self.ilm.chat(asked, self.k, seen=self.seen, rejected=self.rejected)
        try:
            for part in reply:
                if isinstance(part, Item) and self.bold:
                    self.out.write(f"\033[1m{self.title(part)}\033[0m")
                    self.out.flush()
                else:
                    self.say(self.title(part) if isinstance(part, Item) else part)
        finally:  # the LLM may find the prompt too long midway
            self.say("\n")
        # a turn that was refused was never said, and one that was answered is
        self.messages = [*asked, {"role": "assistant", "content": reply.content}]
        self.listed = reply.recommended
        self.say("".join(f"  {n}. {self.title(one.item)}\n" for n, one in enumerate(self.listed, 1)) + "\n")

    def _leave_out(self, kept: list[Item], name: str) -> None:
        """Add an item to those seen or to those rejected; without a name say which are left out."""
        if not name:
            known = ", ".join(map(self.title, dict.fromkeys([*self.seen, *self.rejected])))
            return self.say(f"Left out: {known}.\n" if known else "Nothing is left out: /seen TITLE leaves it out.\n")
        of_list = name.isascii() and name.isdigit() and len(name) < 4 and 1 <= int(name) <= len(self.listed)
        item = self.listed[int(name) - 1].item if of_list else self.ilm.item(name)
        if item not in kept:
            kept.append(item)
        self.say(f"{self.title(item)} is left out from now on.\n")

    def _again(self, _: str) -> None:
        self.messages, self.listed = [], []
        self.say("We start anew.\n")
