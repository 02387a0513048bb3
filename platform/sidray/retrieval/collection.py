"""What a service serves and changes: a live item table, its index generations, and a pointer to the current one.

    collection = Collection.of(run)      # <root>/collections/<run>-<variant>, made from the run on first use
    collection.pointer()                 # generation, where its index lies, the table version that it was built from
    collection.fold()                    # a new generation of all that was written (a job; one at a time)
    collection.fold(shards=4)            # for a service that cuts its recall into four
    collection.tidy(until=version)       # joins the small files of many appends (the writer, now and then)
    collection.rollback("...")           # table and index as they were at an earlier generation

The run's own steps stay as they are: the table is copied, the first generation is the run's index. Generations are
tagged in the table, so that cleaning up spares their versions. Files: items.lance, generations/<name>/, events/,
current.json (the pointer, replaced whole).
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass
from typing import Any

from sidray import storage
from sidray.errors import StorageError, UserError, nearest
from sidray.finished import RunFolder
from sidray.lease import Lease
from sidray.retrieval import index as index_module
from sidray.retrieval import item_table
from sidray.retrieval.shards import all_shards

KEEP = 5  # generations, the current one among them: a rollback is possible to the others
KEEP_VERSIONS_FOR = datetime.timedelta(minutes=2)  # of the table, beside the tagged ones: readers may be in them
TIDY_ROWS = 1024  # in the files that `tidy` makes
WAIT_S = 10.0  # for another process to end what it does with the collection


@dataclass(frozen=True)
class Generation:
    """`index`: its folder, relative to the root of the runs; of several `shards` each has a folder in it."""

    name: str
    index: str
    table_version: int
    shards: int = 1


@dataclass(frozen=True)
class Pointer:
    """`epoch` counts rollbacks: in a new one the table has lost rows, and everybody reads it anew. While `settled` is
    false a rollback is on its way and nothing may be written. `generations`: the oldest first, the current one last."""

    epoch: int
    settled: bool
    generations: tuple[Generation, ...]

    @property
    def current(self) -> Generation:
        return self.generations[-1]

    def newest(self, shards: int) -> Generation | None:
        """Of so many shards: a service keeps the number that it was deployed with."""
        return next((each for each in reversed(self.generations) if each.shards == shards), None)


class OtherModelError(UserError):
    """The vectors of a collection are of another model than the run's."""


