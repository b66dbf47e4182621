"""Dialogues as a model with a head reads them: training batches with a target at every turn that names items, and the
scores of every question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ilm_lib.data.conversations import Dialogue, Turn
from ilm_lib.model.chat import ChatTemplate, Message
from ilm_lib.model.dialogue import AskedPrompt, DialoguePrompt
from ilm_lib.model.prompts import Item, PromptEncoder, User
from ilm_lib.model.recommend import dialogue_prompt, place_queries
from ilm_lib.model.seekers import Seekers
from ilm_lib.processes import own
from ilm_lib.tasks.conversation import Question, recall_metrics, target_ranks
from ilm_lib.tasks.scoring import NO_LOSS, Histories

if TYPE_CHECKING:
    from ilm_lib.model.ilm import ILM


@dataclass(frozen=True)
class Talk:
    """A dialogue whose films are items of a catalogue.

    Attributes:
        turns: the oldest first; of a film that the catalogue does not have the title stands there in words.
        targets: of each of the assistant's turns the rows that it should recommend, [] where it is not asked.
    """

    turns: list[Message]
    targets: list[list[int]]


def talks_of(dialogues: Sequence[Dialogue], rows: Mapping[str, int], questions: Sequence[Question]) -> list[Talk]:
    """Dialogues with what is asked in them, up to the last turn that is: a third of ReDial's words come after it.

    Args:
        rows: ReDial's id -> row in the catalogue.
        questions: of `conversation.questions_of`.
    """
    asked: dict[tuple[int, int], list[int]] = {}
    for question in questions:
        asked.setdefault((question.dialogue, question.turn), []).append(question.target)
    last = {dialogue: turn for dialogue, turn in sorted(asked)}
    talks = []
    for number, dialogue in enumerate(dialogues):
        told = dialogue.turns[: last.get(number, -1) + 1]
        wanted = [asked.get((number, turn), []) for turn, said in enumerate(told) if said.recommender]
        talks.append(Talk(messages_of(told, rows), wanted))
    return talks


def messages_of(turns: Sequence[Turn], rows: Mapping[str, int]) -> list[Message]:
    """Turns as a model reads them: films by their rows, and by name those that `rows` does not have."""
    said = lambda part: part if isinstance(part, str) else Item(rows[part.id]) if part.id in rows else part.name
    role = lambda turn: "assistant" if turn.recommender else "user"
    return [{"role": role(turn), "content": [said(part) for part in turn.content]} for turn in turns]


@dataclass(frozen=True)
class DialogueTasks:
    """Talks as the read-out of a model is asked in them.

    Attributes:
        num_users: of the model; seekers' slots follow them.
        titles: (I,) as items are called in a prompt.
        seekers: makes the vectors of those who ask.
    """

    num_users: int
    titles: Sequence[str]
    prompt: DialoguePrompt
    template: ChatTemplate
    seekers: Seekers

    @classmethod
    def of(cls, ilm: ILM) -> DialogueTasks:
        """As a model with a head over dialogues is asked."""
        shown = dialogue_prompt(ilm)
        return cls(ilm.num_users, ilm.names().spoken, shown, shown.template(ilm.tokenizer), ilm.seekers)

    def training_batches(
        self, encoder: PromptEncoder, talks: Sequence[Talk], size: int, seed: int
    ) -> Callable[[int], Histories]:
        """Batches for `loop.fit`: every talk that asks for something once before any comes again.

        Where a turn asks for several items, one of them is drawn each time.
        """
        talks = [talk for talk in talks if any(talk.targets)]
        an_epoch = -(-len(talks) // size)

        def batch(number: int) -> Histories:
            epoch, part = divmod(number, an_epoch)
            order = np.random.default_rng([seed, epoch]).permutation(len(talks))
            rng = np.random.default_rng([seed, epoch, part])
            return self.histories(encoder, [talks[n] for n in own(order[part * size : (part + 1) * size])], rng)

        return batch

    def histories(self, encoder: PromptEncoder, talks: Sequence[Talk], rng: np.random.Generator) -> Histories:
        """Talks as a batch; `rng` draws the target of a turn that asks for several."""
        asked = self.asked(talks)
        targets: list[int] = []
        banned: list[Sequence[int]] = []
        for talk, one in zip(talks, asked):
            wanted = iter(zip(_latest(talk, one), one.banned))
            for segment in one.prompt:
                if isinstance(segment, (User, Item)):
                    rows, named = next(wanted) if isinstance(segment, User) else ((), ())
                    targets.append(rows[rng.integers(len(rows))] if rows else NO_LOSS)
                    banned.append(named)
        batch = encoder.batch([one.prompt for one in asked], pack=True)
        return Histories(batch, torch.tensor(targets), self.seekers.of_places(asked), banned)

    def asks(self, talks: Sequence[Talk]) -> tuple[list[Question], Tensor]:
        """What is asked in talks, and the vectors (Q, d) of those who ask it."""
        talks = [talk for talk in talks if any(talk.targets)]
        asked = self.asked(talks)
        vectors = iter(self.seekers.of_places(asked))
        questions, own = [], []
        for number, (talk, one) in enumerate(zip(talks, asked)):
            for turn, (wanted, named, vector) in enumerate(zip(_latest(talk, one), one.banned, vectors)):
                questions += [Question(number, turn, row, tuple(named)) for row in wanted]
                own += [vector] * len(wanted)
        return questions, torch.stack(own)

    def asked(self, talks: Sequence[Talk]) -> list[AskedPrompt]:
        """The prompts of talks; the places of all are numbered in order."""
        told = [talk.turns for talk in talks]
        return self.prompt.render_all(self.template, self.titles, told, self.num_users, told=True)


def _latest(talk: Talk, one: AskedPrompt) -> list[list[int]]:
    """The targets of the turns that a prompt shows; of a long talk the oldest may be left out."""
    return talk.targets[len(talk.targets) - len(one.named) :]


@torch.no_grad()
def scores(ilm: ILM, talks: Sequence[Talk], *, autocast: bool = False) -> np.ndarray:
    """(Q, I) scores of all items at every question of talks, in the order of `conversation.questions_of`.

    Each talk is read once. Turns that ask for several items have a row for each of these.

    Raises:
        ValueError: a talk has more slots than a prompt may have.
    """
    talks = [talk for talk in talks if any(talk.targets)]
    asked = DialogueTasks.of(ilm).asked(talks)
    if any(len(one.named) != len(talk.targets) for one, talk in zip(asked, talks)):
        raise ValueError("a talk has more turns and items than the model reads: raise DialoguePrompt.history_max")
    with torch.autocast(ilm.device.type, torch.bfloat16, enabled=autocast):
        queries = place_queries(ilm, asked)
    table, bias = ilm.table()
    of_places = torch.addmm(bias, queries, table.T).float().cpu().numpy()  # (A, I)
    wanted = [len(rows) for talk in talks for rows in talk.targets]
    return np.repeat(of_places, wanted, axis=0)


def dev_metrics(ilm: ILM, talks: Sequence[Talk], questions: Sequence[Question], *, autocast: bool = False) -> dict:
    """Recall at the dev questions, and NDCG@10, by which weights are chosen."""
    ranks = target_ranks(scores(ilm, talks, autocast=autocast), questions)
    gain = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)
    found = recall_metrics(ranks) | {"NDCG@10": gain}
    return {f"dev {name}": float(values.mean()) for name, values in found.items()}
