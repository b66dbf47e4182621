"""BM25 (Robertson and Zaragoza, 2009): texts that share a query's rare words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_matrix

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")


class BM25:
    """The score of M texts for a query is sum_w idf(w) f (k + 1) / (f + k (1 - b + b L / mean L)), over its words w.

    f is how often a text has a word and L its length; a word of the query counts once. idf(w) = log(1 + (M - n + .5) /
    (n + .5)), of the n texts that have it.

    Args:
        texts: M of them.
        k, b: as above.
    """

    def __init__(self, texts: Sequence[str], *, k: float = 1.2, b: float = 0.75):
        counts = [Counter(_words(text)) for text in texts]
        self._column = {word: n for n, word in enumerate(dict.fromkeys(word for count in counts for word in count))}
        rows = np.repeat(np.arange(len(texts)), [len(count) for count in counts])
        columns = np.array([self._column[word] for count in counts for word in count], dtype=np.int64)
        often = np.array([times for count in counts for times in count.values()], dtype=float)
        length = np.bincount(rows, often, minlength=len(texts))
        have = np.bincount(columns, minlength=len(self._column))
        idf = np.log(1 + (len(texts) - have + 0.5) / (have + 0.5))
        long = 1 - b + b * length / max(length.mean(), 1e-9)
        values = idf[columns] * often * (k + 1) / (often + k * long[rows])
        self._weights = csr_matrix((values, (rows, columns)), shape=(len(texts), len(self._column)))

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """(Q, M) float32, 0 where a text has no word of the query."""
        found = [[self._column[w] for w in dict.fromkeys(_words(query)) if w in self._column] for query in queries]
        starts = np.cumsum([0, *map(len, found)])
        columns = np.array([column for row in found for column in row], dtype=np.int64)
        asked = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(queries), len(self._column)))
        return (asked @ self._weights.T).toarray().astype(np.float32)


def _words(text: str) -> Iterable[str]:
    return (found[0] for found in _WORD.finditer(text.casefold()))
