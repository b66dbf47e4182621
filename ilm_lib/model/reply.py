"""`ILM.chat`: the model's turn in a conversation.

Where the user asks about items that were named, it tells of them (`inquiry`). Else it recommends: the read-out's query
where the assistant is to speak, held against all items, those named so far left out. Then the LLM writes, with the
chosen items in its prompt. Every item of a reply is one of the catalogue's, put there by us; between items the LLM
writes in small letters, so it cannot name one of its own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from ilm_lib.model import door
from ilm_lib.model.backbone import context_length
from ilm_lib.model.chat import Message, chat_template
from ilm_lib.model.dialogue import DialoguePrompt
from ilm_lib.model.inquiry import asked_about
from ilm_lib.model.pen import SENTENCE, Pen
from ilm_lib.model.prompts import Item, Prompt, User
from ilm_lib.model.recommend import Recommendation, dialogue_prompt, place_queries, recommended
from ilm_lib.model.refusals import WrongKind, brief
from ilm_lib.model.scoring import top_items
from ilm_lib.model.titles import readable, words_of

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM

LONGEST = 4_000  # characters of a text that are read, its last ones
FACTS = 40  # words of an item's text that are shown
TOLD = 80  # and that are told to who asks about it
ASKS = (
    "What do you like? Name one or two, or say what you are looking for.",
    "Tell me a little more: one that you liked, or what kind it should be.",
)
LEADS = ("How about ", "\nOr ", "\nYou could also try ")
FRAME = "? It is"
#: Words that say nothing of what one likes.
EMPTY = set(
    "a an any are at can could do evening film films find for get give good hello help hey hi how i i'd i'm is like "
    "looking me morning movie movies my need of ok please recommend recommendation should show some something suggest "
    "tell thank thanks the there to today tonight us want watch we what would yes you your".split()
)


@dataclass
class Reply:
    """What the model says in its turn. A reply is iterated as it is written, a text or an Item at a time.

    Attributes:
        recommended: what it recommends, best first; [] where it asks back, or tells of items that it was asked about.
            There before the first word is written.
        understood: the turns so far, with items in the place of their names.

    Example:
        >>> reply = ilm.chat([{"role": "user", "content": "Something like Toy Story, but sadder"}])
        >>> for part in reply:
        ...     print(part if isinstance(part, str) else ilm.title(part), end="", flush=True)
    """

    recommended: list[Recommendation]
    understood: list[Message]
    _parts: Iterator[str | Item]
    _titles: Sequence[str]
    _said: list[str | Item] = field(default_factory=list)

    def __iter__(self) -> Iterator[str | Item]:
        place = 0
        while True:
            if place == len(self._said):
                if (part := next(self._parts, None)) is None:
                    return
                self._said.append(part)
            yield self._said[place]
            place += 1

    @property
    def content(self) -> Prompt:
        """The whole reply, for the next call's messages; adjacent texts are one."""
        joined: list[str | Item] = []
        for part in self:
            if isinstance(part, str) and joined and isinstance(joined[-1], str):
                joined[-1] += part
            else:
                joined.append(part)
        return joined

    @property
    def text(self) -> str:
        """The whole reply in words, titles in the place of items."""
        return "".join(self._titles[part.row] if isinstance(part, Item) else part for part in self)


