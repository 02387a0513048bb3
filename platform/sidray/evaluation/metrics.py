"""Recall@k and NDCG@k of one relevant item per click, with ties counted in expectation.

    recall(greater, equal, k=10).mean();  ndcg(greater, equal, k=10).mean()

`greater` candidates score above the clicked item and `equal` others score the same. Every order of the tied ones is
equally likely, so the item's rank is uniform over greater + 1 .. greater + equal + 1. Counting ties as hits, or keeping
the order of ids, gives constant scores a recall that they have not earned.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]

RECALL_AT = (1, 5, 10, 20)
NDCG_AT = (5, 10, 20)


class Ranks(NamedTuple):
    """Per click: how many other candidates score above its item, and how many the same. int64 [n] each."""

    greater: Ints
    equal: Ints


def recall(greater: Ints, equal: Ints, k: int) -> Values:
    """The probability that the item is among the first k: float64 [n]."""
    return np.clip((k - greater) / (equal + 1), 0.0, 1.0)


def ndcg(greater: Ints, equal: Ints, k: int) -> Values:
    """The expectation of 1[rank <= k] / log2(rank + 1): float64 [n]. With one relevant item the ideal DCG is 1."""
    gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])  # [k + 1]: of ranks 1..r
    first, last = np.minimum(greater, k), np.minimum(greater + equal + 1, k)
    return np.asarray((gains[last] - gains[first]) / (equal + 1))


def per_click(ranks: Ranks) -> dict[str, Values]:
    """Every reported metric for every click: name -> float64 [n]."""
    values = {f"recall@{k}": recall(*ranks, k) for k in RECALL_AT}
    return values | {f"ndcg@{k}": ndcg(*ranks, k) for k in NDCG_AT}
