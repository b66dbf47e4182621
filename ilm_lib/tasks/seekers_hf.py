"""Simulated seekers in an LLM's words: rules decide what is done and said, and the LLM says it in its own way.

The rules are those of `TemplateSeeker`: the same wish, the same acts, the same facts in the same order, and the same
sentences about films, in which films stand as films. Sentences that say a fact ("I would rather have a crime film.")
are worded anew. What the LLM writes is not trusted: `fault` refuses a sentence that has a word of the title, has lost
the fact, or says something else besides. Where every attempt is refused the seeker says the template's own sentence.

How a fact is worded depends on the fact, a seed, and which of `voices` the seeker has; it does not depend on what was
recommended, nor on who else is asked. So one turn of many conversations is one batch (`Rewording.prepare`), methods
that are compared hear the same words, and what was written is kept in a file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from ilm_lib.data.conversations import Film
from ilm_lib.data.teacher_hf import HFTeacher
from ilm_lib.data.teachers import TeacherError
from ilm_lib.model.backbone import context_length
from ilm_lib.model.chat import Message
from ilm_lib.model.packing import common_start
from ilm_lib.model.titles import words_of
from ilm_lib.tasks.seeker_words import DECADES, OF_SHOTS, SHOTS
from ilm_lib.tasks.seekers import SMALL, Content, Fact, Facts, TemplateSeeker, Wish, leaks

MAX_TOKENS = 28  # of a sentence
MOST_WORDS = 12  # of a sentence beside those of its fact
LIKELIEST = 50  # tokens of which one is drawn
TURNED = set("no not never without nor neither nothing none hardly less cannot except avoid hate hates dislike".split())
PLAIN = set("film era last no two".split())  # of genres and decades, and in any sentence
#: Who speaks so answers and does not ask, or speaks of the sentence.
_OTHERS_VOICE = re.compile(
    r"\b(your|yours|you'd|you'll|you are|you're|you (?:should|may|could)|help you|give you|i can|sentence|rewrit|"
    r"rephras|version|assistant|sure|sorry|certainly)"
)
_MARKS = re.compile(r"[\"“”*_#<>\[\]{}|:;()@]")
SYSTEM = "You look for a film to watch. Say what you are told in other words, in one short sentence."
_END = re.compile(r"(?<=[.!?])\s+")


class Asked(NamedTuple):
    """One wording: of which fact, for which voice, at which attempt."""

    fact: Fact
    voice: int
    attempt: int


class Rewording(HFTeacher):
    """An LLM that words facts, in batches; it is loaded when there is something that the file does not have.

    Args:
        model: folder or name, safetensors only; any causal LM.
        answers: file of what it has written, resumable.
        seed: of what is drawn. The same words come at equal seeds, up to the rounding of another batch.
        temperature: 0 takes the likeliest words: then there is one voice and one attempt.
        voices: wordings of a fact; a seeker has one of them.
        attempts: wordings of a fact for a voice, of which a seeker takes the first without `fault`.
        foreign: words that belong to a fact and stand in no sentence about another one; those of genres, for instance.

    Attributes:
        said: how many sentences seekers have said, by how: "worded", or the fault of the last attempt.
    """

    def __init__(
        self,
        model: str,
        answers: Path,
        *,
        seed: int = 0,
        temperature: float = 0.7,
        voices: int = 2,
        attempts: int = 3,
        foreign: Iterable[str] = (),
        batch_size: int = 64,
    ):  # fmt: skip
        super().__init__(model, answers, max_tokens=MAX_TOKENS, batch_size=batch_size)
        self.seed, self.temperature = seed, temperature
        self.voices, self.attempts = (voices, attempts) if temperature else (1, 1)
        self.foreign = _words(" ".join([OF_SHOTS, *foreign, *DECADES.values()])) - PLAIN
        self.said: Counter[str] = Counter()
        self._kept: dict[Asked, str] = {}

    def seeker(self, wish: Wish, facts: Sequence[Facts], films: Sequence[Film], seed: int = 0) -> WordedSeeker:
        """A seeker who speaks with this LLM; arguments as of `TemplateSeeker`."""
        return WordedSeeker(wish, facts, films, seed, self)

    def prepare(self, seekers: Sequence[object]) -> None:
        """Word the next fact of each seeker that speaks with this LLM, all of them at once.

        Raises TeacherError where the LLM cannot be asked or its file cannot be written.
        """
        own = [s for s in seekers if isinstance(s, WordedSeeker) and s.unsaid]
        for attempt in range(self.attempts):
            asked = [Asked(s.unsaid[0], s.voice, attempt) for s in own]
            new = [one for one in dict.fromkeys(asked) if one not in self._kept]
            self._kept.update(zip(new, self._answers([self.instruction(one) for one in new])))
            own = [s for s, one in zip(own, asked) if self.fault(self.text(one), one.fact, s.title)]

    def worded(self, fact: Fact, voice: int, title: Set[str]) -> str | None:
        """The first wording without a fault; None: there is none. `prepare` must have been asked."""
        found = "worded"
        for attempt in range(self.attempts):
            text = self.text(Asked(fact, voice, attempt))
            found = self.fault(text, fact, title)
            if not found:
                self.said["worded"] += 1
                return text
        self.said[found] += 1
        return None

    def text(self, asked: Asked) -> str:
        """What was written, but for sentences that have nothing of the fact, with a capital and an end."""
        return tidy(self._kept[asked], asked.fact.core)

    def fault(self, text: str, fact: Fact, title: Set[str]) -> str:
        """Why a wording cannot be said; "" where it can.

        "leak": a word of the title. "lost": a word of the fact is missing. "turned": it may say the opposite.
        "adds": a number, a genre or a decade of another fact. "names": a name, which may be of a film, and films do not
        stand in words. "voice": it is not a seeker who speaks. "long": more than a sentence or `MOST_WORDS`.
        """
        words, of_fact, plain = _words(text), _words(fact.core), text.casefold().replace("’", "'")
        strange = {word for word in words if not any(_alike(word, of) for of in of_fact)}
        sentences = _END.split(text)
        inner = [word for sentence in sentences for word in re.findall(r"[^\W_][\w'’-]*", sentence)[1:]]
        named = {word.casefold() for word in inner if word[0].isupper() and re.split("['’]", word)[0] != "I"}
        faults = {
            "leak": leaks(text, title),
            "lost": not text or any(not any(_alike(of, word) for word in words) for of in of_fact - SMALL),
            "turned": bool(strange & TURNED) or "n't" in plain,
            "adds": bool(strange & self.foreign) or any(char.isdigit() for word in strange for char in word),
            "names": not named <= of_fact or _MARKS.search(text) is not None,
            "voice": _OTHERS_VOICE.search(plain) is not None,
            "long": len(text.split()) > MOST_WORDS + len(fact.core.split()) or len(sentences) > 2,
        }
        return next((name for name, wrong in faults.items() if wrong), "")

    def instruction(self, asked: Asked) -> str:
        """What is drawn and what is said to the LLM: the key under which an answer is kept."""
        told = asked.fact.core if asked.fact.kind == "plot" else asked.fact.said
        drawn = [self.seed, asked.voice, asked.attempt, self.temperature] if self.temperature else []
        shown = [SYSTEM, *(text for shot in SHOTS[asked.fact.kind] for text in shot), told]
        return json.dumps([drawn, shown], ensure_ascii=False)

    def prompt(self, instruction: str) -> list[int]:
        """The ids of an instruction as this model reads it: examples as turns of a conversation."""
        encoder, template = self._reads
        system, *said = json.loads(instruction)[1]
        turns: list[Message] = [{"role": "system", "content": system}]
        turns += [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
        return list(encoder.encode(template.prompt(turns))[0])

    @torch.no_grad()
    def ask(self, instructions: Sequence[str]) -> Iterator[tuple[int, str]]:
        llm, tokenizer = self.load()
        ids = [self.prompt(text) for text in instructions]
        told = [json.loads(text)[1] for text in instructions]
        room, least = (
            context_length(llm) - self.max_tokens,
            len(self.prompt(json.dumps([[], [*told[0][:-1], "a film"]]))),
        )
        if least > room:
            raise TeacherError(
                f"{self.name} reads {context_length(llm)} tokens, and a fact to word takes {least} or more, with "
                f"{self.max_tokens} for the answer. Choose a model with a longer context"
            )
        fit = [i for i in range(len(ids)) if len(ids[i]) <= room]
        yield from ((i, "") for i in range(len(ids)) if i not in fit)  # the seeker says it in its own words
        # Facts of a kind have their examples in common, which are then read once.
        order = sorted(fit, key=lambda i: (told[i][:-1], len(ids[i]), instructions[i]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            new = self._written([ids[i] for i in chosen], [instructions[i] for i in chosen])
            for i, tokens in zip(chosen, new):
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                yield i, text if tokenizer.chat_template else text.split("\nuser:")[0]

    def _written(self, ids: Sequence[Sequence[int]], instructions: Sequence[str]) -> Tensor:
        """(B, at most `max_tokens`) what the LLM goes on with; what all prompts begin with is read once."""
        llm, tokenizer = self.load()
        shared = common_start(ids, [len(row) - 1 for row in ids])
        width = max(map(len, ids))
        pads = [width - len(row) for row in ids]
        rows = [[*row[:shared], *[tokenizer.pad_token_id] * pad, *row[shared:]] for row, pad in zip(ids, pads)]
        mask = [[1] * shared + [0] * pad + [1] * (width - pad - shared) for pad in pads]
        inputs = torch.tensor(rows, device=llm.device)
        read = {}
        if shared:
            read["past_key_values"] = llm(input_ids=inputs[:1, :shared], use_cache=True).past_key_values
            read["past_key_values"].batch_repeat_interleave(len(ids))
        drawn = [Drawn([_rng(text) for text in instructions], self.temperature)] if self.temperature else []
        out = llm.generate(
            input_ids=inputs,
            attention_mask=torch.tensor(mask, device=llm.device),
            logits_processor=LogitsProcessorList(drawn),
            max_new_tokens=self.max_tokens,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            **read,
        )
        return out[:, width:]


class Drawn(LogitsProcessor):
    """A token drawn for every row by numbers of its own: the row's words do not depend on the rest of the batch."""

    def __init__(self, rngs: Sequence[np.random.Generator], temperature: float):
        self.rngs, self.temperature = rngs, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) zero for the token that is drawn, from the likeliest, and minus infinity elsewhere."""
        top, ids = scores.float().topk(min(LIKELIEST, scores.shape[1]))
        below = torch.tensor([[rng.random()] for rng in self.rngs], device=scores.device)
        at = ((top / self.temperature).softmax(1).cumsum(1) < below).sum(1, keepdim=True).clamp(max=top.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, ids.gather(1, at), 0.0)


class WordedSeeker(TemplateSeeker):
    """A seeker that does what a `TemplateSeeker` of the same arguments does, and says its facts in an LLM's words."""

    def __init__(self, wish: Wish, facts: Sequence[Facts], films: Sequence[Film], seed: int, words: Rewording):
        super().__init__(wish, facts, films, seed)
        self.words, self.title = words, facts[wish.goal].title
        self.voice = int(np.random.default_rng([seed, wish.goal, *wish.liked, 1]).integers(words.voices))

    def _asks(self, templates: Sequence[str]) -> Content:
        if not self.unsaid:
            return super()._asks(templates)
        self.words.prepare([self])
        fact = self.unsaid[0]
        own = super()._asks(templates)  # always, so that what is drawn after it is what it would be
        text = self.words.worded(fact, self.voice, self.title)
        return own if text is None else (text,)


def tidy(text: str, core: str) -> str:
    """The first line's sentences that have a word of the fact, with a capital at the start and a stop at the end."""
    line = next((line for line in text.splitlines() if line.strip()), "").strip().strip("\"'“”‘’ -").strip()
    of_fact = _words(core) - SMALL
    kept = " ".join(s for s in _END.split(line) if not of_fact or _words(s) & of_fact) or line
    kept = kept[:1].upper() + kept[1:]
    return kept if not kept or kept[-1] in ".!?" else kept.rstrip(",;: ") + "."


def _words(text: str) -> set[str]:
    return {word.key for word in words_of(text)}


def _alike(a: str, b: str) -> bool:
    """One word, or another form of it: "dystopian" for "dystopia"."""
    return a == b or (min(len(a), len(b)) > 3 and abs(len(a) - len(b)) < 4 and (a.startswith(b) or b.startswith(a)))


def _rng(text: str) -> np.random.Generator:
    return np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
