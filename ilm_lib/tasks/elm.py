"""The ELM-24 tasks (section 4.3): films as slots of embeddings, or in words, and what a frozen LLM writes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from transformers import LogitsProcessorList, NoRepeatNGramLogitsProcessor

from ilm_lib.data.instructions import year
from ilm_lib.model.chat import ChatTemplate
from ilm_lib.model.ilm import ILM
from ilm_lib.model.prompts import Batch, Item, Prompt, PromptEncoder
from ilm_lib.progress import progress
from ilm_lib.train.loop import drawn_batches
from ilm_lib.train.phase1 import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: A film in words: "a film" and no more, its year and genres, its title, all that is on record.
InText = Literal["nothing", "facts", "title", "card"]


@dataclass(frozen=True)
class ElmTasks:
    """The rows of `build_elm24` and the film records they are about.

    Attributes:
        rows: columns task, item, other, prompt, target, teacher, split.
        films: (I,) text records.
        chat: the template of the LLM that is asked, whose user asks and whose assistant answers; None: a prompt stands
            alone, and its answer follows after a blank.
    """

    rows: pd.DataFrame
    films: Sequence[dict]
    chat: ChatTemplate | None = None

    def asked_of(self, tokenizer: PreTrainedTokenizerBase, system: str | None = None) -> ElmTasks:
        """The same tasks as they are put to an LLM: in its chat template, where its tokenizer has one."""
        return replace(self, chat=ChatTemplate(tokenizer, system) if tokenizer.chat_template else None)

    def part(self, split: str) -> pd.DataFrame:
        return self.rows[self.rows["split"] == split].reset_index(drop=True)

    def prompt(self, row, in_text: InText | None = None, *, soft: bool = False) -> Prompt:
        """The prompt of a row (a tuple of `itertuples`), every film replaced by the slot of its embedding.

        Args:
            in_text: put words there, and no slot (`in_words`).
            soft: with a slot in front, for trained tokens that are the same for all films.
        """
        filled = [*([Item(int(row.item))] if soft else []), *self._filled(row, in_text)]
        return filled if self.chat is None else self.chat.prompt([{"role": "user", "content": filled}])

    def answer(self, target: str) -> str:
        """A target as it follows a prompt."""
        return (" " if self.chat is None else self.chat.before) + target

    @property
    def end(self) -> int | None:
        """The token that ends an answer; None: the tokenizer's end of sequence."""
        return None if self.chat is None else self.chat.end

    def _filled(self, row, in_text: InText | None) -> list[str | Item]:
        if in_text is None:
            return _fill(row.prompt, Item(int(row.item)), Item(int(row.other)) if row.other >= 0 else None)
        return _fill(row.prompt, *(in_words(self.films[int(i)], in_text) for i in (row.item, row.other)))

    def pairs(self) -> Pairs:
        """Item-text pairs of phase 1: the prompt with its titles, then the target, and the film or films.

        No item-item pairs: neighbours are what some tasks ask about (section 4.3).
        """
        rows = self.part("train")
        texts = ["".join(self._filled(r, "title")) + " " + r.target for r in rows.itertuples()]
        empty = np.empty((0, 2), dtype=np.int64)
        return Pairs(texts, rows[["item", "other"]].to_numpy(), empty, empty)

    def training_batches(
        self, encoder: PromptEncoder, size: int, seed: int, in_text: InText | None = None
    ) -> Callable[[int], Batch]:
        """Phase-2 batches, all tasks mixed; loss on the target. With films in words, a slot stands in front."""
        rows = list(self.part("train").itertuples())

        def draw(rng: np.random.Generator, count: int) -> list[tuple[Prompt, str]]:
            chosen = [rows[i] for i in rng.integers(len(rows), size=count)]
            return [(self.prompt(r, in_text, soft=in_text is not None), self.answer(r.target)) for r in chosen]

        return drawn_batches(draw, partial(encoder.batch, pack=True, end=self.end), size, seed)

    def pretraining_batches(self, encoder: PromptEncoder, size: int, seed: int) -> Callable[[int], Batch]:
        """Text-only batches for a backbone from scratch: films described in words, loss on the answer.

        A real LLM can read; ours learns here, on training films alone, to answer what is asked from what the prompt
        says of a film. With the loss on all text it would spend its steps on knowing the cards by heart. The card drops
        facts at random so that each is read where it stands.
        """
        rows = list(self.part("train").itertuples())

        def draw(rng: np.random.Generator, count: int) -> list[tuple[Prompt, str]]:
            chosen = [rows[i] for i in rng.integers(len(rows), size=count)]
            return [
                (
                    _fill(r.prompt, film_card(self.films[r.item], rng), film_card(self.films[r.other], rng)),
                    " " + r.target,
                )
                for r in chosen
            ]

        return drawn_batches(draw, partial(encoder.batch, loss_on="target", pack=True), size, seed)

    def corpus(self) -> list[str]:
        """All training text, for the tokenizers."""
        rows = self.part("train")
        films = sorted({*rows["item"], *rows.other} - {-1})
        return [*rows.prompt, *rows.target, *(film_card(self.films[i]) for i in films)]


