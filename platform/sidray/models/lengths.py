"""Texts of similar length are read in one call of a model, so that little of what it computes is padding.

for rows in of_similar_length([len(ids) for ids in texts], padding=0.1): ...
h_text = read(towers.encode_text, text)   # [B, d]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

PADDING = 0.1  # of a call, at most, as a share of its tokens


class OfTokens(Protocol):
    """TextInput, NoteInput."""

    @property
    def lengths(self) -> list[int]: ...
    def of(self, rows: list[int], tokens: int) -> Self: ...


Inputs = TypeVar("Inputs", bound=OfTokens)


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


def read(encode: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
    """encode(inputs) [B, d], group by group: row by row the same, but for rounding."""
    lengths = inputs.lengths
    groups = of_similar_length(lengths, PADDING)
    encoded = [encode(inputs.of(rows, max(lengths[row] for row in rows))) for rows in groups]
    return torch.cat(encoded)[np.argsort(np.concatenate(groups))]
