"""What the words of items find without interactions of theirs: nearest neighbours, and factors guessed from texts.

To be beaten on cold items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ilm_lib.data import Dataset
from ilm_lib.metrics import embed_sentences, sentence_encoder

Pool = Literal["mean", "max"]


def text_vectors(data: Dataset, encoder: str | None = None) -> np.ndarray:
    """(I, D) float32 unit vectors of the item texts, zero without one; `encoder` as `metrics.sentence_encoder`."""
    texts = [data.item_text(i) for i in range(data.num_items)]
    rows = [i for i, text in enumerate(texts) if text]
    found = embed_sentences(sentence_encoder(encoder), [texts[i] for i in rows])
    vectors = np.zeros((data.num_items, found.shape[1]), np.float32)
    vectors[rows] = found
    return vectors


def nearest_text_scores(
    vectors: np.ndarray, histories: Sequence[np.ndarray], *, pool: Pool = "mean", last: int | None = None
) -> np.ndarray:
    """(B, I) float32 likeness of every item's text to those of a history, higher is nearer.

    Args:
        vectors: (I, D) of `text_vectors`.
        histories: B arrays of item rows in time order, none empty.
        pool: "mean" is the cosine to the mean of the history's vectors, "max" the cosine to the nearest of them.
        last: how many of the history's items count, the last ones; None: all.
    """
    read = [h[-last:] if last else h for h in histories]
    if pool == "max":
        return np.stack([(vectors[h] @ vectors.T).max(axis=0) for h in read])
    means = np.stack([vectors[h].mean(axis=0) for h in read])  # (B, D)
    return means @ vectors.T / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)


def factors_of_texts(texts: np.ndarray, factors: np.ndarray, counts: np.ndarray, *, ridge: float = 0.3) -> np.ndarray:
    """(I, F) factors of all items as far as a linear map can guess them from texts.

    The least squares over items with interactions and a text, each weighted by its interactions, as one factorised from
    many is known better (Gantner et al., ICDM 2010, map attributes to factors so).

    Args:
        texts: (I, D) of `text_vectors`.
        factors: (I, F), and counts: (I,) interactions of each.
        ridge: the penalty, beside the mean weight.
    """
    given = np.concatenate([texts, np.ones((len(texts), 1))], 1).astype(np.float64)  # (I, D + 1)
    weight = counts * texts.any(1)
    mean = weight[weight > 0].mean()
    weighted = given.T * weight
    system = weighted @ given + ridge * mean * np.eye(given.shape[1])
    return given @ np.linalg.solve(system, weighted @ factors)