def in_words(film: dict, form: InText) -> str:
    """A film as text: "a film"; the same with year and genres; its title; or `film_card`."""
    if form == "nothing":
        return "a film"
    title = film.get("title", "a film")
    if form == "facts":
        when = f" ({year(film)})" if year(film) else ""
        return film_card({"title": f"a film{when}", "genres": film.get("genres")})
    return title if form == "title" else film_card(film)


def film_card(film: dict, rng: np.random.Generator | None = None, keep: float = 0.7) -> str:
    """A film in words: title, then genres, tags and plot, each kept with probability `keep`, or all without `rng`."""
    parts = [film.get("title", "a film")]
    for field in ("genres", "tags", "overview"):
        value = film.get(field)
        if value and (rng is None or rng.random() < keep):
            parts.append(", ".join(value) if isinstance(value, list) else value)
    return f"{parts[0]} ({'; '.join(parts[1:])})" if len(parts) > 1 else parts[0]


def _fill(prompt: str, film: str | Item, other: str | Item | None) -> list[str | Item]:
    """Put films into `{film}` and `{other}` of a prompt, which has no `{other}` where there is no second film."""
    filled: list[str | Item] = []
    for i, piece in enumerate(prompt.split("{film}")):
        filled += [film] if i else []
        for j, text in enumerate(piece.split("{other}")):
            if j:
                assert other is not None, f"no second film for {prompt!r}"
                filled.append(other)
            filled.append(text)
    return [segment for segment in filled if segment != ""]


@torch.no_grad()
def evaluate(
    ilm: ILM,
    tasks: ElmTasks,
    rows: pd.DataFrame,
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    no_repeat_ngram: int = 0,
    in_text: InText | None = None,
    soft: bool = False,
) -> pd.DataFrame:
    """Log likelihood of the targets and greedy texts.

    Args:
        rows: test rows of `tasks`.
        in_text, soft: as in `ElmTasks.prompt`.
        no_repeat_ngram: no answer says so many tokens in a row twice; 0 lets it.

    Returns:
        `rows` with columns nll (nats, summed over the target's tokens), tokens, generated.
    """
    nll, count, texts = np.zeros(len(rows)), np.zeros(len(rows), dtype=int), [""] * len(rows)
    prompts = [tasks.prompt(r, in_text, soft=soft) for r in rows.itertuples()]
    stops: dict[str, Any] = {} if tasks.chat is None else {"eos_token_id": tasks.chat.stops}
    # Like lengths together: less padding in the loss, and short answers do not wait for long ones.
    order = np.argsort([len(t) for t in rows.target], kind="stable")
    starts = range(0, len(rows), batch_size)
    for start in progress(starts, "writing", total=len(starts)):
        index = order[start : start + batch_size]
        chosen = [prompts[i] for i in index]
        batch = ilm.encode(chosen, answers=[tasks.answer(rows.target.iloc[i]) for i in index], end=tasks.end)
        total, tokens = ilm.token_nll(batch)
        nll[index], count[index] = total.cpu().numpy(), tokens.cpu().numpy()
        written = ilm.generate(
            chosen, max_new_tokens=max_new_tokens, logits_processor=no_repeat(no_repeat_ngram), **stops
        )
        for i, text in zip(index, written):
            texts[i] = text
    return rows.assign(nll=nll, tokens=count, generated=texts)


class _NoRepeat(NoRepeatNGramLogitsProcessor):
    """Transformers' rule for the answer alone: what the prompt says may be said again."""

    start: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.start = input_ids.shape[1] if self.start is None else self.start  # the first call is before any answer
        return super().__call__(input_ids[:, self.start :], scores)


def no_repeat(ngram: int) -> LogitsProcessorList:
    """For one call of `generate`: no answer says `ngram` tokens in a row twice. 0: no rule."""
    return LogitsProcessorList([_NoRepeat(ngram)] if ngram else [])


def walk(
    ilm: ILM,
    start: int,
    end: int,
    question: Sequence[str],
    *,
    points: int = 5,
    chat: ChatTemplate | None = None,
    **kwargs: Any,
) -> list[str]:
    """What the model says on the way from one film to another: straight through the embedding space.

    Args:
        ilm: the model.
        start: item row of the first film.
        end: item row of the last.
        question: the text before and after the film, e.g. ("Summarize the movie ", ".").
        points: stops, the two films included.
        chat: as in `ElmTasks`.
        kwargs: for `ILM.generate`.
    """
    share = torch.linspace(0, 1, points, device=ilm.cf.device)[:, None]
    between = (1 - share) * ilm.cf[start] + share * ilm.cf[end]
    on_the_way = ILM(
        ilm.llm, ilm.tokenizer, ilm.encoder, between, points, item_positions=ilm.prompts.item_positions
    ).eval()
    asked: list[Prompt] = [[question[0], Item(i), question[1]] for i in range(points)]
    if chat is not None:
        asked = [chat.prompt([{"role": "user", "content": prompt}]) for prompt in asked]
    return on_the_way.generate(asked, **kwargs)
