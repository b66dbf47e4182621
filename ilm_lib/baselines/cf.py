"""Collaborative filtering embeddings: factorised here, or taken from a file of your own.

The paper factorises the training interactions with WALS and gives the Q-Former the rows
(section 4.1 of arXiv 2406.02844). Here the engine is either `implicit` (WALS of Hu, Koren
and Volinsky 2008) or `irspack` (iALS as revisited by Rendle et al., arXiv 2110.14037).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from ilm_lib.data import DataError
from ilm_lib.errors import Refusal
from ilm_lib.model.fold_in import FoldIn

Engine = Literal["implicit", "irspack"]

# Best on the dev targets of ML100K at the default width and weight (HR@10 .162 and .163, mean
# of three seeds); the other widths tried, 32 and 128, differ by less than a standard error.
REGULARIZATION: dict[str, float] = {"implicit": 10.0, "irspack": 0.01}


class NoFactors(Refusal, ValueError):
    """A factorisation gave no usable vectors; the message says what to change."""


@dataclass(frozen=True, eq=False)
class CFEmbeddings:
    """Rows are those of the Dataset. The score of (u, i) is the dot product of their rows.

    Raises ValueError unless both are 2-d of equal width, float, finite, and not zero throughout.
    """

    user: np.ndarray  # (U, d) float32
    item: np.ndarray  # (I, d) float32

    def __post_init__(self):
        for name in ("user", "item"):
            array = np.asarray(getattr(self, name))
            if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
                got = f"{array.dtype} of shape {array.shape}"
                raise ValueError(f"{name} embeddings must be floats of shape (rows, d), not {got}")
            array = np.ascontiguousarray(array, np.float32)
            if not np.isfinite(array).all():
                bad = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
                raise ValueError(f"{name} embeddings are not finite, first in row {bad}")
            with np.errstate(over="ignore"):
                scale = np.sqrt(np.mean(array**2)) if array.size else 0.0  # `scaled_table` divides by it
            if not 0 < scale < np.inf:  # or their squares are, in float32
                raise ValueError(
                    f"{name} embeddings are {'too large' if scale > 1 else 'all zero, or as good as zero'}"
                )
            object.__setattr__(self, name, array)
        if self.user.shape[1] != self.item.shape[1]:
            widths = f"{self.user.shape[1]} and {self.item.shape[1]}"
            raise ValueError(f"user and item embeddings differ in width: {widths}")

    def scaled_table(self) -> np.ndarray:
        """(I + U, d) embeddings of items, then users, each table scaled to an RMS of 1: what a model is given.

        Users and items meet one encoder, and their factor norms differ by an order of magnitude.
        """
        return np.concatenate([table / rms(table) for table in (self.item, self.user)])


def fit_cf(
    train: csr_matrix,
    *,
    engine: Engine = "irspack",
    dim: int = 64,
    regularization: float | None = None,
    unobserved_weight: float = 0.1,
    iterations: int = 16,
    seed: int = 0,
    threads: int = 1,
) -> CFEmbeddings:
    """Factorise a (U, I) matrix of interactions, nonzero = observed, all of equal weight.

    With a = `unobserved_weight`, r = `regularization`, S the observed pairs and N the
    number of interactions of a row, least squares in alternation lowers

        implicit: sum_S (1 + a) (x - 1)^2 + sum_not_S a x^2 + a r (|U|^2 + |V|^2)
        irspack:  sum_S (x - 1)^2 + a sum_all x^2 + r (sum_u (a I + N) |u|^2 + same for V)

    where x = u . v. Up to scale the data terms are the same; irspack penalises frequent rows
    more, so the two need different regularization (None takes REGULARIZATION[engine]).
    Equal seeds give equal embeddings, but for irspack on more than one thread, whose sums
    come in any order and differ in rounding. ValueError for an unknown engine, and NoFactors
    where the matrix or its settings leave nothing to factorise.
    """
    if engine not in REGULARIZATION:
        raise ValueError(f"engine {engine!r} is none of {', '.join(REGULARIZATION)}")
    train = csr_matrix(train, dtype=np.float32, copy=True)
    train.sum_duplicates()
    train.eliminate_zeros()
    train.data[:] = 1
    r = REGULARIZATION[engine] if regularization is None else regularization
    if engine == "implicit":
        from implicit.als import AlternatingLeastSquares

        # The engines run threads of their own; BLAS threads below them cost much time.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=dim,
                regularization=r,
                alpha=1 + 1 / unobserved_weight,
                iterations=iterations,
                num_threads=threads,
                random_state=seed,
                use_gpu=False,  # the default depends on the machine, and so would the result
            )
            model.fit(train, show_progress=False)
        return _factors(model.user_factors, model.item_factors)

    from irspack import IALSRecommender

    with threadpool_limits(1, "blas"):
        model = IALSRecommender(
            train, n_components=dim, alpha0=unobserved_weight, reg=r, random_seed=seed, n_threads=threads
        )
        model.start_learning()
        for _ in range(iterations):  # learn() does the same under a progress bar
            model.run_epoch()
    return _factors(model.get_user_embedding(), model.get_item_embedding())


def _factors(user: np.ndarray, item: np.ndarray) -> CFEmbeddings:
    try:
        return CFEmbeddings(user, item)
    except ValueError as error:
        remedy = "lower embeddings.regularization and embeddings.unobserved_weight, or bring more interactions"
        raise NoFactors(f"the factorisation of the interactions came to nothing: {error}; {remedy}") from None


def fold_in(
    cf: CFEmbeddings,
    *,
    engine: Engine = "irspack",
    regularization: float | None = None,
    unobserved_weight: float = 0.1,
    fused: CFEmbeddings | None = None,
) -> FoldIn:
    """How users who were not there come to vectors like those of `cf.scaled_table()`; arguments as given to `fit_cf`.

    With `fused`, the vectors that `vectors.fuse` made of these factors and other parts, to ones like those of its.

    It is the user's half of a sweep; the items' half came last, so a user of the training set gets nearly the same
    vector and not the very same.
    """
    r, a = REGULARIZATION[engine] if regularization is None else regularization, unobserved_weight
    scales: dict[str, Any] = {"item_scale": float(rms(cf.item)), "user_scale": float(rms(cf.user))}
    if fused is not None:
        whole = float(rms(fused.user))  # by which `scaled_table` divides all parts of a user
        scales |= {"user_scale": scales["user_scale"] * whole, "factors": cf.item.shape[1], "mean_scale": whole}
    if engine == "implicit":
        return FoldIn(unobserved=a, observed=1 + a, ridge=a * r, ridge_per_item=0.0, **scales)
    return FoldIn(unobserved=a, observed=1.0, ridge=r * a * len(cf.item), ridge_per_item=r, **scales)


def rms(table: np.ndarray) -> np.floating:
    """Root mean square of all numbers."""
    return np.sqrt(np.mean(table**2))


def load_cf(path: Path, *, num_users: int | None = None, num_items: int | None = None) -> CFEmbeddings:
    """Read embeddings from .npz or .safetensors: "user" (U, d) and "item" (I, d) floats.

    A row of zeros, of an item or user without a vector, is taken, and a warning counts them.

    Raises DataError for another format, a missing array, arrays CFEmbeddings refuses, and
    other row counts than `num_users` and `num_items` where these are given.
    """
    path = Path(path)
    remedy = 'Store "user" (U, d) and "item" (I, d) in the row order of the dataset'
    try:
        arrays = _read_arrays(path)
        for name, rows in (("user", num_users), ("item", num_items)):
            if rows is not None and arrays[name].shape[:1] != (rows,):
                shape = arrays[name].shape
                raise ValueError(f"{name} embeddings of shape {shape} for {rows} {name}s")
        found = CFEmbeddings(arrays["user"], arrays["item"])
    except Exception as error:  # the readers raise many kinds for a damaged file
        why = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise DataError(path, None, f"no usable embeddings ({why[:120]})", remedy) from error
    for name, table in (("user", found.user), ("item", found.item)):
        if zero := int((~table.any(axis=1)).sum()):
            warnings.warn(f"{path}: {zero:,} of {len(table):,} {name} embeddings are all zero", stacklevel=2)
    return found


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays "user" and "item" of a file; others in it are not looked at, nor is anything unpickled."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: _unpickled(file, name) for name in _both(file.files)}
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name) for name in _both(file.keys())}
    raise ValueError("neither .npz nor .safetensors")


def _unpickled(file: Any, name: str) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "allow_pickle" in str(error):
            raise ValueError(f"{name} holds Python objects and no numbers") from None
        raise


def _both(names: Collection[str]) -> tuple[str, str]:
    for name in ("user", "item"):
        if name not in names:
            raise ValueError(f"no array {name!r}, only {sorted(names)}")
    return "user", "item"


def top_k(
    scores: np.ndarray | CFEmbeddings, k: int, *, exclude: csr_matrix | None = None, batch_size: int = 1024
) -> np.ndarray:
    """(U, k) int64 item rows of the k best scores, best first, ties by item row.

    `scores` is (U, I) or embeddings, whose scores are formed `batch_size` users at a time.
    Items nonzero in `exclude` (U, I) leave the ranking. Where fewer than k items remain
    the rest is -1. Raises ValueError for NaN scores and an `exclude` of another shape.
    """
    embedded = isinstance(scores, CFEmbeddings)
    if not embedded and not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)  # integers hold no -inf
    shape = (len(scores.user), len(scores.item)) if embedded else scores.shape
    if exclude is not None and exclude.shape != shape:
        raise ValueError(f"exclude has shape {exclude.shape}, the scores have {shape}")
    top = np.full((shape[0], k), -1, np.int64)
    for start in range(0, shape[0], batch_size):
        rows = slice(start, start + batch_size)
        batch = scores.user[rows] @ scores.item.T if embedded else scores[rows].copy()
        if np.isnan(batch).any():
            raise ValueError("scores hold NaN")
        if exclude is not None:
            batch[exclude[rows].nonzero()] = -np.inf
        top[rows, : shape[1]] = _top_k_dense(batch, min(k, shape[1]))
    return top


def _top_k_dense(scores: np.ndarray, k: int) -> np.ndarray:
    # Partitioning alone would break ties at the k-th score at random, so everything that
    # reaches this score is kept and sorted.
    position = scores.shape[1] - k
    kth = np.partition(scores, position, axis=1)[:, position : position + 1]  # (B, 1)
    row, item = np.nonzero(scores >= kth)
    order = np.lexsort((item, -scores[row, item], row))
    row, item = row[order], item[order]
    rank = np.arange(len(row)) - np.searchsorted(row, np.arange(len(scores)))[row]
    top = item[rank < k].reshape(len(scores), k)
    return np.where(np.isneginf(np.take_along_axis(scores, top, axis=1)), -1, top)
