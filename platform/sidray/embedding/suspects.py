"""Items that an encoder cannot take: set aside, whether it raises or the process dies, while all others are encoded.

    suspects = Suspects.start()            # on the driver
    Guard(suspects, actor_id).each(rows, encode)     # in an actor of the pool: tables, or the reasons why not

Ray starts a dead actor again and gives it the batch it died in, without end. So the actor says what it is about to
encode, and is told what it died in: such a batch is taken item by item, and an item in which the process died DEATHS
times is left out. A lost node counts as a death, which costs its batch some time and no item.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray.errors import UserError

DEATHS = 2  # of a process that encoded the item alone
STARTS = 3  # of an actor, in a row, without an item encoded

Rows = npt.NDArray[np.int64]
Encode = Callable[[Rows], pa.Table]
Part = tuple[Rows, pa.Table | str]


class _Ledger:
    """A small actor: what each worker is at, and how often one died at it."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[int, ...]] = {}
        self._deaths: Counter[tuple[int, ...]] = Counter()
        self._starts: Counter[str] = Counter()

    def starts(self, worker: str) -> int:
        """How often in a row it has started and died before any row."""
        if worker in self._at:
            self._deaths[self._at.pop(worker)] += 1
            self._starts[worker] = 0
        self._starts[worker] += 1
        return self._starts[worker]

    def begins(self, worker: str, rows: tuple[int, ...]) -> int:
        """Notes that the worker begins; returns how often one died at just these rows."""
        self._at[worker] = rows
        self._starts[worker] = 0
        return self._deaths[rows]

    def ends(self, worker: str) -> None:
        self._at.pop(worker, None)


class Suspects:
    """The ledger's handle as workers use it. Picklable."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    @classmethod
    def start(cls) -> Suspects:
        """On the driver's node, with which the job ends."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        return cls(ray.remote(_Ledger).options(num_cpus=0, scheduling_strategy=here).remote())

    def starts(self, worker: str) -> None:
        """Raises UserError when the worker's process dies again and again before it encodes anything."""
        import ray

        if ray.get(self._ledger.starts.remote(worker)) > STARTS:
            raise UserError(
                f"an encoder died {STARTS} times while it loaded the model",
                "its memory may be too small: lower embedding.actors, or give the pods more",
            )

    def begins(self, worker: str, rows: Rows) -> int:
        import ray

        return int(ray.get(self._ledger.begins.remote(worker, tuple(rows.tolist()))))

    def ends(self, worker: str) -> None:
        self._ledger.ends.remote(worker)


class Guard:
    """Of one actor: encodes rows so that what one of them does to the encoder befalls no other."""

    def __init__(self, suspects: Suspects, worker: str) -> None:
        self._suspects = suspects
        self._worker = worker  # the same when the actor is started again
        suspects.starts(worker)

    def each(self, rows: Rows, encode: Encode) -> list[Part]:
        """The rows in order, in parts: one of all in the usual case, else one of each row, with the reason in place of
        the table of a row that cannot be encoded.

        Raises UserError when rows fail together and none of them alone."""
        if not len(rows):
            return []
        whole: Exception | None = None
        if self._suspects.begins(self._worker, rows) == 0:
            try:
                return [(rows, encode(rows))]
            except UserError:
                raise
            except Exception as error:
                whole = error
            finally:
                self._suspects.ends(self._worker)
        parts = [(rows[n : n + 1], self._alone(rows[n : n + 1], encode)) for n in range(len(rows))]
        if whole is not None and not any(isinstance(found, str) for _, found in parts):
            raise UserError(
                f"{len(rows)} items cannot be encoded at once, each alone can: {_brief(whole)}",
                "lower embedding.batch_size",
            ) from whole
        return parts

    def _alone(self, row: Rows, encode: Encode) -> pa.Table | str:
        try:
            if self._suspects.begins(self._worker, row) >= DEATHS:
                return f"the encoder's process died of it {DEATHS} times"
            return encode(row)
        except UserError:
            raise
        except Exception as error:
            return f"cannot be encoded: {_brief(error)}"
        finally:
            self._suspects.ends(self._worker)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
