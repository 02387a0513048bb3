"""Checkpoints of a stage: every rank saves its files, they are uploaded beside the training, none is used unverified.

    checkpoints = Checkpoints(uri, keep=2, made=Made(world=2, zero_stage=3, batch_size=64), say=print)
    with checkpoints.newest() as found: ...          # a local copy of the newest whole one, or None
    with checkpoints.writing(step=6) as folder: ...  # every rank writes into a folder of its own
    checkpoints.close()                              # when the last one is whole in the storage

<uri>/00000006-3f2a91c0/             what the ranks wrote, and manifest.json: sizes and checksums, written last
<uri>/00000006-3f2a91c0.safetensors  the towers, when step 6 had the best ones so far
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sidray import storage
from sidray.errors import UserError
from sidray.scratch import Scratch, delete_orphans
from sidray.tasks.losses import rank
from sidray.training.group import gathered, leads_node, on_node

MANIFEST = "manifest.json"
BEST = ".safetensors"
Mark = tuple[int, int]  # bytes, CRC-32: 7 GB/s on one core, and damage is no adversary


class TornError(Exception):
    """A checkpoint that is not whole; says why."""


@dataclass(frozen=True)
class Made:
    """How a checkpoint was made: `world` ranks, and what a run that resumes from it must share."""

    world: int
    zero_stage: int
    batch_size: int


@dataclass(frozen=True)
class Manifest:
    """`files`: of all ranks, by their path in the checkpoint; `towers`: the best ones so far, beside it."""

    step: int
    made: Made
    files: Mapping[str, Mark]
    towers: Mapping[str, Mark]

    @classmethod
    def read(cls, uri: str) -> Manifest:
        """Raises TornError when there is none, or half of one."""
        if not storage.exists(uri):
            raise TornError("it has no manifest: its upload did not end")
        try:
            found = storage.read_json(uri)
            return cls(found["step"], Made(**found["made"]), _marks(found["files"]), _marks(found["towers"]))
        except (ValueError, KeyError, TypeError) as error:
            raise TornError("its manifest cannot be read") from error


@dataclass(frozen=True)
class Restored:
    """A whole checkpoint: its files in a local `folder`; `scratch`: a path for whatever they must be turned into. Both
    are shared by the ranks of a machine."""

    folder: Path
    scratch: Path
    manifest: Manifest


class Checkpoints:
    """Of one stage, at `uri`. All ranks call the methods, in the same order."""

    def __init__(self, uri: str, keep: int, made: Made, say: Callable[[str], object]) -> None:
        self.uri, self.keep, self.made, self.say = uri, keep, made, say
        if leads_node():
            delete_orphans()
        self._group = gathered(uuid.uuid4().hex[:8])[0]  # of another group of workers nothing is overwritten
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._upload: Future[None] | None = None
        self._towers: Mapping[str, Mark] = {}
        self._torn: set[str] = set()

    @property
    def towers(self) -> str:
        """On rank 0: URI of the best towers so far. KeyError before there are any."""
        if not self._towers:
            raise KeyError("no towers were saved")
        return storage.join(self.uri, *self._towers)

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """An empty local folder for this rank's files of the checkpoint; best towers so far go to the path beside it
        that ends in BEST. When the block ends, they are on their way to the storage."""
        self._wait()  # one upload at a time: the local disk holds no more than one checkpoint
        root = Scratch()
        try:
            folder = root.path / f"{step:08d}-{self._group}"
            folder.mkdir()
            yield folder
            files: dict[str, Mark] = {}
            for part in gathered(marks(folder)):
                files |= part
            self._towers = {path.name: mark(path) for path in root.path.glob(f"*{BEST}")} or self._towers
            manifest = Manifest(step, self.made, files, self._towers) if rank() == 0 else None
        except BaseException:
            root.delete()
            raise
        self._upload = self._pool.submit(self._send, root, folder.name, manifest)

    def _send(self, root: Scratch, name: str, manifest: Manifest | None) -> None:
        if manifest is not None:
            self._prune(sending=name)
        storage.upload(root.path, self.uri)
        if manifest is not None:
            storage.write_json(storage.join(self.uri, name, MANIFEST), asdict(manifest))
        root.delete()

    def close(self) -> None:
        """Returns when the last checkpoint is whole in the storage."""
        self._wait()
        self._pool.shutdown()
        if rank() == 0:
            self._prune()

    def _wait(self) -> None:
        """Until the last checkpoint is whole in the storage: every rank has sent its part."""
        if self._upload is not None:
            self._upload.result()
            self._upload = None
            gathered(None)

    def _names(self) -> list[str]:
        """Oldest first."""
        return [name for name in storage.list_names(self.uri) if not name.endswith(BEST)]

    def _prune(self, sending: str = "") -> None:
        """On rank 0: all that are there are whole or known as torn, but the one that the ranks are `sending`."""
        there = [name for name in storage.list_names(self.uri) if not sending or not name.startswith(sending)]
        kept = [name for name in there if not name.endswith(BEST) and name not in self._torn][-self.keep :]
        used = {towers for name in kept for towers in self._towers_of(name)}
        for name in there:
            if name not in kept and name not in used:
                storage.delete(storage.join(self.uri, name))

    def _towers_of(self, name: str) -> Mapping[str, Mark]:
        try:
            return Manifest.read(storage.join(self.uri, name, MANIFEST)).towers
        except TornError:
            return {}

    @contextmanager
    def newest(self) -> Iterator[Restored | None]:
        """The newest whole checkpoint for the block; torn ones are named, and deleted when a new one is whole.

        Raises UserError when it was made in a way that this run does not share."""
        names = gathered(self._names() if rank() == 0 else [])[0]
        with _node_folder() as scratch:
            found = None
            while names and found is None:
                found = self._restored(names.pop(), scratch, last=not names)
            yield found

    def _restored(self, name: str, scratch: Path, last: bool) -> Restored | None:
        mine: tuple[Path, Manifest] | None = None
        torn = ""
        if leads_node():
            try:
                mine = self._fetch(name, scratch)
            except TornError as problem:
                torn = str(problem)
        torn = next(filter(None, gathered(torn)), "")
        if not torn:
            folder, manifest = on_node(mine)
            self._check(manifest)
            self._towers = manifest.towers
            return Restored(folder, scratch / "work", manifest)
        if rank() == 0:
            then = "the stage starts at its beginning" if last else "the one before is used"
            self.say(f"checkpoint {name} is torn: {torn}; {then}")
            self._torn.add(name)
        return None

    def _fetch(self, name: str, scratch: Path) -> tuple[Path, Manifest]:
        """A local copy and its manifest. Raises TornError."""
        uri = storage.join(self.uri, name)
        manifest = Manifest.read(storage.join(uri, MANIFEST))
        folder = storage.local_copy(uri, scratch)
        with ThreadPoolExecutor() as pool:
            for problem in pool.map(lambda item: _problem(folder, *item), manifest.files.items()):
                if problem:
                    raise TornError(problem)
        for towers, expected in manifest.towers.items():
            best = storage.join(self.uri, towers)
            there = storage.local_copy(best, scratch) if storage.exists(best) else scratch / towers
            if problem := _problem(there.parent, towers, expected):
                raise TornError(f"of its best towers, {problem}")
        return folder, manifest

    def _check(self, manifest: Manifest) -> None:
        for name, was, now in (
            ("training.zero_stage", manifest.made.zero_stage, self.made.zero_stage),
            ("the global batch of", manifest.made.batch_size, self.made.batch_size),
        ):
            if was != now:
                raise UserError(
                    f"the checkpoint of step {manifest.step} was made with {name} {was}, and this run has {now}",
                    f"set training.zero_stage and training.workers as they were, or delete {self.uri} to begin anew",
                )


def marks(folder: Path) -> dict[str, Mark]:
    """Bytes and checksum of every file below the folder, by relative path."""
    return {str(path.relative_to(folder)): mark(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def mark(path: Path) -> Mark:
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return size, crc


def _marks(found: Mapping[str, list[int]]) -> dict[str, Mark]:
    return {path: (size, crc) for path, (size, crc) in found.items()}


def _problem(folder: Path, path: str, expected: Mark) -> str:
    """What is wrong with a file of a checkpoint, '' when nothing is."""
    if not (folder / path).is_file():
        return f"{path} is missing"
    size = (folder / path).stat().st_size
    if size != expected[0]:
        return f"{path} has {size} bytes of {expected[0]}"
    return "" if mark(folder / path) == expected else f"{path} was altered"


@contextmanager
def _node_folder() -> Iterator[Path]:
    """One empty local folder for all ranks of a machine."""
    own = Scratch() if leads_node() else None
    folder = on_node(own.path if own is not None else None)
    try:
        yield folder
        gathered(None)  # all have read
    finally:
        if own is not None:
            own.delete()
