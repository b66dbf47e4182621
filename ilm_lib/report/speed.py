"""The cases of `make bench` under names for people; files keep the short ones, which begin with a letter."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ilm_lib.report.guide import definitions

#: A letter's case: how it begins in the files, and what people call that.
CASES = {
    "a": ("interleave", "Put item tokens into prompts"),
    "b": ("encoder's part of a step", "Encode the items of a batch"),
    "c": ("phase-1 step", "One step of phase 1"),
    "d": ("beam search, constrained", "Recommend, real items alone allowed"),
    "e": ("beam search, free", "Recommend, any text allowed"),
    "f": ("training", "Train on prompts"),
    "g": ("prompts", "Write prompts from histories"),
    "h": ("ML1M dataset start", "Open MovieLens-1M"),
    "i": ("100 M interactions: load and first batch", "Load 100 million interactions, to the first batch"),
    "j": ("the toy study after installation", "The whole toy study, after installation"),
    "k": ("backbone pretraining, MFU", "Train the LLM, share of the GPU's peak"),
    "l": ("phase-2 step, MFU", "One step of phase 2, share of the GPU's peak"),
    "m": ("Beauty, beam 10", "Evaluate Beauty, ten beams"),
    "n": ("24 ELM tasks of 300 films", "The 24 ELM tasks of 300 films"),
    "o": ("score read-out, Beauty", "Recommend by scores, Beauty"),
    "p": ("top ten of a million items", "The top ten of a million items"),
    "q": ("loss over all items of Beauty", "Train on scores, the loss over all items of Beauty"),
    "r": ("training step of the read-out, Beauty", "Train the read-out on Beauty"),
    "s": ("training through SmolLM2-135M", "Train through the frozen SmolLM2"),
    "t": ("writing 64 answers with SmolLM2-135M", "Write 64 answers with SmolLM2"),
    "u": ("a reply in turn 10", "Begin a reply in the tenth turn of a conversation"),
}


def case_name(case: str) -> str:
    """A case in words: "d, peak memory" -> "Recommend, real items alone allowed: peak memory"."""
    if case[:1] not in CASES or case[1:2] not in (" ", ","):
        return case
    begins, name = CASES[case[0]]
    details = case[1:].lstrip(" ,")
    return name + details.removeprefix(begins) if details.startswith(begins) else f"{name}: {details}"


def short_names(cases: Iterable[str]) -> list[str]:
    """Cases in words, without details where no other case begins with the same letter."""
    cases = list(cases)
    letters = [case[0] for case in dict.fromkeys(cases)]
    return [case_name(c) if c[0] not in CASES or letters.count(c[0]) > 1 else CASES[c[0]][1] for c in cases]


def speed_page(html: str, cases: Iterable[str]) -> str:
    """The page of notebook 08 for people: how to read it first, and cases by their names in the tables."""
    words = {
        "case": "One step of the study, timed on the device that the table names.",
        "ours, theirs": "This library, and the way the step is usually written; or a limit that was set beforehand.",
        "ratio": "How many times better ours is. Above 1 is better.",
        "target": "The ratio that was asked for. A case is met where its ratio reaches the target.",
    }
    html = html.replace(
        "</h1>", f'</h1><section class="guide"><h2>How to read this</h2>{definitions(words)}</section>', 1
    )
    for case in dict.fromkeys(cases):
        for written in (escape(case), escape(case, quote=False)):
            html = html.replace(f">{written}</t", f">{escape(case_name(case))}</t")
    return html
