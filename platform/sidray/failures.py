"""What an error of Ray, of an object store or of the system means to the user: the one place that tells them apart.

failure_of(error)        # a full disk, no memory, a storage that is away -> MachineError; anything else -> None
reason_of(os_error)      # why a file could not be read or written, and the remedy

Light: the errors are known by their text and by the names of their classes, so that Ray is not imported.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile

from sidray.errors import MachineError, StorageError

_LOWER = (
    "lower what is in memory at once: embedding.batch_size or embedding.actors where a catalogue is encoded, a stage's "
    "batch_size or training.chunk (rows at once, from 0 = all) where it trains; or give the cluster more memory"
)
_OBJECT_STORE = re.compile(r"AWS Error|Generic \S+ error|error sending request|\bBucket '|google::cloud")
_AWAY = "the storage does not answer, or with errors, and all attempts failed"
_REASONS = (
    (
        r"ACCESS_DENIED|ACCESS_KEY_ID|SIGNATURE|TOKEN|CREDENTIALS|AccessDenied|InvalidAccessKeyId|Signature|ExpiredToken"
        r"|InvalidToken|OAuth2|40[13] (Forbidden|Unauthorized)|HTTP status 40[13]",
        "access is denied",
        "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (Google: GOOGLE_APPLICATION_CREDENTIALS), or the role of "
        "the machine, and what they may do there",
    ),
    (
        r"NO_SUCH_BUCKET|NoSuchBucket|Bucket '.*' not found",
        "the bucket does not exist",
        "make the bucket, or mend its name",
    ),
    (
        r"curlCode: [67],",
        "the storage cannot be reached",
        "check the network and AWS_ENDPOINT_URL (for https://, none for AWS's own)",
    ),
    (r"", _AWAY, "wait until it is well"),
)
_DISK = re.compile(r"os error (28|122)\b|No space left|Disk quota exceeded|PytorchStreamWriter failed writing")
_MEMORY = {"OutOfMemoryError": "memory", "ObjectStoreFullError": "Ray's object store", "MemoryError": "memory"}
_DIED = ("ActorDiedError", "ActorUnavailableError", "WorkerCrashedError", "LocalRayletDiedError")
_SHOWN = 300  # characters of an error's own text


def failure_of(error: BaseException) -> MachineError | None:
    """What this one error means, without its causes."""
    text, kind = str(error), type(error).__name__
    if kind in _MEMORY or (kind in _DIED and re.search(r"OOM|out of memory|memory", text)):
        what = "GPU memory" if "CUDA" in text else _MEMORY.get(kind, "memory")
        return MachineError(f"out of {what}: {_first_line(text)}", _LOWER)
    if kind == "OutOfDiskError" or is_full_disk(error):
        where = getattr(error, "filename", None) or _first_line(text)
        remedy = f"free space; temporary files are in {tempfile.gettempdir()} (TMPDIR), Ray's in /tmp/ray"
        return MachineError(f"the disk is full: {where}", remedy)
    if isinstance(error, OSError | ValueError | RuntimeError) and _OBJECT_STORE.search(text):
        reason, remedy = reason_of(error)
        return StorageError(f"{reason}: {_first_line(text)}", remedy)
    return None


def is_full_disk(error: BaseException) -> bool:
    return getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or bool(_DISK.search(str(error)))


def is_unreachable(error: OSError) -> bool:
    """Whether nobody listens at the storage's address, or no such host is known."""
    return "curlCode: 6," in str(error) or "curlCode: 7," in str(error)


def is_away(error: BaseException) -> bool:
    """Whether an object store answered none of all attempts: another file would fare no better."""
    return bool(_OBJECT_STORE.search(str(error))) and reason_of(error)[0] == _AWAY


def reason_of(error: BaseException) -> tuple[str, str]:
    """Why a file could not be read or written, and the remedy ("" where there is none but another place)."""
    text = str(error)
    if is_full_disk(error):
        return os.strerror(errno.ENOSPC), "free space there"
    number = getattr(error, "errno", None)
    if number in {errno.EACCES, errno.EPERM}:
        return os.strerror(number), "allow this user that"
    if isinstance(number, int):
        return os.strerror(number), ""
    if _OBJECT_STORE.search(text):
        return next((reason, remedy) for pattern, reason, remedy in _REASONS if re.search(pattern, text))
    return _first_line(text), ""


def _first_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "no more is known")
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]} ..."
