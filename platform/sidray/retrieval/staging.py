"""The files of an index on the machine that reads them: copied there once, and checked.

folder = stage("s3://bucket/index", ["vectors.npy"], "manifest.json", Path("/tmp/sidray-index"))
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sidray import storage
from sidray.errors import UserError

_READ = 2**23  # bytes hashed at once


def sha256(path: Path) -> str:
    """In large pieces: between two of them searches in this process wait for the interpreter's lock."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_READ))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def stage(folder: str, files: Sequence[str], manifest: str, staging: Path) -> Path:
    """The local folder of an index. A remote one is copied under the hash of its manifest and appears there at once
    or not at all, so that processes which load it together do not see half of it.

    Raises UserError where there is no manifest."""
    if storage.is_local(folder):
        return Path(storage.absolute(folder))
    source = storage.join(folder, manifest)
    if not storage.exists(source):
        raise UserError(f"there is no index in {folder}: {manifest} is missing", "build it with the index step")
    final = staging / hashlib.sha256(storage.read_bytes(source)).hexdigest()[:32]
    if not final.is_dir():
        staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=staging) as scratch:
            whole = Path(scratch) / "whole"
            whole.mkdir()
            for name in (*files, manifest):
                storage.local_copy(storage.join(folder, name), whole)
            try:
                os.replace(whole, final)
            except OSError:
                if not final.is_dir():  # unless another process was first
                    raise
    return final
