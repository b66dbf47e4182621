"""Items found by words alone, for somebody of whom nothing is known: `ILM.find`.

Three things are known of an item, each a signal, standardised over the items that have it; an item without it gets 0,
the mean. The score is their weighted sum.

    text      cosine of the words' sentence vector and that of the item's text
    aligned   phase 1's likeness (section 3.2, ITC): the largest cosine of the words' h_cls and one of the N projected
              query outputs of the item's CF vector, so that who had an item tells what its own words do not
    known     the logarithm of how often it was had

The weights are chosen for queries with known answers: those under which an item drawn from a query's answers is most
likely, by a softmax over all items (conditional logit; McFadden, 1974).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from ilm_lib.metrics import embed_sentences, sentence_encoder
from ilm_lib.model import door
from ilm_lib.model.recommend import Recommendation, recommended
from ilm_lib.model.refusals import WrongKind, WrongValue, brief
from ilm_lib.model.text_codec import TextCodec
from ilm_lib.model.text_tower import QFormerForPhase1

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from ilm_lib.model.ilm import ILM

Encode = Callable[[Sequence[str]], np.ndarray]
BLOCK = 1024  # items whose queries are made at once


class Weights(NamedTuple):
    """Of the signals; the defaults are about those that held-out tags of MovieLens chose (bench/find.py)."""

    text: float = 1.0
    aligned: float = 0.7
    known: float = 0.1


class Aligned:
    """Phase 1's towers after training: words and items in one space of C numbers.

    Args:
        model: with its text tower, and codec: of that; both of `train_phase1`, or see `finder_file.towers_of`.
    """

    def __init__(self, model: QFormerForPhase1, codec: TextCodec):
        self.model, self.codec = model.eval().requires_grad_(False), codec

    @torch.no_grad()
    def words(self, texts: Sequence[str]) -> Tensor:
        """(Q, C) float32 unit vectors of the texts' h_cls."""
        ids = self.codec.encode(texts)
        return normalize(self.model.text_proj(self.model.cls(ids, ids != self.codec.pad)), dim=-1)

    @torch.no_grad()
    def items(self, cf: Tensor) -> Tensor:
        """(I, N, C) float32 unit vectors of the query outputs of CF vectors (I, d); zero where a CF vector is."""
        made = [self.model.query_proj(self.model.qformer.queries(part)) for part in cf.split(BLOCK)]
        return normalize(torch.cat(made), dim=-1) * cf.any(1)[:, None, None]


@dataclass(frozen=True)
class Finder:
    """Ranks all items for words.

    Attributes:
        texts: (I, D) float32 unit vectors of the items' texts, zero where an item has none.
        known: (I,) float32 how often each was had, zero where nobody had it.
        items: (I, N, C) of `Aligned.items`; None: nothing is known of who had them.
        aligned: makes the words' side of `items`.
        weights: of the signals.
        encoder: name of the sentence encoder, as `metrics.sentence_encoder` takes it; None is the packaged MiniLM.

    Example:
        >>> ilm.finder = Finder.of(ilm.names().texts, ilm.names().weights)
        >>> ilm.find("a robot learns to feel", k=1)[0].title
        'A.I. Artificial Intelligence (2001)'
    """

    texts: np.ndarray
    known: np.ndarray
    items: Tensor | None = None
    aligned: Aligned | None = None
    weights: Weights = field(default_factory=Weights)
    encoder: str | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        known: Sequence[float] | np.ndarray = (),
        *,
        aligned: Aligned | None = None,
        cf: Tensor | None = None,
        weights: Weights | None = None,
        encoder: str | None = None,
    ) -> Finder:
        """The finder of items with these texts; about a second for 200 texts on one core.

        Args:
            texts: (I,) each item in words, "" where there are none.
            known: (I,) how often each was had; () where that is not known.
            aligned: phase 1's towers, and cf: (I, d) the CF vectors of the items that they read.

        Raises:
            WrongValue: no item has a text, what is given is not of the same items, or there is no sentence encoder.
        """
        if not any(texts):
            raise WrongValue("no item has a text to be found by: give texts, e.g. ilm.names().texts")
        if (aligned is None) != (cf is None):
            raise WrongValue("give aligned and cf together: phase 1's towers and the CF vectors that they read")
        for name, given in (("known", known), ("cf", cf)):
            if given is not None and len(given) and len(given) != len(texts):
                raise WrongValue(f"{name} is of {len(given):,} items and texts of {len(texts):,}: give one data set's")
        having = [row for row, text in enumerate(texts) if text]
        found = embed_sentences(_encoder(encoder), [texts[row] for row in having], autocast=True)
        vectors = np.zeros((len(texts), found.shape[1]), np.float32)
        vectors[having] = found
        counts = np.asarray(known, np.float32) if len(known) else np.zeros(len(texts), np.float32)
        items = aligned.items(cf) if aligned is not None and cf is not None else None
        return cls(vectors, counts, items, aligned, weights or Weights(), encoder)

    @property
    def num_items(self) -> int:
        return len(self.texts)

    @cached_property
    def encode(self) -> Encode:
        """Texts to (Q, D) unit vectors; the sentence encoder is read once, when it is first asked."""
        encoder = _encoder(self.encoder)
        return lambda texts: embed_sentences(encoder, texts)

    def signals(self, words: Sequence[str]) -> Tensor:
        """(Q, I, 3) float32, in the order of `Weights`.

        Raises:
            WrongValue: the sentence encoder is not the one of the items' texts.
        """
        said = self.encode(words)
        if said.shape[1] != self.texts.shape[1]:
            sizes = f"{said.shape[1]} numbers and those of the items {self.texts.shape[1]}"
            raise WrongValue(f"the sentence encoder's vectors have {sizes}: name the encoder they were made with")
        text = _standard(torch.from_numpy(said @ self.texts.T), torch.from_numpy(self.texts.any(1)))
        counts = torch.from_numpy(self.known)
        known = _standard(counts.log1p()[None], counts > 0).expand_as(text)
        aligned = torch.zeros_like(text)
        if self.items is not None and self.aligned is not None:
            found = torch.einsum("inc,qc->qin", self.items, self.aligned.words(words)).amax(-1)
            aligned = _standard(found, self.items.any(2).any(1))
        return torch.stack([text, aligned, known], -1)

    def log_probabilities(self, words: Sequence[str]) -> Tensor:
        """(Q, I) nats: how probable it is that each item is the one meant."""
        return log_softmax(self.signals(words) @ torch.tensor(self.weights, dtype=torch.float32), -1)

    def chosen(self, words: Sequence[str], rows: Sequence[np.ndarray]) -> Finder:
        """The same with the weights under which the answers to queries are likeliest.

        Args:
            words: Q queries, and rows: (n,) item rows that answer each, at least one.
        """
        return replace(self, weights=Weights(*choose(self.signals(words), rows)))


