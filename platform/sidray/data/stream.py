"""Batches for a training worker, prepared by Ray Data tasks elsewhere, in exactly the order of the plan.

    stream = StepStream(plan.slice(step, rank, world), fetch)  # fetch(rows int64 [local batch]) -> dict of tensors
    for batch in stream: ...  # one dict for each step;  stream.waited_s says how long training stood still for data

`fetch` runs in the tasks, so it must be picklable; what it opens (a Catalogue, a tokenizer) is opened once per process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import safetensors.torch
import torch

from sidray.data.blocks import in_order

Rows = npt.NDArray[np.int64]
Batch = dict[str, torch.Tensor]
Fetch = Callable[[Rows], Batch]
FIRST_BLOCKS = (1, 1, 2, 4)  # steps of the first tasks: the first batch comes soon
BLOCK_STEPS = 8  # steps of one task later on: a task costs some milliseconds, and its batches memory
PIPELINE_STEPS = 16_000  # steps of one Ray Data pipeline: it holds a reference for each of its tasks
# A task runs to its end whether its batches are read or not. Ray's default pauses it after two, with its CPU in hand:
# when one rank's paused tasks hold the last CPUs, no other rank gets its batch, and all wait for each other for ever.
NEVER_PAUSED = {"_generator_backpressure_num_objects": -1}


class StepStream:
    """Iterates once over the steps, in order; the rows of step i are positions[i].

    positions: int64 [steps, local batch]. At most `concurrency` tasks of `num_cpus` each prepare batches at once. No
    task starts while more than about buffer_bytes of finished batches wait in the object store.
    After (and during) the iteration: batches, and waited_s, the wait for all of them but the first."""

    def __init__(
        self,
        positions: Rows,
        fetch: Fetch,
        num_cpus: float = 0.5,
        concurrency: int = 4,
        buffer_bytes: int = 256 * 2**20,
    ) -> None:
        self.positions = np.ascontiguousarray(positions, dtype=np.int64)
        self.fetch, self.num_cpus, self.concurrency, self.buffer_bytes = fetch, num_cpus, concurrency, buffer_bytes
        self.batches = 0
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._steps()) as steps:
            for step in range(len(self.positions)):
                start = time.perf_counter()
                batch = safetensors.torch.load(next(steps))
                if step:
                    self.waited_s += time.perf_counter() - start
                self.batches += 1
                if step + 1 == len(self.positions):
                    steps.close()  # ends the pipeline although nobody asks for a further batch
                yield batch

    def _steps(self) -> Generator[bytes, None, None]:
        """The batches as safetensors bytes."""
        fetch = ray.put(self.fetch)

        def run(block: pa.Table) -> Iterator[pa.Table]:
            for rows in block["rows"].to_pylist():
                data = safetensors.torch.save(_fetch_of(fetch)(np.frombuffer(rows, dtype=np.int64)))
                yield pa.table({"batch": pa.array([data], pa.large_binary())})

        for start in range(0, len(self.positions), PIPELINE_STEPS):
            dataset = ray.data.from_blocks(_blocks(self.positions[start : start + PIPELINE_STEPS]))
            in_order(dataset, self.buffer_bytes)
            mapped = dataset.map_batches(
                run,
                batch_format="pyarrow",
                batch_size=1,
                num_cpus=self.num_cpus,
                compute=ray.data.TaskPoolStrategy(self.concurrency),
                **NEVER_PAUSED,
            )
            for block in mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2):
                for scalar in block["batch"]:
                    yield scalar.as_py()


def _blocks(positions: Rows) -> list[pa.Table]:
    """The rows of each step as bytes, one row for each step; every block becomes one task."""
    blocks: list[pa.Table] = []
    start = 0
    while start < len(positions):
        size = FIRST_BLOCKS[len(blocks)] if len(blocks) < len(FIRST_BLOCKS) else BLOCK_STEPS
        steps = [rows.tobytes() for rows in positions[start : start + size]]
        blocks.append(pa.table({"rows": pa.array(steps, pa.large_binary())}))
        start += size
    return blocks


@lru_cache(maxsize=16)
def _fetch_of(reference: Any) -> Fetch:
    """The fetch function of a stream, unpickled once in each worker process."""
    fetch: Fetch = ray.get(reference)
    return fetch
