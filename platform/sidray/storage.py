"""Files on a disk and in object stores: a path, s3://, gs://. A URI is a string; `open_uri` resolves it.

write_json("s3://bucket/runs/a/manifest.json", {"done": True});  read_json(...)

Requests to an object store are repeated here and nowhere else: ours are all idempotent. What still fails is a
StorageError that names the URI; a file that is not there is a FileNotFoundError.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import hashlib
import itertools
import json
import os
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from sidray.errors import StorageError, UserError
from sidray.failures import is_away, is_unreachable, reason_of
from sidray.scratch import Scratch, delete_orphans

ATTEMPTS = 8  # of a request to S3: with random waits of up to 1, 2, 4, ... 20 s between them, some 45 s and at most 71
PROBES = 4  # of the first one, which tells a wrong address or name: 4 s
TIMEOUT_S = 10.0  # without a byte of an answer
GCS_RETRY = datetime.timedelta(seconds=60)  # for which a request to Google's is repeated; by itself 15 minutes
RETRY_S = 20  # for which Lance repeats a request; to list a folder it does so six times
REPEAT_S = 15.0  # for which `repeated` begins anew
_ODD = re.compile(r"""[^!-~]|["#<>?`{}]""")  # what an object store's name may not hold, found by trying all of ASCII
T = TypeVar("T")


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path inside it. Relative local paths are taken from the working directory.

    Raises UserError for a scheme that pyarrow does not know, and for a URI with a secret or with options."""
    try:
        if "://" not in uri:
            return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
        check_place(uri)
        return _remote(uri)
    except UserError:
        raise
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"cannot open {uri}: {error}", "give a path or a URI such as s3://bucket/folder") from error


def check_place(uri: str) -> None:
    """Raises UserError for key:secret@, which would be printed and stored with the URI, and for ?options, behind which
    no file has a name."""
    scheme, _, rest = uri.partition("://")
    place = rest.partition("/")[0]
    if ":" in place and "@" in rest[rest.index(":") :]:
        remedy = "leave it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use the role of the machine"
        raise UserError(f"cannot open {scheme}://...: the URI holds a key or a password", remedy)
    if place and "?" in rest:
        remedy = "set AWS_ENDPOINT_URL, AWS_REGION and the like in the environment instead"
        raise UserError(f"cannot open {uri.partition('?')[0]}: a URI with options (?...) is not opened", remedy)


def _remote(uri: str) -> tuple[pafs.FileSystem, str]:
    """A bucket's filesystem is opened once: opening one asks the network for its region."""
    scheme, _, rest = uri.partition("://")
    place, _, path = rest.partition("/")
    if not place:
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, str(path)
    filesystem, bucket = _bucket(f"{scheme.lower()}://{place}")
    return filesystem, f"{bucket.rstrip('/')}/{path}".rstrip("/")


class _S3(pafs.S3FileSystem):
    """With our retries. pyarrow's pickle loses them: in another process it is opened anew."""

    def __init__(self, uri: str, attempts: int, options: dict[str, Any]) -> None:
        retries = pafs.AwsStandardS3RetryStrategy(max_attempts=attempts)
        super().__init__(retry_strategy=retries, **{**options, "request_timeout": TIMEOUT_S})
        self.uri = uri

    def __reduce__(self) -> Any:
        return _reopened, (self.uri,)


def _reopened(uri: str) -> pafs.FileSystem:
    return _bucket(uri)[0]


@functools.lru_cache(maxsize=16)
def _bucket(uri: str) -> tuple[pafs.FileSystem, str]:
    """Raises StorageError where nobody listens, UserError for a bucket of S3 that does not exist."""
    found, path = pafs.FileSystem.from_uri(uri)
    if found.type_name == "gcs":
        return pafs.GcsFileSystem(**{**found.__reduce__()[1][0], "retry_time_limit": GCS_RETRY}), str(path)
    if not isinstance(found, pafs.S3FileSystem):
        return found, str(path)
    options = {**found.__reduce__()[1][0], "allow_delayed_open": True}  # a small file in one request, not in three
    try:
        info = _S3(uri, PROBES, options).get_file_info(path)
    except OSError as error:
        if is_unreachable(error):
            raise _told(uri, "open", error) from error
    else:
        if info.type == pafs.FileType.NotFound:
            raise UserError(f"cannot open {uri}: the bucket does not exist", "make it, or mend its name")
    return _S3(uri, ATTEMPTS, options), str(path)


def lance_options(uri: str) -> dict[str, str] | None:
    """The `storage_options` of a Lance dataset there: the same patience; all else it takes from the environment.

    Raises UserError as `check_letters` does."""
    if "://" not in uri:
        return None
    check_letters(uri)
    return {"client_max_retries": "100", "client_retry_timeout": str(RETRY_S)}


def check_letters(uri: str) -> None:
    """Raises UserError for a URI of an object store with a space or another letter that Lance spells in its own way
    (%20), so that what it writes is not where everything else looks."""
    if "://" in uri and (odd := _ODD.search(uri)):
        remedy = "choose another one: of Latin letters, digits and . _ ~ = + -"
        raise UserError(f"{uri}: {odd[0]!r} cannot be in the name of a folder in an object store", remedy)


def plain(name: str) -> str:
    """The name itself where `check_letters` lets it pass, else one that it does, and that no other name gets."""
    if not _ODD.search(name):
        return name
    return f"{_ODD.sub('-', name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def is_local(uri: str) -> bool:
    return isinstance(open_uri(uri)[0], pafs.LocalFileSystem)


