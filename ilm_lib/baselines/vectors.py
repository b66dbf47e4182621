"""Item vectors of several kinds end to end: who had what, what a sequential recommender learned, what a text says."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, diags

from ilm_lib.baselines.cf import CFEmbeddings, rms


def fuse(cf: CFEmbeddings | None, others: Sequence[np.ndarray], train: csr_matrix) -> CFEmbeddings:
    """One vector an item and a user, each part scaled to an RMS of 1 so that none drowns another.

    Of the parts that have items alone, as texts do, a user has the mean over the items of the training part.

    Args:
        cf: factors, which come first; None leaves them out.
        others: (I, d_k) each; text vectors are centred, since what all texts share tells nothing.
        train: (U, I) interactions.
    """
    share = diags(1 / np.maximum(1, np.diff(train.indptr))) @ train  # (U, I), rows that sum to 1
    item, user = [], []
    if cf is not None:
        item, user = [cf.item / rms(cf.item)], [cf.user / rms(cf.user)]
    for part in others:
        part = part / rms(part)
        item.append(part)
        user.append(share @ part)
    return CFEmbeddings(np.concatenate(user, 1), np.concatenate(item, 1))
