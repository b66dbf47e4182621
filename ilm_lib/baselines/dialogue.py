"""Films for a conversation without an LLM: what was said, as sentence vectors, and the films named, as factors.

What an LLM reads of a dialogue has to be held against this. One score a film:

    s_i = w_0 log(c_i + a) + sum_j w_j x_j . y_ij + q(x) . e(y_i)

c_i is how often film i was recommended in training dialogues; x_j are the parts of what is known, each of length 1 or
zero; y_ij the film's vector of the same kind; q and e are linear maps to a few numbers, which learn what "something
scary" means beside films of that name. Softmax over all films, those named so far left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ilm_lib.sections import Optim
from ilm_lib.tasks.conversation import Question, recall_metrics, target_ranks
from ilm_lib.train.loop import fit

ADDED = 0.1  # a, recommendations that every film has beforehand
START = (1.0, 1.0, 5.0, 1.0, 5.0)  # w_0 and w_j: cosines of sentence vectors vary less than those of factors
PACE = 10  # w_0 and w_j move so many times faster than the maps, whose weights are many and small


@dataclass(frozen=True)
class Films:
    """What films are known by.

    Attributes:
        counts: (M,) recommendations in training dialogues.
        factors: (M, F) iALS, unit length, zero where nobody rated a film.
        texts: (M, D) sentence vectors of the films' texts, unit length.
    """

    counts: np.ndarray
    factors: np.ndarray
    texts: np.ndarray

    def known(self, questions: Sequence[Question], said: np.ndarray, sought: np.ndarray) -> np.ndarray:
        """(Q, F + 3D) what is known at each question: means of the named films' factors and texts, then the words.

        Args:
            said, sought: (Q, D) sentence vectors of all words before the turn, and of the seeker's.
        """
        parts = [_means(table, questions) for table in (self.factors, self.texts)]
        return np.concatenate([*parts, said, sought], axis=1).astype(np.float32)

    @property
    def words(self) -> np.ndarray:
        """(F + 3D,) which numbers of `known` are of words; the others are of films."""
        of_films = self.factors.shape[1] + self.texts.shape[1]
        return np.repeat([False, True], [of_films, 2 * self.texts.shape[1]])


def film_counts(questions: Sequence[Question], films: int) -> np.ndarray:
    """(M,) how often each film is the answer."""
    return np.bincount([question.target for question in questions], minlength=films)


def named_likeness(table: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """(Q, M) cosine of every film to the mean of those named, of unit vectors (M, d); zero where none was."""
    return _means(table, questions) @ table.T


def unit(table: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    return table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-9)


def _means(table: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """(Q, d) unit mean of the rows of the films named, zero where none was."""
    zero = np.zeros(table.shape[1], table.dtype)
    return unit(np.stack([table[list(q.named)].mean(0) if q.named else zero for q in questions]))


class WordsAndFilms(nn.Module):
    """The score above.

    Args:
        films: of the catalogue.
        dim: of q and e.
        dropout: on what is known and on q.
    """

    def __init__(self, films: Films, dim: int = 64, dropout: float = 0.3):
        super().__init__()
        factors, texts = (torch.from_numpy(t.astype(np.float32)) for t in (films.factors, films.texts))
        self.register_buffer("popularity", torch.from_numpy(np.log(films.counts + ADDED)).float())
        self.register_buffer("factors", factors)
        self.register_buffer("texts", texts)
        self.sizes = [factors.shape[1], *[texts.shape[1]] * 3]
        # Texts have much in common; the map sees what they do not. Inputs have a variance near 1.
        given = torch.cat([factors * self.sizes[0] ** 0.5, (texts - texts.mean(0)) * self.sizes[1] ** 0.5], 1)
        self.register_buffer("given", given)
        self.weights = nn.Parameter(torch.tensor(START) / PACE)
        self.query = nn.Linear(sum(self.sizes), dim)
        self.film = nn.Linear(given.shape[1], dim, bias=False)
        for layer in (self.query, self.film):
            nn.init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
        self.dropout = nn.Dropout(dropout)

    def forward(self, known: Tensor) -> Tensor:
        """(B, F + 3D) what is known to (B, M) scores."""
        parts = known.split(self.sizes, dim=1)
        likeness = [part @ (self.factors if j == 0 else self.texts).T for j, part in enumerate(parts)]
        scaled = torch.cat([part * size**0.5 for part, size in zip(parts, self.sizes)], 1)
        query = self.dropout(self.query(self.dropout(scaled)))  # (B, dim)
        first, *others = PACE * self.weights
        alike = sum(w * values for w, values in zip(others, likeness))
        return first * self.popularity + alike + query @ self.film(self.given).T

    @torch.no_grad()
    def scores(self, known: np.ndarray, batch: int = 512) -> np.ndarray:
        """(Q, M) of all questions."""
        self.eval()
        return torch.cat([self(part) for part in torch.from_numpy(known).split(batch)]).numpy()


def train_words_and_films(
    films: Films,
    train: tuple[Sequence[Question], np.ndarray],
    dev: tuple[Sequence[Question], np.ndarray],
    optim: Optim,
    *,
    dim: int = 64,
    dropout: float = 0.3,
    seed: int = 0,
    state: Path | None = None,
) -> WordsAndFilms:
    """Train on questions and what is known at each, (Q, F + 3D); the weights with the best MRR on dev are kept.

    Args:
        state: file for resumable state.
    """
    torch.manual_seed(seed)
    model = WordsAndFilms(films, dim, dropout)
    asked, known = train[0], torch.from_numpy(train[1])
    target = torch.tensor([question.target for question in asked])
    order = np.random.default_rng(seed)
    steps_an_epoch = -(-len(asked) // optim.batch_size)
    epochs = [order.permutation(len(asked)) for _ in range(-(-optim.steps * optim.accumulate // steps_an_epoch))]

    def batches(n: int) -> np.ndarray:
        epoch, part = divmod(n, steps_an_epoch)
        return epochs[epoch][part * optim.batch_size : (part + 1) * optim.batch_size]

    def loss(model: nn.Module, rows: np.ndarray) -> dict[str, Tensor]:
        scores = model(known[rows])
        for at, row in enumerate(rows):
            scores[at, list(asked[row].named)] = -torch.inf
        return {"loss": nn.functional.cross_entropy(scores, target[rows])}

    def evaluate(model: nn.Module, step: int) -> dict[str, float]:
        found = recall_metrics(target_ranks(model.scores(dev[1]), dev[0]))
        return {f"dev {name}": float(values.mean()) for name, values in found.items()}

    fit(
        model,
        list(model.parameters()),
        loss,
        batches,
        optim,
        seed=seed,
        evaluate=evaluate,
        eval_every=steps_an_epoch,
        keep_best="dev MRR",
        state=state,
        label="words and films",
    )
    return model