def chat(
    ilm: ILM,
    messages: Sequence[Message],
    k: int = 3,
    *,
    seen: Iterable[Item | str] = (),
    rejected: Iterable[Item | str] = (),
    tokens: bool = True,
    writes: bool = True,
) -> Reply:
    """See `ILM.chat`."""
    shown = dialogue_prompt(ilm)
    k, writes = door.whole_number(k, "k"), door.yes_or_no(writes, "writes")
    if not door.yes_or_no(tokens, "tokens"):
        shown = replace(shown, titles=True, tokens=False)
    turns = understood(ilm, messages)
    listed = lambda given, name: door.history_rows(given, ilm.names(), ilm.num_items, name)
    unwanted, known = {*listed(rejected, "rejected")}, listed(seen, "seen")
    named = [part.row for turn in turns for part in turn["content"] if isinstance(part, Item)]
    titles = ilm.names().spoken
    if about := asked_about(turns):
        return Reply([], turns, _informed(ilm, shown, turns, about), titles)
    if unwanted.issuperset(named) and not _tells(turns):
        asked = sum(turn["role"] == "assistant" for turn in turns)
        return Reply([], turns, iter([ASKS[asked % len(ASKS)]]), titles)
    query = _query(ilm, shown, _that_fit(ilm, shown, turns), unwanted)
    rows, found = top_items(query, *ilm.table(), k, [[*named, *known, *unwanted]])
    best = recommended(ilm.names(), rows[0].tolist(), found[0].tolist())
    if not best:
        return Reply([], turns, iter(["You have named everything that I know."]), titles)
    return Reply(best, turns, _written(ilm, shown, turns, [one.item for one in best], writes), titles)


def understood(ilm: ILM, messages: Sequence[Message]) -> list[Message]:
    """The turns of a conversation, with items in the place of their names and each a list.

    Raises:
        WrongKind, WrongValue, OutOfRange: these are no turns, the last is not the user's, or an Item is none of the
            model's.
    """
    turns: list[Message] = []
    for role, content in chat_template(ilm.tokenizer).checked(messages):
        prompt = door.as_prompts([[*content] if any(content) else [" "]])[0][0]
        # Without an encoder items stand as their titles, so a reply's own can be given back to any model.
        door.fit([prompt], ilm.num_items, ilm.num_users, encoder=True)
        if any(not isinstance(part, (str, Item)) for part in prompt):
            raise WrongKind(f"a message of a conversation holds text and Items alone, not {brief(prompt)}")
        linked = [out for part in prompt for out in (ilm.link(part[-LONGEST:]) if isinstance(part, str) else [part])]
        turns.append({"role": role, "content": linked if role != "system" else prompt})
    return turns


def _query(ilm: ILM, shown: DialoguePrompt, turns: Sequence[Message], rejected: Container[int]) -> Tensor:
    """(1, d) the read-out's query where the assistant is to speak, for `ILM.table`."""
    template = shown.template(ilm.tokenizer)
    asked = shown.render(template, ilm.names().spoken, turns, ilm.num_users, rejected=rejected)
    return place_queries(ilm, [asked], held=True)[-1:]


