"""Checkpoints on one rank: which are kept, which is used, what tears one, and the upload beside the training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from sidray import storage
from sidray.errors import UserError
from sidray.scratch import Scratch
from sidray.training.checkpoint import BEST, MANIFEST, Checkpoints, Made

MADE = Made(world=1, zero_stage=0, batch_size=32)


def checkpoints_at(folder: Path, said: list[str] | None = None, keep: int = 2, made: Made = MADE) -> Checkpoints:
    return Checkpoints(str(folder), keep, made, (said if said is not None else []).append)


def save(checkpoints: Checkpoints, *steps: int, best: int = 0) -> None:
    for step in steps:
        with checkpoints.writing(step) as folder:
            (folder / "engine").mkdir()
            (folder / "engine" / "shard.pt").write_bytes(f"weights of step {step}".encode() * 1000)
            if step == best:
                folder.with_suffix(BEST).write_text(f"towers of step {step}")
    checkpoints.close()


def newest(folder: Path, said: list[str] | None = None) -> int | None:
    """The step of the one that a new group of workers uses; its file is what was saved."""
    with checkpoints_at(folder, said).newest() as found:
        if found is None:
            return None
        step = found.manifest.step
        assert (found.folder / "engine" / "shard.pt").read_text() == f"weights of step {step}" * 1000
        return step


def folders(folder: Path) -> dict[int, Path]:
    return {int(path.name.split("-")[0]): path for path in folder.iterdir() if path.is_dir()}


def test_the_newest_are_kept_and_the_best_towers_as_long_as_one_of_them_has_them(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    checkpoints = checkpoints_at(tmp_path, keep=2)
    save(checkpoints, 3, 6, 9, best=3)
    assert sorted(folders(tmp_path)) == [6, 9]
    assert storage.read_bytes(checkpoints.towers) == b"towers of step 3"
    assert newest(tmp_path) == 9
    after = checkpoints_at(tmp_path, keep=2)
    with after.newest():
        pass
    assert after.towers == checkpoints.towers  # a new group knows them
    save(after, 12, best=12)
    assert storage.read_bytes(after.towers) == b"towers of step 12"
    assert storage.exists(checkpoints.towers)  # what 9 goes back to
    again = checkpoints_at(tmp_path, keep=1)
    save(again, 15, best=15)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["00000015", "00000015"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "harm", "problem"),
    [
        ("engine/shard.pt", Path.unlink, "engine/shard.pt is missing"),
        ("engine/shard.pt", cut, "engine/shard.pt has 16991 bytes of 17000"),
        ("engine/shard.pt", alter, "engine/shard.pt was altered"),
        (MANIFEST, Path.unlink, "it has no manifest: its upload did not end"),
        (MANIFEST, cut, "its manifest cannot be read"),
        (f"../towers{BEST}", Path.unlink, "is missing"),
        (f"../towers{BEST}", alter, "was altered"),
    ],
)
def test_a_torn_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, harm: Callable[[Path], None], problem: str
) -> None:
    save(checkpoints_at(tmp_path, keep=3), 3, 6, 9, best=9)
    found = folders(tmp_path)
    harm(found[9].with_suffix(BEST) if name.startswith("..") else found[9] / name)
    said: list[str] = []
    assert newest(tmp_path, said) == 6
    assert len(said) == 1
    assert f"checkpoint {found[9].name} is torn: " in said[0]
    assert said[0].endswith(f"{problem}; the one before is used")
    for step in (3, 6):
        (found[step] / MANIFEST).unlink()
    assert newest(tmp_path, said) is None
    assert [line.rpartition("; ")[2] for line in said[1:]] == [
        "the one before is used",
        "the one before is used",
        "the stage starts at its beginning",
    ]
    after = checkpoints_at(tmp_path, said)
    with after.newest():
        assert sorted(folders(tmp_path)) == [3, 6, 9]  # a look at them harms nothing
    save(after, 2)
    assert sorted(folders(tmp_path)) == [2]


def test_training_goes_on_during_the_upload_and_its_end_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, upload = threading.Event(), storage.upload

    def slow(local: str | Path, uri: str) -> None:
        assert free.wait(30)
        upload(local, uri)

    monkeypatch.setattr(storage, "upload", slow)
    checkpoints = checkpoints_at(tmp_path)
    with checkpoints.writing(3) as folder:
        (folder / "a").write_text("a")
    assert folders(tmp_path) == {}
    assert (folder / "a").exists()  # until it is uploaded
    ended = threading.Thread(target=checkpoints.close)
    ended.start()
    ended.join(0.2)
    assert ended.is_alive()
    free.set()
    ended.join(30)
    assert sorted(folders(tmp_path)) == [3]
    assert not folder.parent.exists()


def test_an_upload_that_fails_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    checkpoints = checkpoints_at(tmp_path / "file")
    with checkpoints.writing(3) as folder:
        (folder / "a").write_text("a")
    with pytest.raises((UserError, OSError), match="file"):
        checkpoints.close()


def test_a_run_that_computes_otherwise_is_told_so(tmp_path: Path) -> None:
    save(checkpoints_at(tmp_path), 3)
    for other, words in (
        (
            Made(1, 3, 32),
            r"step 3 was made with training.zero_stage 0, and this run has 3(.|\n)*as they were, or delete",
        ),
        (Made(2, 0, 30), r"made with the global batch of 32, and this run has 30"),
    ):
        with pytest.raises(UserError, match=words), checkpoints_at(tmp_path, made=other).newest():
            pass
    with checkpoints_at(tmp_path, made=Made(2, 0, 32)).newest() as found:  # another number of workers may
        assert found is not None


def test_a_manifest_lists_every_file_with_size_and_checksum(tmp_path: Path) -> None:
    save(checkpoints_at(tmp_path), 3)
    manifest = json.loads((folders(tmp_path)[3] / MANIFEST).read_text())
    assert manifest["step"] == 3
    assert manifest["made"] == {"world": 1, "zero_stage": 0, "batch_size": 32}
    assert manifest["files"] == {"engine/shard.pt": [17000, zlib.crc32(b"weights of step 3" * 1000)]}


def test_the_local_copy_of_a_killed_process_is_deleted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    living = Scratch()
    code = "import os; from sidray.scratch import Scratch; Scratch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert len(list(tmp_path.iterdir())) == 4
    checkpoints_at(tmp_path / "out")
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [living.path]
    living.delete()
    assert list(tmp_path.iterdir()) == []


def test_an_object_store_keeps_them_as_a_disk_does(bucket: str) -> None:
    uri = f"{bucket}/checkpoints"
    checkpoints = Checkpoints(uri, 2, MADE, print)
    save(checkpoints, 3, 6, 9, best=3)
    names = [name for name in storage.list_names(uri) if not name.endswith(BEST)]
    assert [name.split("-")[0] for name in names] == ["00000006", "00000009"]
    assert storage.read_bytes(checkpoints.towers) == b"towers of step 3"
    with Checkpoints(uri, 2, MADE, print).newest() as found:
        assert found is not None
        assert (found.folder / "engine" / "shard.pt").read_bytes() == b"weights of step 9" * 1000
    storage.write_bytes(f"{uri}/{names[-1]}/engine/shard.pt", b"weights of step 9")
    said: list[str] = []
    with Checkpoints(uri, 2, MADE, said.append).newest() as found:
        assert found is not None
        assert found.manifest.step == 6
    assert said == [f"checkpoint {names[-1]} is torn: engine/shard.pt has 17 bytes of 17000; the one before is used"]


def test_what_another_rank_has_sent_already_is_not_superfluous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = checkpoints_at(tmp_path, keep=1)
    with checkpoints.writing(1) as folder:
        (folder / "shard.pt").write_bytes(b"mine")
    checkpoints._wait()
    (first,) = (path.name for path in tmp_path.iterdir())
    there: list[str] = []
    upload = storage.upload

    def watched(local: Path, uri: str) -> None:
        there.extend(storage.list_names(uri))
        upload(local, uri)

    monkeypatch.setattr(storage, "upload", watched)
    with checkpoints.writing(2) as folder:
        (folder / "shard.pt").write_bytes(b"mine")
        other = tmp_path / folder.name / "other.pt"
        other.parent.mkdir()
        other.write_bytes(b"of a rank that was faster")
    checkpoints.close()
    assert there == [first, other.parent.name]  # the whole one stays until the next is whole
    assert other.exists()
    assert [path.name for path in tmp_path.iterdir()] == [other.parent.name]
