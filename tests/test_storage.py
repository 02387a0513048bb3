"""Paths and URIs, whole-or-nothing writes, and folders of another filesystem (moto's S3) copied to a local one."""

from __future__ import annotations

import datetime
import errno
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from sidray import storage
from sidray.errors import StorageError, UserError


def test_paths_and_uris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.open_uri("a/b")[1] == f"{tmp_path}/a/b"
    assert storage.open_uri(f"file://{tmp_path}/a")[1] == f"{tmp_path}/a"
    assert storage.is_local(f"file://{tmp_path}/a")
    assert storage.absolute("a") == f"{tmp_path}/a"
    with pytest.raises(UserError, match="cannot open ftq://x"):
        storage.open_uri("ftq://x/y")


def test_write_read_list_delete(tmp_path: Path) -> None:
    uri = str(tmp_path / "deep" / "file.json")
    storage.write_json(uri, {"a": "ü"})
    assert storage.read_json(uri) == {"a": "ü"}
    assert storage.list_names(str(tmp_path / "deep")) == ["file.json"]  # no temporary file is left
    assert storage.size_of(str(tmp_path)) == (tmp_path / "deep" / "file.json").stat().st_size
    storage.delete(str(tmp_path / "deep"))
    assert not storage.exists(uri)
    assert storage.list_names(str(tmp_path / "deep")) == []
    storage.delete(uri)  # deleting nothing is no error


def test_threads_may_write_one_file_at_once(tmp_path: Path) -> None:
    uri = str(tmp_path / "lease.json")
    with ThreadPoolExecutor(2) as pool:
        writes = [pool.submit(storage.write_json, uri, {"n": n}) for n in range(400)]
        for write in writes:
            write.result()
            storage.read_json(uri)
    assert storage.list_names(str(tmp_path)) == ["lease.json"]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    uri = str(tmp_path / "pointer.json")
    storage.write_json(uri, {"a": 1})
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()):

        def failing(*_: object, error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(os, fails, failing)
            with pytest.raises((StorageError, KeyboardInterrupt)):
                storage.write_json(uri, {"a": 2})
        assert storage.list_names(str(tmp_path)) == ["pointer.json"]
        assert storage.read_json(uri) == {"a": 1}


def test_a_write_outlives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are on the disk before the name is, and the name when the write returns."""
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def fsync(number: int) -> None:
        sync(number)
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).suffix)

    def rename(source: str, target: str) -> None:
        replace(source, target)
        done.append("renamed")

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    storage.write_bytes(str(tmp_path / "folder" / "pointer.json"), b"{}")
    assert done == [".tmp", "renamed", ""]


def test_a_remote_folder_becomes_a_local_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory filesystem stands for an object store."""
    remote = pafs._MockFileSystem()  # type: ignore[attr-defined]
    remote.create_dir("bucket/run/sub")
    for name in ("a", "sub/b"):
        with remote.open_output_stream(f"bucket/run/{name}") as stream:
            stream.write(name.encode())
    monkeypatch.setattr(storage, "open_uri", lambda uri: (remote, uri.removeprefix("mock://")))
    copied = storage.local_copy("mock://bucket/run", tmp_path)
    assert (copied / "a").read_text() == "a"
    assert (copied / "sub" / "b").read_text() == "sub/b"


REMOTE = """
import sys, pyarrow.fs as pafs
from sidray import storage
remote = pafs.LocalFileSystem()
storage.open_uri = lambda uri: (pafs.SubTreeFileSystem(sys.argv[1], remote), uri.removeprefix("s3://"))
folders = [storage.local_folder("s3://bucket/run") for _ in range(2)]
print(folders[0], folders[0] == folders[1], (folders[0] / "weights").read_text())
"""


def test_a_copy_of_a_remote_folder_goes_with_its_process(tmp_path: Path) -> None:
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    (tmp_path / "bucket" / "run" / "weights").write_text("w")
    (there := tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", REMOTE, str(tmp_path)]
    folder, *told = subprocess.check_output(command, env=os.environ | {"TMPDIR": str(there)}, text=True).split()
    assert Path(folder).is_relative_to(there)
    assert told == ["True", "w"]
    assert list(there.iterdir()) == []
    assert storage.local_folder(str(tmp_path / "bucket")) == tmp_path / "bucket"


@pytest.mark.parametrize(
    "uri",
    ["what://key:secret@bucket/x", "s3://AKIA:sec/ret+secret@bucket/x", "s3://AKIA:secret@bucket", "gs://:secret@b"],
)
def test_a_uri_with_a_secret_is_refused_without_telling_it(uri: str) -> None:
    with pytest.raises(UserError, match=r"cannot open \w+://\.\.\.: .*\n.*AWS_ACCESS_KEY_ID") as raised:
        storage.open_uri(uri)
    assert not re.search("sec|ret|AKIA", raised.value.problem)
    assert raised.value.__cause__ is None


def test_a_uri_with_options_is_refused() -> None:
    """A file below it would have its name behind them."""
    with pytest.raises(UserError, match=r"cannot open s3://bucket/runs: .*\n.*AWS_ENDPOINT_URL, AWS_REGION"):
        storage.open_uri("s3://bucket/runs?region=eu-west-1")


def test_names_that_cannot_be_in_an_object_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"s3://bucket/my runs: ' ' cannot be in the name"):
        storage.check_letters("s3://bucket/my runs")
    storage.check_letters(str(tmp_path / "my runs"))
    for name in ("basic method", "Grün", "a#b"):
        storage.check_letters(f"s3://bucket/{storage.plain(name)}")
    assert storage.plain("dual-tower(a+b)") == "dual-tower(a+b)"
    assert storage.plain("a b") != storage.plain("a#b")


def test_google_cloud_storage_gives_up_after_a_minute_in_every_process() -> None:
    filesystem, path = storage.open_uri("gs://anonymous@bucket/runs/a")
    assert (filesystem.type_name, path) == ("gcs", "bucket/runs/a")
    for each in (filesystem, pickle.loads(pickle.dumps(filesystem))):
        options = each.__reduce__()[1][0]
        assert (options["retry_time_limit"], options["anonymous"]) == (datetime.timedelta(seconds=60), True)
