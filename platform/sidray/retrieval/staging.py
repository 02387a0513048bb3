"""The files of an index on the machine that reads them: copied there once, checked, and deleted when nobody reads them.

    staged = stage("s3://bucket/index", ["vectors.npy"], "manifest.json", Path("/tmp/sidray-index"))
    staged.folder  # as long as somebody holds `staged`

A service copies each generation of its index, so those that no process of the machine holds any more go when the next
one comes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sidray import storage
from sidray.errors import UserError

_READ = 2**23  # bytes hashed at once


class Staged:
    """An index's local folder, `held` (a descriptor of it, locked) while this object lives; None: it is the index's
    own."""

    def __init__(self, folder: Path, held: int | None = None) -> None:
        self.folder = folder
        if held is not None:
            weakref.finalize(self, os.close, held)


def sha256(path: Path) -> str:
    """In large pieces: between two of them searches in this process wait for the interpreter's lock."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def stage(folder: str, files: Sequence[str], manifest: str, staging: Path) -> Staged:
    """The local folder of an index. A remote one is copied under the hash of its manifest and appears there at once
    or not at all, so that processes which load it together do not see half of it.

    Raises UserError where there is no manifest."""
    if storage.is_local(folder):
        return Staged(Path(storage.absolute(folder)))
    source = storage.join(folder, manifest)
    if not storage.exists(source):
        raise UserError(f"there is no index in {folder}: {manifest} is missing", "build it with the index step")
    final = staging / hashlib.sha256(storage.read_bytes(source)).hexdigest()[:32]
    staging.mkdir(parents=True, exist_ok=True)
    with _alone(staging):
        if final.is_dir():
            return Staged(final, _hold(final))
        scratch = Path(tempfile.mkdtemp(dir=staging))
        held = _hold(scratch)
    try:
        for name in (*files, manifest):
            storage.local_copy(storage.join(folder, name), scratch)
        with _alone(staging):
            if final.is_dir():  # another process was first
                return Staged(final, _hold(final))
            os.replace(scratch, final)
            staged, held = Staged(final, held), -1  # the lock is the folder's, whatever its name
            _delete_unheld(staging)
        return staged
    finally:
        if held >= 0:
            os.close(held)
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """No other process looks for folders, takes or deletes one."""
    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _hold(folder: Path) -> int:
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _delete_unheld(staging: Path) -> None:
    """Copies that no living process holds, whole ones and halves."""
    for folder in staging.iterdir():
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)
