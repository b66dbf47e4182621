"""The chat template of an LLM around turns whose content is an interleaved prompt; the only place that knows of roles.

A template is text with special tokens, written for text. Here it is rendered once around stand-ins, and what stands in
their places is put there afterwards: item tokens stay slots, and words stay words, whatever they look like. Of turns of
text alone the ids are those of the tokenizer's own `apply_chat_template`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypedDict

from jinja2.exceptions import TemplateError

from ilm_lib.model.prompts import Item, Prompt, Special, User
from ilm_lib.model.refusals import WrongKind, WrongValue, brief

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant")
_STAND_IN = re.compile("\ue000([0-9]+)\ue001")  # characters of private use, which no template looks for


def _stand_ins(count: int) -> list[str]:
    """What `_STAND_IN` finds, in the place of so many contents."""
    return [f"\ue000{number}\ue001" for number in range(count)]


class Message(TypedDict):
    """One turn: who speaks, "system", "user" or "assistant", and what, a text or a list of str, Item and User."""

    role: str
    content: str | Prompt


class ChatTemplate:
    """Turns to the prompt that an LLM was taught to answer, and the mark that ends its answer.

    Args:
        tokenizer: of the LLM. Without a chat template turns are lines that begin with who speaks, "user: ...".
        system: what every conversation begins with, unless it has a turn of the system itself. None: what the template
            says by itself, most often nothing.

    Attributes:
        end: id of the token that ends an answer; where the template has none, the end of sequence.
        before: text between the prompt and an answer, most often none.
        takes_notes: the system may also speak after the user.

    Raises:
        WrongValue: the template does not take a user's turn and an answer.

    Example:
        >>> template = ChatTemplate(ilm.tokenizer)
        >>> ilm.generate(template.prompt([{"role": "user", "content": ["Who would like ", Item(17), "?"]}]))
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None):
        self.tokenizer, self.system = tokenizer, system
        self._marks = {t.content: (i, t) for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        names = sorted(self._marks, key=len, reverse=True)
        self._any_mark = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
        self.takes_system = tokenizer.chat_template is None or self._renders("system", "user")
        self.takes_notes = tokenizer.chat_template is None or self._renders("user", "system")
        self.before, self.end = self._around_answer()

    @property
    def stops(self) -> list[int]:
        """The tokens at which an answer is over: its mark, and the end of sequence."""
        return [self.end, int(self.tokenizer.eos_token_id)]

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The conversation so far, up to where the LLM speaks.

        Args:
            messages: turns, the oldest first; the last one is not the assistant's.

        Raises:
            WrongKind, WrongValue: these are no turns that the template takes; the message says which and why.
        """
        turns = self.checked(messages)
        texts = _stand_ins(len(turns))
        written = self._rendered([role for role, _ in turns], texts)
        pieces = _STAND_IN.split(written)  # text, number, text, number, ..., text
        if [int(n) for n in pieces[1::2]] != list(range(len(turns))):
            raise WrongValue("the LLM's chat template does not show every turn once and in order: give it another one")
        prompt: list[str | Item | User | Special] = [*self._with_marks(pieces[0])]
        for (_, content), text in zip(turns, pieces[2::2]):
            prompt += [*content, *self._with_marks(text)]
        return [segment for segment in prompt if segment != ""]

    def checked(self, messages: Sequence[Message]) -> list[tuple[str, Prompt]]:
        """Roles and contents, the system's turn where it can stand; the errors are those of `prompt`."""
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
            raise WrongKind(f"messages are {brief(messages)}: give a list of {{'role': ..., 'content': ...}}")
        turns: list[tuple[str, Prompt]] = []
        for number, message in enumerate(messages):
            if not isinstance(message, Mapping) or {*message} != {"role", "content"}:
                raise WrongKind(f"message {number} is {brief(message)}: give {{'role': ..., 'content': ...}}")
            role, content = message["role"], message["content"]
            if role not in ROLES:
                raise WrongValue(f"message {number} has the role {brief(role)}: give one of {', '.join(ROLES)}")
            if not isinstance(content, (str, list, tuple)):
                raise WrongKind(f"message {number} says {brief(content)}: give a text or a list of str, Item and User")
            turns.append((role, [content] if isinstance(content, str) else list(content)))
        if turns[-1][0] == "assistant":
            raise WrongValue("the last message is the assistant's: the LLM answers what the user says last")
        if self.system is not None and turns[0][0] != "system":
            turns.insert(0, ("system", [self.system]))
        if turns[0][0] == "system" and not self.takes_system:
            (_, says), *rest = turns
            if not rest:
                raise WrongValue("there is a message of the system alone: give one of the user")
            turns = [(rest[0][0], [*says, "\n\n", *rest[0][1]]), *rest[1:]]
        return turns

    def _rendered(self, roles: Sequence[str], texts: Sequence[str]) -> str:
        """What the template writes of turns of text, and whatever comes before an answer."""
        if self.tokenizer.chat_template is None:
            return "\n".join([*(f"{role}: {text}" for role, text in zip(roles, texts)), "assistant:"])
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
        try:
            # Models that can think aloud would spend the whole answer on it; other templates ignore the switch.
            options: dict[str, Any] = {"add_generation_prompt": roles[-1] != "assistant", "enable_thinking": False}
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except TemplateError as error:
            raise WrongValue(f"the LLM's chat template refuses these turns: {brief(str(error))}") from None

    def _renders(self, *roles: str) -> bool:
        """Whether the template takes such turns, and shows them in their order."""
        texts = _stand_ins(len(roles))
        try:
            written = self._rendered(roles, texts)
        except WrongValue:
            return False
        return _STAND_IN.findall(written) == [*map(str, range(len(roles)))]

    def _around_answer(self) -> tuple[str, int]:
        """The text between prompt and answer, and the token after it."""
        if self.tokenizer.chat_template is None:
            return " ", int(self.tokenizer.eos_token_id)
        question, answer = _stand_ins(2)
        asked = self._rendered(["user"], [question])
        whole = self._rendered(["user", "assistant"], [question, answer])
        head, _, rest = whole.partition(answer)
        mark = self._any_mark.search(rest)
        ends = mark if mark and not rest[: mark.start()].strip() else None
        end = self._marks[ends.group()][0] if ends else self.tokenizer.eos_token_id
        # A thought that is switched off stands in the prompt, and not in what was said before.
        return head[len(asked) :] if whole.startswith(asked) else "", int(end)

    def _with_marks(self, text: str) -> list[str | Special]:
        """A piece of the template: its special tokens by their ids, between them text."""
        pieces = self._any_mark.split(text)  # text, mark, text, ..., text
        for place in range(1, len(pieces), 2):  # a token may take the blanks beside it with it
            token = self._marks[pieces[place]][1]
            pieces[place - 1] = pieces[place - 1].rstrip() if token.lstrip else pieces[place - 1]
            pieces[place + 1] = pieces[place + 1].lstrip() if token.rstrip else pieces[place + 1]
        return [Special(self._marks[piece][0]) if n % 2 else piece for n, piece in enumerate(pieces)]


def chat_template(tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> ChatTemplate:
    """The `ChatTemplate` of a tokenizer; made once, as long as the tokenizer stays as it is."""
    return _made(tokenizer, system, str(tokenizer.chat_template), len(tokenizer))


@lru_cache(8)
def _made(tokenizer: PreTrainedTokenizerBase, system: str | None, *_: object) -> ChatTemplate:
    return ChatTemplate(tokenizer, system)
