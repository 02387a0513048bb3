"""Many writes, few commits: what waits while one commit runs goes into the next.

commits = GroupCommit(log.append, executor, wait_s=0.02);  version = await commits.write(rows)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import pyarrow as pa

from sidray.errors import StorageError, UserError


@dataclass(frozen=True)
class _Write:
    rows: pa.Table
    done: asyncio.Future[int]


class GroupCommit:
    """`append` makes rows durable and returns their version, in `executor`. An idle one waits `wait_s` for company.

    All calls come from one event loop."""

    def __init__(self, append: Callable[[pa.Table], int], executor: Executor, wait_s: float) -> None:
        self._append = append
        self._executor = executor
        self._wait_s = wait_s
        self._waiting: list[_Write] = []
        self._task: asyncio.Task[None] | None = None
        self.version = 0  # of the last commit

    async def write(self, rows: pa.Table) -> int:
        """The version that holds the rows. Raises what `append` raises for these rows alone."""
        write = _Write(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(write)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return await asyncio.shield(write.done)  # a client that goes away must not cancel a commit

    async def _drain(self) -> None:
        await asyncio.sleep(self._wait_s)
        while self._waiting:
            writes, self._waiting = self._waiting, []
            await self._commit(writes)

    async def _commit(self, writes: list[_Write]) -> None:
        """Rows that do not fit the table fail alone: their group is committed one by one."""
        rows = pa.concat_tables([write.rows for write in writes], promote_options="default")
        try:
            version = await asyncio.get_running_loop().run_in_executor(self._executor, self._append, rows)
        except UserError as error:
            if len(writes) == 1 or isinstance(error, StorageError):
                _fail(writes, error)
            else:
                for write in writes:
                    await self._commit([write])
        except Exception as error:
            _fail(writes, error)
        else:
            self.version = version
            for write in writes:
                if not write.done.done():
                    write.done.set_result(version)


def _fail(writes: list[_Write], error: Exception) -> None:
    for write in writes:
        if not write.done.done():
            write.done.set_exception(error)
