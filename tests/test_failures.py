"""What a full disk and an exceeded memory say to the user, and that the same command continues afterwards."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, OutOfMemoryError

from sidray import storage
from sidray.cluster import on_cluster
from sidray.data.quarantine import SCHEMA, Quarantine
from sidray.data.sources.writing import write_parquet
from sidray.datasets import open_dataset, write_dataset
from sidray.errors import MachineError, StorageError, root_user_error
from sidray.failures import failure_of
from sidray.steps import Step, Store, Work

ActorDiedError = type("ActorDiedError", (Exception,), {})  # Ray's takes no text of one's own
NUMBERS = pa.table({"a": np.random.default_rng(0).random(400_000)})  # 3 MB that do not compress


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OutOfMemoryError("2 worker(s) were killed"), r"out of memory: .*2 worker(.|\n)*embedding\.batch_size"),
        (ActorDiedError("The actor died: OOM, killed"), r"out of memory(.|\n)*training\.chunk"),
        (ObjectStoreFullError("8 bytes"), r"out of Ray's object store(.|\n)*embedding\.actors"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), r"out of GPU memory(.|\n)*batch_size"),
        (MemoryError("Unable to allocate 8 GiB"), r"out of memory: Unable to allocate"),
        (OutOfDiskError("too full"), r"the disk is full(.|\n)*/tmp/ray"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), r"the disk is full: /data/x\n(.|\n)*TMPDIR"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), r"the disk is full"),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: HTTP status 503"), r"the storage does not answer"),
    ],
)
def test_what_the_machine_does_is_told(error: Exception, message: str) -> None:
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = error
    found = root_user_error(wrapped)
    assert isinstance(found, MachineError)
    with pytest.raises(MachineError, match=message):
        raise found


@pytest.mark.parametrize("error", [ValueError("bad"), OSError(errno.ENOENT, "no such file"), ActorDiedError("killed")])
def test_anything_else_is_not(error: Exception) -> None:
    assert failure_of(error) is None


def _greedy() -> None:
    raise OutOfMemoryError("1 worker(s) were killed due to the node running low on memory")


@pytest.mark.ray
def test_a_task_without_memory_ends_its_step(ray_session: None, tmp_path: Path) -> None:
    def run(work: Work) -> dict[str, object]:
        on_cluster(_greedy)
        return {}

    with pytest.raises(MachineError, match=r"step a: out of memory: .*\n.*the same command again") as caught:
        Store(str(tmp_path), say=lambda line: None).ensure(Step("a", run, {}, 1))
    assert not isinstance(caught.value, StorageError)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Of 2 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _quarantined(work: Work) -> None:
    with Quarantine(work.path("quarantine"), 0.0) as quarantine:
        for seed in range(12):
            noise = np.random.default_rng(seed).bytes(300_000).hex()
            values = [noise[60 * n : 60 * n + 60] for n in range(10_000)]
            columns = [["file"] * 10_000, range(10_000), values, ["bad"] * 10_000]
            quarantine.add("items", pa.table(columns, names=SCHEMA.names))


WRITERS: dict[str, Callable[[Work], object]] = {
    "bytes": lambda work: storage.write_bytes(work.path("out"), NUMBERS["a"].chunk(0).buffers()[1].to_pybytes()),
    "Lance": lambda work: write_dataset(work.path("rows.lance"), NUMBERS),
    "Parquet": lambda work: write_parquet(NUMBERS, work.path("in/rows.parquet")),
    "quarantine": _quarantined,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_named_and_the_step_continues_when_there_is_space(disk: Path, writer: str) -> None:
    def run(work: Work) -> dict[str, object]:
        WRITERS[writer](work)
        return {}

    store, step = Store(str(disk), say=lambda line: None), Step("a", run, {}, 1)
    with pytest.raises(StorageError, match=rf"step a: cannot write {disk}/.*: No space left.*\n.*free space there"):
        store.ensure(step)
    assert store.manifest(step) is None
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    output = store.ensure(step)
    if writer == "Lance":
        assert open_dataset(f"{output}/rows.lance").count_rows() == NUMBERS.num_rows
