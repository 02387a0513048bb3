"""The order in which training sees rows: a seeded permutation per epoch, cut into steps and rank slices.

    plan = EpochPlan(rows=26_772, batch_size=256, epochs=3, seed=0)
    plan.slice(start_step=37, rank=0, world=2)  # int64 [plan.steps - 37, 128]

The order depends on the seed alone: a run that stopped at step n continues with exactly the rest, on any number of
workers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidray.errors import UserError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """`epochs` permutations of the rows 0..rows-1, one after the other, cut into batches of `batch_size` (global).

    A batch may span two epochs; the very last one is topped up from further permutations, so every batch is full."""

    rows: int
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise UserError("there are no rows to train on", "check the train split of the catalogue's clicks or pairs")

    @property
    def steps(self) -> int:
        """Number of global batches."""
        return -(-self.rows * self.epochs // self.batch_size)

    def slice(self, start_step: int, rank: int, world: int) -> Rows:
        """Row numbers that `rank` of `world` reads from `start_step` on: [steps - start_step, local batch].

        The slices of all ranks, laid side by side, are the global batch. Raises UserError when the batch is not
        divisible by `world`."""
        first, numbers = self._cut(start_step, rank, world)
        low, high = first // self.rows, -(-self.steps * self.batch_size // self.rows)
        permutations = np.concatenate([self._permutation(epoch) for epoch in range(low, max(high, low + 1))])
        return permutations[numbers - low * self.rows]

    def epochs_of(self, start_step: int, rank: int, world: int) -> Rows:
        """The epoch that each entry of `slice` belongs to; `epochs` and more in the top-up of the last batch."""
        return self._cut(start_step, rank, world)[1] // self.rows

    def _cut(self, start_step: int, rank: int, world: int) -> tuple[int, Rows]:
        """The first position in the stream of epochs, and the positions [steps - start_step, local batch]."""
        if self.batch_size % world:
            raise UserError(
                f"batch_size {self.batch_size} is global and cannot be divided among {world} workers",
                f"make it a multiple of {world}",
            )
        if not (0 <= start_step <= self.steps and 0 <= rank < world):
            raise ValueError(f"step {start_step} of {self.steps}, rank {rank} of {world}")
        local = self.batch_size // world
        first = np.arange(start_step, self.steps, dtype=np.int64) * self.batch_size + rank * local
        return start_step * self.batch_size, first[:, None] + np.arange(local, dtype=np.int64)

    def _permutation(self, epoch: int) -> Rows:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows).astype(np.int64)


def one_click_per_item(item_index: Rows, epoch: Rows, offsets: Rows, clicks: Rows, seed: int) -> Rows:
    """For each (item, epoch) one of the item's clicks, uniformly; the same (seed, epoch, item) always gives the same.

    item_index, epoch: int64, same shape (any); item i owns clicks[offsets[i]:offsets[i + 1]], at least one.
    Returns entries of `clicks`, int64, in the shape of item_index."""
    count = offsets[item_index + 1] - offsets[item_index]
    if item_index.size and count.min() < 1:
        raise ValueError("an item has no click to choose from")
    key = _mix(np.uint64(seed) + _mix(epoch.astype(np.uint64) + _mix(item_index.astype(np.uint64))))
    uniform = (key >> np.uint64(11)).astype(np.float64) * 2.0**-53  # 53 bits in [0, 1)
    return clicks[offsets[item_index] + (uniform * count).astype(np.int64)]


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): a bijection of 64-bit words that passes BigCrush on a counter."""
    z = x + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
