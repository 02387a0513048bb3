"""Keeps a replica's View fresh: a thread that polls the table and the pointer, and swaps one reference.

A new generation is loaded beside the old one, which goes on serving meanwhile; one that is damaged is refused, once,
with a line in the log, and the old one stays. So it does while the storage is away or memory is short: then loading is
tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pyarrow.compute as pc

from sidray.errors import MachineError, UserError
from sidray.retrieval.collection import Collection, Generation, Pointer
from sidray.retrieval.delta import Delta
from sidray.retrieval.index import PartitionedIndex
from sidray.retrieval.item_table import open_version
from sidray.retrieval.log_reader import LogReader
from sidray.retrieval.shards import WHOLE, Shard
from sidray.serving.metrics import FreshnessMetrics
from sidray.serving.view import View

RETRY_S = 30.0  # after a generation could not be read
_LOGGER = logging.getLogger("ray.serve")


class Follower:
    """`view` is the latest View. `poll_s` between two looks at the table; `poke` asks for one at once; `on_gpu`: the
    vectors lie on this process's GPU. Of a sharded collection it follows one shard, and passes over generations of
    another number of shards."""

    def __init__(self, collection: Collection, poll_s: float, shard: Shard = WHOLE, on_gpu: bool = False) -> None:
        self._collection = collection
        self._shard = shard
        self._load_index = _gpu_loader() if on_gpu else PartitionedIndex.load
        self._poll_s = poll_s
        self._refused: tuple[int, str] | None = None  # epoch and name of a generation
        self._retry_at = 0.0
        self._poke = threading.Event()
        pointer = collection.pointer()
        self._reader, self.view = self._load(pointer, self._newest(pointer))
        self._seen = time.time()
        self._metrics = FreshnessMetrics()
        self._metrics.looked()
        threading.Thread(target=self._follow, name="follower", daemon=True).start()

    @property
    def lag_s(self) -> float:
        """How old the replica's knowledge of the table is."""
        return time.time() - self._seen

    def poke(self) -> None:
        self._poke.set()

    def refresh(self) -> None:
        """One look. Raises OSError or UserError when the storage does not answer."""
        pointer = self._collection.pointer()
        view, newest = self.view, self._newest(pointer)
        wanted = (pointer.epoch, newest.name)
        if wanted not in ((view.epoch, view.generation), self._refused) and time.monotonic() >= self._retry_at:
            self._switch(pointer, newest)
        with self._reader.read() as news:
            delta = self.view.delta if news is None else self.view.delta.plus(news)
        if self._reader.version != self.view.table_version:
            self.view = replace(self.view, delta=delta, table_version=self._reader.version)
            if news is not None:
                self._metrics.found(pc.max(news["seq"]).as_py())
        self._seen = time.time()
        self._metrics.looked()

    def _newest(self, pointer: Pointer) -> Generation:
        """Raises UserError when none has this number of shards."""
        generation = pointer.newest(self._shard.of)
        if generation is None:
            problem = f"no generation of {self._collection.uri} has {self._shard.of} shards"
            raise UserError(problem, f"sidray reindex RUN --shards {self._shard.of}, or deploy the run again")
        return generation

    def _switch(self, pointer: Pointer, newest: Generation) -> None:
        try:
            self._reader, self.view = self._load(pointer, newest)
            _LOGGER.info("serving generation %s", newest.name)
        except Exception as error:  # of any kind, as a GPU that is full: whoever fails here still reads the log
            if isinstance(error, UserError) and not isinstance(error, MachineError):
                self._refused = pointer.epoch, newest.name
                _LOGGER.error("generation %s is refused, %s stays: %s", newest.name, self.view.generation, error)
                return
            self._retry_at = time.monotonic() + RETRY_S
            message = "cannot load generation %s, %s stays for now: %r"
            _LOGGER.warning(message, newest.name, self.view.generation, error)

    def _load(self, pointer: Pointer, generation: Generation) -> tuple[LogReader, View]:
        index = self._load_index(self._collection.index_folder(generation, self._shard.number), threads=1)
        if index.manifest.model_key != self._collection.model_key:
            problem = f"the index is of model {index.manifest.model_key}, the run of {self._collection.model_key}"
            raise UserError(problem, "build the index from the run's own table")
        table = open_version(self._collection.table, generation.table_version)
        names = [name for name in table.schema.names if name not in ("content_hash", "updated_at")]
        reader = LogReader(self._collection.table, generation.table_version, names)
        empty = Delta.empty(index, self._shard)
        with reader.read() as news:
            delta = empty if news is None else empty.plus(news)
        view = View(self._collection.name, generation.name, pointer.epoch, table, reader.version, delta)
        return reader, view

    def _follow(self) -> None:
        while True:
            self._poke.wait(self._poll_s)
            self._poke.clear()
            try:
                self.refresh()
            except Exception as error:  # the storage is away: reads go on with what is known, the lag tells
                _LOGGER.warning("cannot follow the item table: %s", error)
                time.sleep(self._poll_s)


def _gpu_loader() -> Callable[..., PartitionedIndex]:
    """A replica without a GPU starts lighter without torch."""
    from sidray.retrieval.torch_index import load_index

    return load_index
