"""Items that were bought together, counted over baskets: small logs, in memory. cooccurrence.py takes any log.

item, related, count = bought_together(baskets, items, n_items=14_811, most=10)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix

Ints = npt.NDArray[np.int64]
MAX_ITEMS_PER_USER = 200  # a user's latest; crawlers would otherwise make the count quadratic
_CHUNK = 4096  # items whose counts are in memory at once


def bought_together(users: Ints, items: Ints, n_items: int, most: int) -> tuple[Ints, Ints, Ints]:
    """For each item its `most` frequent companions: (item, related, count), sorted by item, then count.

    users, items: one entry for each event in order of time, int64 [events]. count is the number of users who have both;
    of equal counts the item of the smaller number is first."""
    users, items = _latest(users, items)
    matrix = csr_matrix((np.ones(len(users), np.int64), (users, items)), shape=(users.max(initial=-1) + 1, n_items))
    parts: list[tuple[Ints, Ints, Ints]] = []
    for start in range(0, n_items, _CHUNK):
        counts = (matrix[:, start : start + _CHUNK].T @ matrix).tocoo()
        left, right, count = counts.row.astype(np.int64) + start, counts.col.astype(np.int64), counts.data
        other = left != right
        left, right, count = left[other], right[other], count[other]
        order = np.lexsort((right, -count, left))
        left, right, count = left[order], right[order], count[order]
        rank = np.arange(len(left)) - np.searchsorted(left, left)  # position within the item's own companions
        parts.append((left[rank < most], right[rank < most], count[rank < most]))
    first, second, third = (np.concatenate(column) for column in zip(*parts, strict=True))
    return first, second, third


def _latest(users: Ints, items: Ints) -> tuple[Ints, Ints]:
    """Each (user, item) once, of a user's items only the latest MAX_ITEMS_PER_USER."""
    users, items = users[::-1], items[::-1]  # latest first
    _, first = np.unique(np.stack([users, items], axis=1), axis=0, return_index=True)
    first = first[np.lexsort((first, users[first]))]  # by user, latest first
    users, items = users[first], items[first]
    rank = np.arange(len(users)) - np.searchsorted(users, users)
    return users[rank < MAX_ITEMS_PER_USER], items[rank < MAX_ITEMS_PER_USER]