def _that_fit(ilm: ILM, shown: DialoguePrompt, turns: Sequence[Message], room: int = 256) -> Sequence[Message]:
    """The last turns that the LLM can read with `room` tokens beside them, of a last one that is too long the end."""
    context = context_length(ilm.llm)
    most = context - min(room, context // 2)
    said = lambda turns: [part for turn in turns for part in shown.shows(turn["content"], ilm.names().spoken)]
    length = lambda turns: len(ilm.prompts.encode(said(turns))[0]) + 16 * len(turns)
    start = len(turns)
    while start and length(turns[start - 1 :]) < most:  # from the end: what does not fit is read once, not every time
        start -= 1
    if start < len(turns):
        return turns[start:]
    (last,) = turns[-1:]
    while length([last]) >= most:
        content = list(last["content"])
        half = lambda part: part[len(part) // 2 + 1 :] if isinstance(part, str) else part
        last = {**last, "content": [*content[len(content) // 2 :]] if len(content) > 1 else [half(content[0])]}
    return [last]


def _tells(turns: Sequence[Message]) -> bool:
    """Whether the user has said anything of what they like."""
    said = " ".join(p for t in turns if t["role"] == "user" for p in t["content"] if isinstance(p, str))
    return any(word.key not in EMPTY for word in words_of(said))


def _written(
    ilm: ILM, shown: DialoguePrompt, turns: Sequence[Message], items: Sequence[Item], writes: bool
) -> Iterator[str | Item]:
    """The reply that recommends items, a part at a time."""
    if not writes:
        for number, item in enumerate(items):
            yield LEADS[0] if not number else " or " if number == len(items) - 1 else ", "
            yield item
        yield "?"
        return
    with closing(Pen(ilm)) as pen:
        yield from _sentences(ilm, shown, pen, _to_write(ilm, shown, turns, items), items)


def _sentences(ilm: ILM, shown: DialoguePrompt, pen: Pen, prompt: list, items: Sequence[Item]) -> Iterator[str | Item]:
    """Each item with a sentence about it, written as if it were the only one.

    Behind the sentence about another a small LLM says the same again (SmolLM2 in 23 of 38 replies to people).
    """
    name, taught = ilm.names(), ilm.tokenizer.chat_template is not None
    of = lambda item: readable(name.texts[item.row]) if name.texts else ""
    for number, item in enumerate(items):
        lead = LEADS[min(number, len(LEADS) - 1)]
        if not taught and (own := own_words(of(item), readable(name.titles[item.row]))):
            yield from (lead, item, f": {own}")
            continue
        said = [*prompt, LEADS[0], name.spoken[item.row], *_tokens(ilm, shown, item), FRAME]
        if len(ilm.prompts.encode(said)[0]) + SENTENCE > context_length(ilm.llm):
            yield from (lead, item, ".")  # there is room for no more of the LLM's own
            continue
        yield from (lead, item, FRAME)
        yield from pen.sentence(said)


def _informed(ilm: ILM, shown: DialoguePrompt, turns: Sequence[Message], items: Sequence[Item]) -> Iterator[str | Item]:
    """What is known of items, a part at a time: an item's own text, and where it has none the LLM's words."""
    name, prompt = ilm.names(), _to_write(ilm, shown, turns, items)
    for number, item in enumerate(items):
        yield from ["\n"] * bool(number)
        yield item
        title = readable(name.titles[item.row])
        if own := own_words(readable(name.texts[item.row]) if name.texts else "", title, TOLD):
            yield f": {own}"
            continue
        yield " is"
        with closing(Pen(ilm)) as pen:
            yield from pen.sentence([*prompt, name.spoken[item.row], *_tokens(ilm, shown, item), " is"])


def own_words(text: str, title: str, most: int = FACTS) -> str:
    """The first sentences of an item's text, without its title; what an LLM that was not taught to answer is spared.

    Args:
        most: words.

    >>> own_words("Heat (1995). Crime, Drama. A detective hunts a thief.", "Heat (1995)")
    'Crime, Drama. A detective hunts a thief.'
    """
    sentences = text.removeprefix(title).lstrip(". ").split(". ")
    kept = [end for end in range(1, len(sentences) + 1) if len(" ".join(sentences[:end]).split()) <= most]
    return ". ".join(sentences[: max(kept, default=1)]).rstrip(".") + "." if sentences[0] else ""


def _to_write(ilm: ILM, shown: DialoguePrompt, turns: Sequence[Message], items: Sequence[Item]) -> list:
    """The prompt in which the LLM writes: the turns so far, then what is known of the items.

    In this order the next prompt begins like this one. What is known is a note of the system's, where the LLM takes one
    there: SmolLM2 makes more of it than at the end of the user's turn, or in front of all turns.
    """
    name, template = ilm.names(), shown.template(ilm.tokenizer)
    told: list[str | Item] = ["To recommend:"]
    for item in items:
        text = readable(name.texts[item.row]) if name.texts else ""
        told += ["\n", *[name.spoken[item.row]] * (not shown.titles), item]
        told += [f": {' '.join(text.split()[:FACTS])}"] * bool(text)
    spoken = [turn for turn in _that_fit(ilm, shown, turns, 512) if turn["role"] != "system"]
    if template.takes_notes:
        spoken.append({"role": "system", "content": told})
    else:
        spoken[-1] = {"role": "user", "content": [*spoken[-1]["content"], "\n\n", *told]}
    asked = shown.render(template, name.spoken, spoken, ilm.num_users)
    return [part for part in asked.prompt if not isinstance(part, User)]  # seekers' slots are the read-out's


def _tokens(ilm: ILM, shown: DialoguePrompt, item: Item) -> list[Item]:
    """The item where the LLM reads items."""
    return [] if ilm.encoder is None or not shown.tokens else [item]