def absolute(uri: str) -> str:
    """Local paths made absolute, so that workers in other folders find them; other URIs as they are."""
    return open_uri(uri)[1] if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def relative(uri: str, folder: str) -> str:
    """The path of a URI below a folder that holds it."""
    return absolute(uri).removeprefix(absolute(folder)).lstrip("/")


def exists(uri: str) -> bool:
    filesystem, path = open_uri(uri)
    with read_errors(uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_names(uri: str) -> list[str]:
    """The names of the entries directly in the folder, sorted; [] when the folder does not exist."""
    filesystem, path = open_uri(uri)
    with read_errors(uri):
        infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos)


def size_of(uri: str) -> int:
    """Bytes of a file or of all files below a folder."""
    filesystem, path = open_uri(uri)
    with read_errors(uri):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.File:
            return int(info.size)
        infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sum(int(info.size) for info in infos if info.type == pafs.FileType.File)


def _told(uri: str, doing: str, error: OSError) -> StorageError:
    reason, remedy = reason_of(error)
    if doing == "write":
        remedy = f"{remedy}, or choose another folder with runs.root=URI" if remedy else "choose another runs.root=URI"
    return StorageError(f"cannot {doing} {uri}: {reason}", remedy)


@contextmanager
def read_errors(uri: str) -> Iterator[None]:
    """Turns what keeps a file from being read into a StorageError that names it, unless there is no such file."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except OSError as error:
        raise _told(uri, "read", error) from error


@contextmanager
def write_errors(uri: str) -> Iterator[None]:
    """Turns a full disk, a read-only or an unwritable folder into a StorageError that names it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise _told(uri, "write", error) from error


def repeated(work: Callable[[], T]) -> T:
    """Does work again that a library gave up at once although the storage may answer the next time: pyarrow the reading
    of a small file when the error's text is longer than the file, Lance a commit whose connection was lost."""
    until = time.monotonic() + REPEAT_S
    for attempt in itertools.count():
        try:
            return work()
        except OSError as error:
            if not is_away(error) or time.monotonic() > until:
                raise
        time.sleep(random.random() * min(4.0, 0.5 * 2**attempt))
    raise AssertionError


def make_folder(uri: str) -> None:
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        filesystem.create_dir(path, recursive=True)


def delete(uri: str) -> None:
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        info = filesystem.get_file_info(path)
        if info.type == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif info.type == pafs.FileType.File:
            filesystem.delete_file(path)


def read_bytes(uri: str) -> bytes:
    filesystem, path = open_uri(uri)

    def read() -> bytes:
        with filesystem.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())

    with read_errors(uri):
        return repeated(read)


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing, and so that it outlives a power cut: locally through a rename, elsewhere object
    stores do so themselves."""
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            _write_local(path, data)
            return
        with filesystem.open_output_stream(path, compression=None) as stream:
            stream.write(data)


def _write_local(path: str, data: bytes) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    target = f"{path}.{uuid.uuid4().hex}.tmp"  # threads too may write it at once
    try:
        with open(target, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(target, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(target)
        raise
    with suppress(OSError):  # not every mounted filesystem takes it of a folder
        _sync_folder(folder)


def _sync_folder(path: str) -> None:
    """Makes the names in it durable."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_json(uri: str) -> Any:
    """ValueError for what is no JSON. pyarrow asks for an object's size, then for its bytes: of one that is replaced in
    between it gives some too few or too many, so it is read again."""
    for _ in range(2):
        with suppress(ValueError):
            return json.loads(read_bytes(uri))
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def upload(local: str | Path, uri: str) -> None:
    """Copies a local file or folder to the URI."""
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        filesystem.create_dir(path if os.path.isdir(local) else os.path.dirname(path), recursive=True)
        pafs.copy_files(str(local), path, pafs.LocalFileSystem(), filesystem)


@contextmanager
def local_folder_for(uri: str) -> Iterator[Path]:
    """A local folder to write into: the URI's own, or one that is uploaded when the block ends well."""
    with write_errors(uri):
        if is_local(uri):
            folder = Path(absolute(uri))
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            upload(scratch, uri)


def copy(source: str, target: str) -> None:
    """Copies a file or a folder from one URI to another."""
    filesystem, path = open_uri(target)
    source_filesystem, source_path = open_uri(source)
    folder = source_filesystem.get_file_info(source_path).type == pafs.FileType.Directory
    with write_errors(target):
        filesystem.create_dir(path if folder else os.path.dirname(path), recursive=True)
        repeated(lambda: pafs.copy_files(source_path, path, source_filesystem, filesystem))


def local_copy(uri: str, folder: str | Path) -> Path:
    """A local path with the content of the URI: the path itself when it is local, else a copy inside `folder`."""
    filesystem, path = open_uri(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    target = Path(folder) / os.path.basename(path)
    with read_errors(uri):
        if filesystem.get_file_info(path).type == pafs.FileType.Directory:
            target.mkdir(parents=True, exist_ok=True)
        repeated(lambda: pafs.copy_files(path, str(target), filesystem, pafs.LocalFileSystem()))
    return target


@functools.lru_cache(maxsize=64)
def local_folder(uri: str) -> Path:
    """`local_copy` kept for the life of the process: many readers of one immutable step output share it."""
    if is_local(uri):
        return local_copy(uri, "")
    delete_orphans()
    scratch = Scratch()
    atexit.register(scratch.delete)
    return local_copy(uri, scratch.path)
