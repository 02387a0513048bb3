"""Files on any filesystem that pyarrow opens: a path, s3://, gs://. A URI is a string; `open_uri` resolves it.

write_json("s3://bucket/runs/a/manifest.json", {"done": True});  read_json(...)
"""

from __future__ import annotations

import errno
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs as pafs

from sidray.errors import UserError


def open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem and the path inside it. Relative local paths are taken from the working directory.

    Raises UserError for a scheme that pyarrow does not know."""
    try:
        if "://" not in uri:
            return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri))
        return _remote(uri)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise UserError(f"cannot open {uri}: {error}", "give a path or a URI such as s3://bucket/folder") from error


def _remote(uri: str) -> tuple[pafs.FileSystem, str]:
    """A bucket's filesystem is opened once: opening one asks the network for its region."""
    parts = urlsplit(uri)
    if not parts.netloc:
        filesystem, path = pafs.FileSystem.from_uri(uri)
        return filesystem, str(path)
    filesystem, bucket = _bucket(urlunsplit((parts.scheme, parts.netloc, "", parts.query, "")))
    return filesystem, bucket.rstrip("/") + parts.path.rstrip("/")


@functools.lru_cache(maxsize=16)
def _bucket(uri: str) -> tuple[pafs.FileSystem, str]:
    filesystem, path = pafs.FileSystem.from_uri(uri)
    return filesystem, str(path)


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
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def list_names(uri: str) -> list[str]:
    """The names of the entries directly in the folder, sorted; [] when the folder does not exist."""
    filesystem, path = open_uri(uri)
    infos = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in infos)


def size_of(uri: str) -> int:
    """Bytes of a file or of all files below a folder."""
    filesystem, path = open_uri(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return int(info.size)
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sum(int(info.size) for info in infos if info.type == pafs.FileType.File)


@contextmanager
def write_errors(uri: str) -> Iterator[None]:
    """Turns a full disk, a read-only or an unwritable folder into a UserError that names it."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        remedy = f"{_WRITE_REMEDIES.get(error.errno, '')}choose another folder with runs.root=URI"
        raise UserError(f"cannot write {uri}: {reason}", remedy) from error


_WRITE_REMEDIES: dict[int | None, str] = {
    errno.ENOSPC: "free space there, or ",
    errno.EDQUOT: "free space in your quota, or ",
    errno.EACCES: "allow this user to write there, or ",
    errno.EPERM: "allow this user to write there, or ",
}


def make_folder(uri: str) -> None:
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        filesystem.create_dir(path, recursive=True)


def delete(uri: str) -> None:
    filesystem, path = open_uri(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.Directory:
        filesystem.delete_dir(path)
    elif info.type == pafs.FileType.File:
        filesystem.delete_file(path)


def read_bytes(uri: str) -> bytes:
    filesystem, path = open_uri(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read())


def write_bytes(uri: str, data: bytes) -> None:
    """Writes the whole file or nothing: locally through a rename, elsewhere object stores do so themselves."""
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        filesystem.create_dir(os.path.dirname(path), recursive=True)
        local = isinstance(filesystem, pafs.LocalFileSystem)
        target = f"{path}.{os.getpid()}.tmp" if local else path
        with filesystem.open_output_stream(target, compression=None) as stream:
            stream.write(data)
        if local:
            os.replace(target, path)


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def upload(local: str | Path, uri: str) -> None:
    """Copies a local file or folder to the URI."""
    filesystem, path = open_uri(uri)
    with write_errors(uri):
        filesystem.create_dir(path if os.path.isdir(local) else os.path.dirname(path), recursive=True)
        pafs.copy_files(str(local), path, pafs.LocalFileSystem(), filesystem)


def copy(source: str, target: str) -> None:
    """Copies a file or a folder from one URI to another."""
    filesystem, path = open_uri(target)
    source_filesystem, source_path = open_uri(source)
    folder = source_filesystem.get_file_info(source_path).type == pafs.FileType.Directory
    with write_errors(target):
        filesystem.create_dir(path if folder else os.path.dirname(path), recursive=True)
        pafs.copy_files(source_path, path, source_filesystem, filesystem)


def local_copy(uri: str, folder: str | Path) -> Path:
    """A local path with the content of the URI: the path itself when it is local, else a copy inside `folder`."""
    filesystem, path = open_uri(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        return Path(path)
    target = Path(folder) / os.path.basename(path)
    if filesystem.get_file_info(path).type == pafs.FileType.Directory:
        target.mkdir(parents=True, exist_ok=True)
    pafs.copy_files(path, str(target), filesystem, pafs.LocalFileSystem())
    return target


@functools.lru_cache(maxsize=64)
def local_folder(uri: str) -> Path:
    """`local_copy` kept for the life of the process: many readers of one immutable step output share it."""
    return local_copy(uri, tempfile.mkdtemp(prefix="sidray-"))
