"""Many concurrent requests, one model thread: what waits is computed together.

    batcher = Batcher(encode, executor, budget=4096, wait_s=0.002)
    vector = await batcher.submit("noodle soup", cost=5)

An idle batcher waits `wait_s` for company; while the thread computes, the next batch gathers by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Waiting(Generic[T, R]):
    item: T
    cost: int
    future: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """`compute` maps a list to as many results, in `executor`. A batch, padded to its costliest row, stays within
    `budget`; a row above it goes alone. All calls come from one event loop."""

    def __init__(
        self,
        compute: Callable[[list[T]], Sequence[R]],
        executor: Executor,
        budget: int,
        wait_s: float,
    ) -> None:
        self._compute = compute
        self._executor = executor
        self.budget = budget
        self._wait_s = wait_s
        self._queue: deque[_Waiting[T, R]] = deque()
        self._drain_task: asyncio.Task[None] | None = None
        self._since: float | None = None
        self.outstanding = 0  # the cost of what waits and of what is computed

    @property
    def busy_s(self) -> float:
        """How long the batch in the model thread has been there; 0 when there is none."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    async def submit(self, item: T, cost: int = 1) -> R:
        """The result of one row. Raises what `compute` raises for that row alone."""
        waiting: _Waiting[T, R] = _Waiting(item, cost, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._drain_task is None or self._drain_task.done():
            self._drain_task = asyncio.create_task(self._drain())
        self.outstanding += cost
        try:
            return await waiting.future
        finally:
            self.outstanding -= cost

    async def _drain(self) -> None:
        await asyncio.sleep(self._wait_s)
        while batch := self._take():
            self._since = time.monotonic()
            try:
                await self._run(batch)
            finally:
                self._since = None

    def _take(self) -> list[_Waiting[T, R]]:
        """The longest run of waiting rows that fits the budget; those whose client has gone are dropped."""
        batch: list[_Waiting[T, R]] = []
        width = 0
        while self._queue:
            row = self._queue[0]
            if not row.future.done():
                width = max(width, row.cost)
                if batch and width * (len(batch) + 1) > self.budget:
                    break
                batch.append(row)
            self._queue.popleft()
        return batch

    async def _run(self, batch: list[_Waiting[T, R]]) -> None:
        """A batch that fails is run row by row, so that one bad row spoils no other."""
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._executor, self._compute, [row.item for row in batch])
            for row, result in zip(batch, results, strict=True):
                if not row.future.done():
                    row.future.set_result(result)
        except Exception as error:
            if len(batch) == 1:
                if not batch[0].future.done():
                    batch[0].future.set_exception(error)
                return
            for row in batch:
                await self._run([row])
