"""A dialogue as the score read-out reads it: where the assistant speaks stands first whoever it speaks to.

    <|im_start|>user
    Something like Heat (1995) [item tokens], but funnier?<|im_end|>
    <|im_start|>assistant
    [tokens of the seeker]

The slot is a user's, made of the items named so far and of what was said (`Seekers`). There the LLM has read all turns
before it, words and items, and nothing of the turn that follows; what it has is held against all items. So a dialogue
is read once in training, and every turn that names items is asked for.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ilm_lib.model.chat import ChatTemplate, Message, chat_template
from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.model.refusals import WrongValue

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Content = Sequence[str | Item]


class AskedPrompt(NamedTuple):
    """A prompt that asks for items.

    Attributes:
        prompt: its users' slots are the places, `User(first)`, `User(first + 1)`, ...
        named: of each place the rows of the items named before it, each once, the oldest first.
        said: of each place what was said before it, in words and without the items.
        banned: of each place the rows of all items named before it, whether the prompt shows them or not.
    """

    prompt: Prompt
    named: list[list[int]]
    said: list[str]
    banned: list[list[int]]


@dataclass(frozen=True)
class DialoguePrompt:
    """How a dialogue stands in the prompt of the score read-out.

    Attributes:
        titles: an item's title stands before its tokens.
        tokens: items have tokens. False: the LLM reads words alone, and the seeker's slot holds nothing of items.
        words: what is said in words is shown. False: the LLM reads the items named, and nothing else.
        history_max: most slots in a prompt; the oldest turns go.
        system: what every dialogue begins with, in words; "": what the template says by itself.
    """

    titles: bool = True
    tokens: bool = True
    words: bool = True
    history_max: int = 50
    system: str = ""

    @property
    def shows_users(self) -> bool:
        """False: the users in its prompts are made of the items named, and none is one that the model knows."""
        return False

    def template(self, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
        """The LLM's chat template, with the system's words."""
        return chat_template(tokenizer, self.system or None)

    def render(
        self,
        template: ChatTemplate,
        titles: Sequence[str],
        turns: Sequence[Message],
        first: int,
        *,
        told: bool = False,
        rejected: Container[int] = (),
    ) -> AskedPrompt:
        """The prompt of a dialogue, a place at every turn of the assistant.

        Args:
            template: of `template`.
            titles: (I,) of all items.
            turns: the oldest first, in any order of who speaks. Items stand in their contents, no title beside them.
            first: the number of the user that the first place shows.
            told: the dialogue is told to its end, as in training, and the last turn of the assistant's is the last
                place; else it goes on, and the turn that comes next is.
            rejected: rows of items that are not wanted: they are read, and no place has them among the named.

        Raises:
            WrongValue: a dialogue is told in which the assistant never speaks.
        """
        named: list[list[int]] = []
        said: list[str] = []
        banned: list[list[int]] = []
        known: dict[int, None] = {}  # in the order of their first mention
        words = ""

        def asks() -> User:
            named.append([*known] if self.tokens else [])
            banned.append([*known])
            said.append(words if self.words else "")
            return User(first + len(named) - 1)

        messages: list[tuple[str, list[str | Item | User]]] = []
        for role, content in self._latest(_spoken(turns, told)):
            asked: list[str | Item | User] = [asks()] if role == "assistant" else []
            rows = [segment.row for segment in content if isinstance(segment, Item)]
            known.update((row, None) for row in rows if row not in rejected)
            words = " ".join([words, *(segment for segment in content if isinstance(segment, str))])
            if not messages and role == "assistant":
                messages.append(("user", []))  # templates begin with a user's turn
            if messages and messages[-1][0] == role:  # and have the speakers take turns
                messages[-1][1].append("\n")
            else:
                messages.append((role, []))
            messages[-1][1].extend([*asked, *self.shows(content, titles)])
        own = messages.pop()[1] if messages[-1][0] == "assistant" else []  # what it has said so far in its turn
        if told:  # what it says in the last one asks for nothing
            own = own[: max(place for place, segment in enumerate(own) if isinstance(segment, User)) + 1]
        else:
            own = [*own, *["\n"] * bool(own), asks()]
        before = template.prompt([{"role": role, "content": content} for role, content in messages])
        return AskedPrompt([*before, *[template.before] * bool(template.before), *own], named, said, banned)

    def render_all(
        self,
        template: ChatTemplate,
        titles: Sequence[str],
        dialogues: Iterable[Sequence[Message]],
        first: int,
        *,
        told: bool = False,
    ) -> list[AskedPrompt]:
        """The prompts of several dialogues, whose places are numbered in order; arguments as of `render`."""
        found: list[AskedPrompt] = []
        for turns in dialogues:
            found.append(self.render(template, titles, turns, first, told=told))
            first += len(found[-1].named)
        return found

    def shows(self, content: Content, titles: Sequence[str]) -> list[str | Item]:
        """What stands in a prompt of a turn's content; `titles` as in `render`."""
        shown: list[str | Item] = []
        for segment in content:
            if isinstance(segment, Item):
                shown += [titles[segment.row]] * self.titles + [segment] * self.tokens
            elif self.words:
                shown.append(segment)
        return shown

    def _latest(self, turns: Sequence[tuple[str, Content]]) -> Sequence[tuple[str, Content]]:
        """The last turns, of the first of them the last part, that have no more slots than there may be."""
        room = self.history_max - 1
        for start in range(len(turns) - 1, -1, -1):
            role, content = turns[start]
            room -= role == "assistant"
            for place in range(len(content) - 1, -1, -1):
                room -= self.tokens and isinstance(content[place], Item)
                if room < 0:
                    return [(role, content[place + 1 :]), *turns[start + 1 :]]
        return turns


def _spoken(turns: Sequence[Message], told: bool) -> list[tuple[str, Content]]:
    """Roles and contents; of a dialogue that is told up to the assistant's last turn."""
    said = lambda content: [content] if isinstance(content, str) else content
    spoken: list[tuple[str, Content]] = [(turn["role"], said(turn["content"])) for turn in turns]
    if not told:
        return spoken
    if "assistant" not in (roles := [role for role, _ in spoken]):
        raise WrongValue("no turn is the assistant's: there is nothing to ask for")
    return spoken[: len(roles) - roles[::-1].index("assistant")]
