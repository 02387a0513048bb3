"""Temporary folders on the local disk that a killed process does not leave for ever.

delete_orphans()          # of processes that were killed; a checkpoint is large
scratch = Scratch();  scratch.path;  scratch.delete()
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path

PREFIX = "sidray-scratch-"


class Scratch:
    """An empty folder at `path`. Its lock, a file beside it, is held as long as the process lives."""

    def __init__(self) -> None:
        self._file = (Path(tempfile.gettempdir()) / f"{PREFIX}{uuid.uuid4().hex}.lock").open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.path = Path(self._file.name).with_suffix("")
        self.path.mkdir()

    def delete(self) -> None:
        shutil.rmtree(self.path)
        Path(self._file.name).unlink(missing_ok=True)
        self._file.close()


def delete_orphans() -> None:
    """Deletes the folders of this machine whose processes are gone."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*.lock"):
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
