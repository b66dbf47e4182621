"""What a vector knows: linear probes of embeddings and of item tokens. What a text tells: the facts it names."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ilm_lib.data.elm24 import Facts


def label_auc(
    features: np.ndarray, labels: Sequence[Sequence[str]], *, rarest: int = 20, seed: int = 0
) -> dict[str, float]:
    """How well a linear map reads each label off the features: area under the ROC curve, .5 is chance.

    Scores are out of fold (five folds of items), by ridge regression on standardised features.

    Args:
        features: (I, ...) of each item, flattened. labels: (I,) lists, e.g. genres.
        rarest: labels with fewer items are left out.
    """
    x = np.asarray(features, np.float64).reshape(len(features), -1)
    names = sorted({name for own in labels for name in own})
    truth = np.array([[name in own for name in names] for own in labels], dtype=float).reshape(len(x), -1)
    frequent = np.flatnonzero((truth.sum(0) >= rarest) & (len(x) - truth.sum(0) >= rarest))
    if not len(frequent):
        return {}
    probe = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 5, 11)))
    folds = KFold(5, shuffle=True, random_state=seed)
    read = cross_val_predict(probe, x, truth[:, frequent], cv=folds).reshape(len(x), -1)
    return {names[j]: float(roc_auc_score(truth[:, j], read[:, i])) for i, j in enumerate(frequent)}


def mean_auc(features: np.ndarray, labels: Sequence[Sequence[str]], *, rarest: int = 20) -> float:
    """The mean of `label_auc`; NaN where no label is frequent enough, and nothing was measured."""
    found = label_auc(features, labels, rarest=rarest)
    return sum(found.values()) / len(found) if found else float("nan")


def neighbours_kept(features: np.ndarray, reference: np.ndarray, k: int = 10) -> float:
    """Share of each item's k nearest neighbours by cosine in `reference` (I, d) that are so in `features` (I, ...) too.

    Features are centred first: tokens share a large common part. Chance is about k / I.
    """
    k = min(k, len(features) - 1)
    near = [_nearest(a, k) for a in (features, reference)]
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(*near)]))


def rank_agreement(features: np.ndarray, reference: np.ndarray) -> float:
    """Spearman's correlation, over all pairs of items, of their cosines in `features` (I, ...) and `reference` (I, d).

    Behavioural consistency where features are embeddings of generated texts and the reference is what the texts were
    generated from (ELM, arXiv 2310.04475, section 4).
    """
    pairs = np.triu_indices(len(features), 1)
    cosines = [(x @ x.T)[pairs] for x in map(_unit, (features, reference))]
    return float(spearmanr(*cosines).statistic)


def picked(texts: np.ndarray, plots: np.ndarray, among: int = 4) -> np.ndarray:
    """How probable it is that a reader picks each text's own film from its plot and those of other films drawn evenly.

    The reader takes the plot whose embedding is most like the text's; chance is 1 / `among`.

    Args:
        texts: (F, D) embeddings of one text a film.
        plots: (F, D) those of the films' real plots.

    Returns:
        (F,): the share of all draws of `among` - 1 others in which none is more like the text.
    """
    texts, plots = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (texts, plots))
    cosine = texts @ plots.T  # (F, F)
    less = (cosine < np.diag(cosine)[:, None]).sum(1)  # how many of the F - 1 others may be drawn
    return np.prod([(less - n) / (len(less) - 1 - n) for n in range(among - 1)], axis=0).clip(0)


def facts_told(texts: Sequence[str], films: Sequence[Sequence[Facts]]) -> dict[str, float]:
    """Genres and decades that texts name, and how many of them are those of a film the text is about.

    Args:
        texts: (R,) of the model.
        films: (R,) the one or two films of each.

    Returns:
        "genres a text", "decades a text": different ones named, on average. "genres right", "decades right": share
        of those; NaN where none is named. A word of a plot that is also a genre ("family") counts as one.
    """
    genres = "|".join(sorted({re.escape(genre) for about in films for film in about for genre in film.genres}))
    patterns = {"genres": rf"(?<![\w-])(?:{genres or '(?!)'})(?![\w-])", "decades": r"\b\d{3}0s\b"}
    told = {}
    for kind, pattern in patterns.items():
        named = [set(re.findall(pattern, text.lower())) for text in texts]
        true = [{x for film in about for x in (film.genres if kind == "genres" else [film.decade])} for about in films]
        count = sum(map(len, named))
        told[f"{kind} a text"] = count / len(texts)
        right = sum(len(n & t) for n, t in zip(named, true, strict=True))
        told[f"{kind} right"] = right / count if count else float("nan")
    return told


def facts_right(texts: Sequence[str], films: Sequence[Sequence[Facts]]) -> dict[str, tuple[float, int]]:
    """ "genres_right" and "decades_right" of `facts_told`, each with how many were named; nothing where none was."""
    told, found = facts_told(texts, films), {}
    for kind in ("genres", "decades"):
        if named := round(told[f"{kind} a text"] * len(texts)):
            found[f"{kind}_right"] = told[f"{kind} right"], named
    return found


def _unit(vectors: np.ndarray) -> np.ndarray:
    x = np.asarray(vectors, np.float32).reshape(len(vectors), -1)
    x = x - x.mean(0)
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12)


def _nearest(vectors: np.ndarray, k: int) -> np.ndarray:
    x, out = _unit(vectors), []
    for start in range(0, len(x), 2048):
        cosine = x[start : start + 2048] @ x.T
        cosine[np.arange(len(cosine)), start + np.arange(len(cosine))] = -np.inf
        out.append(np.argpartition(-cosine, k, axis=1)[:, :k])
    return np.concatenate(out)
