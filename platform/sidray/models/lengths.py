"""Texts of similar length are read in one call of a model, so that little of what it computes is padding.

for rows in of_similar_length([len(ids) for ids in texts], padding=0.1): ...
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def of_similar_length(lengths: Sequence[int], padding: float) -> list[list[int]]:
    """The rows in groups, the shortest first: when each group is padded to its longest row, that adds at most the share
    `padding` to all lengths together. Cut where a cut saves the most, until that holds, so that there are few."""
    order = np.argsort(lengths, kind="stable")
    ascending = np.asarray(lengths, np.int64)[order]
    bounds = [0, len(ascending)]
    while True:
        low, high = np.repeat(bounds[:-1], np.diff(bounds)), np.repeat(bounds[1:], np.diff(bounds))  # of each row
        if ascending[high - 1].sum() <= (1 + padding) * ascending.sum():
            return [order[start:end].tolist() for start, end in pairwise(bounds) if end > start]
        rows = np.arange(len(ascending))
        saved = (rows - low) * (ascending[high - 1] - ascending[rows - 1])  # by a cut before each row
        bounds = sorted([*bounds, int(np.argmax(saved))])
