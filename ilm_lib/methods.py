"""Every method of the tables, described once: what it is, what it is made of and how plots draw it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Loss = Literal["itc", "itg", "itm", "ii", "ui"]
Encoder = Literal["none", "mlp", "qformer"]

TEXT_LOSSES: tuple[Loss, ...] = ("itc", "itg", "itm")


@dataclass(frozen=True)
class Method:
    """A row of the tables. Trained methods differ in these values, not in code.

    Attributes:
        sentence: what it is, for a reader who meets it first in a table.
        colour, marker: Okabe and Ito's colours for what is compared most, greys for references; a marker goes with each
            colour, so no reading depends on colour alone.
        encoder: what makes the item tokens of a method over the frozen LLM; None: there is no LLM in it.
        phase1: losses of phase 1; "profile" takes those of `phase1.losses`; empty: no phase 1.
        anchor: a reference of the ELM tasks, and none of the methods a profile may list.
        reads: what the LLM of an anchor reads of a film in words, where it does: "nothing" ("a film"), "facts" (its
            year and genres) or "title" (or all that is on record).
        blind: every film has the same vector, so an encoder's tokens are a soft prompt and say nothing of the film.
    """

    sentence: str
    colour: str
    marker: str
    encoder: Encoder | None = None
    phase1: tuple[Loss, ...] | Literal["profile"] = ()
    anchor: bool = False
    reads: Literal["nothing", "facts", "title"] | None = None
    blind: bool = False


METHODS: dict[str, Method] = {
    "Popularity": Method("The items that most users have had, the same list for everybody.", "#9A9A9A", "p"),
    "iALS": Method(
        "Matrix factorisation of the interactions: dot product of the user's and the item's vector.", "#8C6D31", "d"
    ),
    "WALS": Method(
        "Weighted matrix factorisation of the interactions, the paper's: dot product of the two vectors.",
        "#A67B5B",
        "$W$",
    ),
    "CF file": Method("Dot product of the user's and the item's vector, as a file gave them.", "#C4A484", "$F$"),
    "SASRec": Method("A small transformer over the item ids of a history, without language.", "#882255", "^"),
    "Nearest text": Method(
        "The items whose texts are nearest to those of the history, without interactions.", "#B07AA1", "$T$"
    ),
    "Text and factors": Method(
        "The nearest texts, and iALS with the items' vectors guessed from their texts, to equal parts.",
        "#D4A6C8",
        "$G$",
    ),
    "OpenP5-R": Method(
        "The frozen LLM alone: it reads and writes items as random index numbers.", "#4D4D4D", "s", "none"
    ),
    "MLP": Method("Item tokens from a two-layer network over the item's vector (CoLLM).", "#E69F00", "D", "mlp"),
    "MLP-N": Method("The MLP with as many tokens an item as the Q-Former.", "#F5C24C", "8", "mlp", anchor=True),
    "ILM-rand": Method(
        "Item tokens from a Q-Former that starts from random weights, without phase 1.", "#56B4E9", "v", "qformer"
    ),
    "ILM": Method(
        "Item tokens from a Q-Former after phase 1: the paper's method.", "#0072B2", "o", "qformer", "profile"
    ),
    "ILM-IT": Method("ILM, phase 1 with the item-text losses alone.", "#009E73", "h", "qformer", TEXT_LOSSES),
    "ILM-IT-II": Method(
        "ILM, phase 1 with the item-text and the item-item losses.", "#CC79A7", "X", "qformer", (*TEXT_LOSSES, "ii")
    ),
    "ILM-IT-UI": Method(
        "ILM, phase 1 with the item-text and the user-item losses.", "#332288", "P", "qformer", (*TEXT_LOSSES, "ui")
    ),
    "Oracle": Method("The toy world's own preferences: what a perfect recommender would score.", "#000000", "*"),
    "Film-blind": Method(
        "Trained like ILM-rand, but every film has the same, mean vector: what guessing gives.",
        "#D55E00",
        "<",
        "qformer",
        anchor=True,
        blind=True,
    ),
    "Nothing-in-text": Method(
        "The frozen LLM reads that it is a film, and nothing is trained.",
        "#7F7F7F",
        "x",
        "none",
        anchor=True,
        reads="nothing",
    ),
    "Facts-in-text": Method(
        "The frozen LLM reads the film's year and genres in words.", "#6B8E23", "H", "none", anchor=True, reads="facts"
    ),
    "Title-in-text": Method(
        "The frozen LLM reads the film's title, or all that is on record, in words.",
        "#B8A200",
        ">",
        "none",
        anchor=True,
        reads="title",
    ),
    "Facts-in-text, tuned": Method(
        "Facts-in-text, with trained tokens in front that tell how to write and nothing of the film.",
        "#445E19",
        "1",
        "qformer",
        anchor=True,
        reads="facts",
        blind=True,
    ),
    "Title-in-text, tuned": Method(
        "Title-in-text, with trained tokens in front that tell how to write and nothing of the film.",
        "#7A6C00",
        "2",
        "qformer",
        anchor=True,
        reads="title",
        blind=True,
    ),
}

#: The methods a profile may list: those over the frozen LLM.
TRAINED: tuple[str, ...] = tuple(name for name, m in METHODS.items() if m.encoder is not None and not m.anchor)
#: Dot products of the vectors, named by what made them: an engine of `embeddings.engine`, or a file.
CF_METHODS: dict[str, str] = {"irspack": "iALS", "implicit": "WALS", "file": "CF file"}


def baselines(vectors: str) -> tuple[str, ...]:
    """The baselines that read no prompt, where an engine, or a "file", made the vectors."""
    return "Popularity", CF_METHODS[vectors], "SASRec"


def in_order(names: Iterable[str]) -> list[str]:
    """The known methods among `names`, in the order of all tables and legends."""
    known = set(names)
    return [name for name in METHODS if name in known]
