"""Train, valid and test for rows that bring no split: by time, or by a hash of the item.

by_hash(item_ids, valid=0.1, test=0.15, seed=0)  # the same id always falls into the same split
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.data.settings import SPLITS

Codes = npt.NDArray[np.int8]  # positions in SPLITS


def unit_hash(text: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the text and the seed."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def by_hash(texts: Iterable[str], valid: float, test: float, seed: int) -> Codes:
    """int8 [texts]: the share `test` of all texts goes to test, `valid` to valid, the rest to train."""
    return _cut(np.array([unit_hash(text, seed) for text in texts]), valid, test)


def by_time(stamps: npt.NDArray[np.int64], valid: float, test: float) -> Codes:
    """int8 [rows]: the latest share `test` goes to test, the share `valid` before it to valid.

    Equal times stay together, on the earlier side."""
    ordered = np.sort(stamps)
    first_valid, first_test = (round(len(stamps) * share) for share in (1 - valid - test, 1 - test))
    codes = np.zeros(len(stamps), dtype=np.int8)
    if len(stamps):
        codes[stamps > ordered[max(0, first_valid - 1)]] = 1
        codes[stamps > ordered[max(0, first_test - 1)]] = 2
    return codes


def names(codes: Codes) -> pa.Array:
    """The splits' names, string [rows]; code 3 is 'mixed'."""
    return pa.array([*SPLITS, "mixed"]).take(pa.array(codes))


def of_pairs(left: Codes, right: Codes) -> Codes:
    """int8 [pairs]: the split that both items are in, or 3 (mixed)."""
    return np.where(left == right, left, np.int8(3)).astype(np.int8)


def _cut(uniform: npt.NDArray[np.float64], valid: float, test: float) -> Codes:
    return np.where(uniform < test, 2, np.where(uniform < test + valid, 1, 0)).astype(np.int8)