class Collection:
    def __init__(self, root: str, name: str, model_key: str) -> None:
        self.root = root
        self.uri = storage.join(root, "collections", name)
        self.name = name
        self.model_key = model_key
        self.table = storage.join(self.uri, "items.lance")
        self.events = storage.join(self.uri, "events")
        self._pointer = storage.join(self.uri, "current.json")
        self._generations = storage.join(self.uri, "generations")

    @classmethod
    def of(cls, run: RunFolder) -> Collection:
        """The collection of a finished run; the first call makes it."""
        collection = cls(run.root, run.name, run.model_key)
        if not storage.exists(collection._pointer):
            with Lease(collection.uri) as lease:
                if not storage.exists(collection._pointer):  # another process may have made it meanwhile
                    collection._create(run, lease)
        return collection

    def _create(self, run: RunFolder, lease: Lease) -> None:
        storage.delete(self.table)  # half a copy of an earlier attempt
        storage.copy(storage.join(run.output("table"), "items.lance"), self.table)
        folder = storage.relative(run.output("index"), self.root)
        version = int(item_table.open_version(self.table).version)
        item_table.tag(self.table, run.steps["index"], version)  # first: what the pointer names is never cleaned up
        lease.confirm()
        self._point(Pointer(0, True, (Generation(run.steps["index"], folder, version),)))

    def pointer(self) -> Pointer:
        """Raises OSError when the storage does not answer."""
        values: dict[str, Any] = storage.read_json(self._pointer)
        generations = tuple(Generation(**each) for each in values.pop("generations"))
        return Pointer(**values, generations=generations)

    def index_folder(self, generation: Generation, shard: int = 0) -> str:
        folder = storage.join(self.root, generation.index)
        return folder if generation.shards == 1 else storage.join(folder, f"shard-{shard}")

    def pending(self) -> int:
        """Rows of the log that the current generation was built without, whoever wrote them. Raises OSError when the
        storage does not answer."""
        return self._rows(None) - self._rows(self.pointer().current.table_version)

    def fold(self, shards: int = 0) -> Generation:
        """Builds a generation of the table's latest version, if anything was written since the last one, that one
        cannot be read, or has another number of shards (0: as it has); then compacts the table. Keeps the last KEEP,
        and the newest of each number of shards: a service that was deployed with it goes on from there.

        Raises UserError when another process folds or rolls back, and for a collection of another model."""
        with Lease(self.uri, wait_s=WAIT_S) as lease:
            pointer = self.pointer()
            if not pointer.settled:
                raise UserError(f"a rollback of {self.uri} was interrupted", "run it again: sidray rollback RUN")
            current = pointer.current
            known = self._partitions(current)
            version = int(item_table.open_version(self.table).version)
            shards = shards or current.shards
            written = self._rows(version) != self._rows(current.table_version)
            if known is not None and not written and shards == current.shards:
                return current
            self._sweep(pointer)
            generation = self._build(version, known or [], shards)
            lease.confirm()
            pointer = Pointer(pointer.epoch, True, _kept((*pointer.generations, generation)))
            self._point(pointer)
            item_table.compact(self.table, version)
            self._sweep(pointer)
            return generation

    def tidy(self, until: int) -> None:
        """Keeps appends fast between two generations: joins the small files of version `until`, and removes old
        versions. Raises UserError when another process folds or rolls back."""
        with Lease(self.uri):
            if self.pointer().settled:
                item_table.compact(self.table, until, TIDY_ROWS)
                item_table.clean(self.table, KEEP_VERSIONS_FOR)

    def check(self) -> None:
        """Raises UserError when the current index is missing, or of a format that this version does not read, or of
        another model."""
        try:
            self._read_partitions(self.pointer().current)
        except OtherModelError:
            raise
        except UserError as error:
            raise UserError(error.problem, "build it again: sidray reindex RUN") from error

    def _partitions(self, generation: Generation) -> list[str] | None:
        """Those that its index knows; None when it cannot be read and must be built again."""
        try:
            return self._read_partitions(generation)
        except OtherModelError:
            raise
        except UserError:
            return None

    def _read_partitions(self, generation: Generation) -> list[str]:
        folders = [self.index_folder(generation, shard) for shard in range(generation.shards)]
        manifests = [index_module.read_manifest(folder) for folder in folders]
        for manifest in manifests:
            if manifest.model_key != self.model_key:
                problem = f"{self.uri} holds vectors of model {manifest.model_key}, the run is of {self.model_key}"
                remedy = f"the run was computed anew: delete {self.uri}, and send again what was written to the service"
                raise OtherModelError(problem, remedy)
        return [name for manifest in manifests for name in manifest.partitions]

    def _rows(self, version: int | None) -> int:
        """In the log up to a version (None: the latest): with every write there are more."""
        return int(item_table.open_version(self.table, version).count_rows())

    def _build(self, version: int, partitions: list[str], shards: int) -> Generation:
        """A search in one of `partitions` whose items are all gone finds nothing, and is no mistake."""
        name = f"generation-{version}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%S.%f}"
        folder = storage.relative(storage.join(self._generations, name), self.root)
        generation = Generation(name, folder, version, shards)
        item_table.tag(self.table, name, version)
        for shard in all_shards(shards):  # one after the other: memory holds the rows of one
            rows = item_table.indexed(self.table, version, shard)
            known = [each for each in partitions if shard.has(each)]
            folder = self.index_folder(generation, shard.number)
            index_module.build(rows, folder, version, self.model_key, partitions=known)
        return generation

    def rollback(self, name: str = "") -> Generation:
        """Table and index as they were at a generation ("": the one before the current that has as many shards); what
        was written since is gone from both. Raises UserError, with all as it was, for a generation that is unknown or
        damaged, or has another number of shards: a service that was deployed with the current one could not follow."""
        with Lease(self.uri, wait_s=WAIT_S):
            pointer = self.pointer()
            kept = _until(pointer.generations, name)
            self._check_whole(kept[-1])
            self._point(Pointer(pointer.epoch, False, pointer.generations))
            item_table.restore(self.table, kept[-1].table_version)
            pointer = Pointer(pointer.epoch + 1, True, kept)
            self._point(pointer)
            self._sweep(pointer)
            return kept[-1]

    def _check_whole(self, generation: Generation) -> None:
        """Raises UserError when its version of the table or its index is gone."""
        try:
            item_table.open_version(self.table, generation.table_version)
            self._read_partitions(generation)
        except (OtherModelError, StorageError):
            raise
        except UserError as error:
            problem = f"generation {generation.name} cannot be gone back to: {error.problem}"
            raise UserError(problem, "name another one: sidray rollback RUN GENERATION") from error

    def _sweep(self, pointer: Pointer) -> None:
        """Deletes the generations that the pointer does not name, among them what a fold that failed or was killed has
        left. The first one's index belongs to the run and stays."""
        names = [generation.name for generation in pointer.generations]
        item_table.untag_others(self.table, names)
        for name in storage.list_names(self._generations):
            if name not in names:
                storage.delete(storage.join(self._generations, name))
        item_table.clean(self.table, KEEP_VERSIONS_FOR)

    def _point(self, pointer: Pointer) -> None:
        storage.write_json(self._pointer, asdict(pointer))


def _kept(generations: tuple[Generation, ...]) -> tuple[Generation, ...]:
    """The last KEEP, and the newest of each number of shards."""
    newest = {generation.shards: generation for generation in generations}
    return tuple(each for each in generations if each in generations[-KEEP:] or newest[each.shards] == each)


def _until(generations: tuple[Generation, ...], name: str) -> tuple[Generation, ...]:
    """Those up to the named one; "": up to the newest before the current one that has as many shards."""
    names, shards = [generation.name for generation in generations], generations[-1].shards
    like = [generation.name for generation in generations[:-1] if generation.shards == shards]
    if not name and not like:
        of = "" if len(names) == 1 else f" that has {shards} shards too"
        raise UserError(f"there is no generation before the current one{of}", f"it has {', '.join(names)}")
    wanted = name or like[-1]
    if wanted not in names:
        raise UserError(f"there is no generation {wanted!r}{nearest(wanted, names)}", f"it has {', '.join(names)}")
    kept = generations[: names.index(wanted) + 1]
    if (other := kept[-1].shards) != shards:
        problem = f"generation {wanted} has {other} shards, the current one {shards}, and so may the service"
        raise UserError(problem, f"sidray reindex RUN --shards {other}, deploy the run again, then go back")
    return kept