def choose(signals: Tensor, rows: Sequence[np.ndarray]) -> list[float]:
    """The S weights under which the answers to Q queries are likeliest, each query counting alike.

    The likelihood is concave in the weights. A signal that never varies keeps the weight 0.

    Args:
        signals: (Q, I, S), and rows: as in `Finder.chosen`.
    """
    weights = torch.zeros(signals.shape[2], requires_grad=True)
    mean = torch.stack([given[torch.from_numpy(row)].mean(0) for given, row in zip(signals, rows)])  # (Q, S)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = ((signals @ weights).logsumexp(1) - mean @ weights).mean()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach().tolist()


def find(ilm: ILM, words: Any, k: int) -> list[Recommendation]:
    """The k items that words mean most probably, best first; arguments as `ILM.find` takes them."""
    remedy = "give a text, e.g. 'slow-burning science fiction'"
    if not isinstance(words, str):
        raise WrongKind(f"words are {brief(words)}: {remedy}")
    if not re.search(r"[^\W_]", words):
        raise WrongValue(f"words are {brief(words)}, which says nothing: {remedy}")
    door.as_prompts(words)  # a text that UTF-8 can write
    k, name, finder = door.whole_number(k, "k"), ilm.names(), ilm.finder
    if finder is None:
        raise WrongValue("this model has no finder: set ilm.finder = Finder.of(ilm.names().texts)")
    fits(finder, ilm.num_items)
    scores, rows = finder.log_probabilities([words])[0].topk(min(k, ilm.num_items))
    return recommended(name, rows.tolist(), scores.tolist())


def _encoder(name: str | None) -> SentenceTransformer:
    try:
        return sentence_encoder(name)
    except ModuleNotFoundError as error:
        raise WrongValue(
            f"words are read by a sentence encoder: pip install '.[study]' brings one ({error})"
        ) from error


def fits(finder: Finder | None, num_items: int) -> None:
    """Refuse a finder of other items."""
    if finder is not None and finder.num_items != num_items:
        counts = f"{finder.num_items:,} items and the model of {num_items:,}"
        raise WrongValue(f"the finder is of {counts}: make it anew")


def _standard(values: Tensor, having: Tensor) -> Tensor:
    """(Q, I) values with mean 0 and deviation 1 over the items (I,) that have one, 0 for the others."""
    if not having.any():
        return torch.zeros_like(values)
    deviation, mean = torch.std_mean(values[:, having], 1, correction=0, keepdim=True)
    varies = having & (deviation > 1e-6)  # below is rounding
    return torch.where(varies, (values - mean) / deviation.where(varies.any(1, keepdim=True), 1), 0)
