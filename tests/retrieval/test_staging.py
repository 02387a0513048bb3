"""Copies of remote indices: shared while processes hold them, deleted when the next one comes and nobody does."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from sidray import storage
from sidray.errors import UserError
from sidray.retrieval.staging import stage

MANIFEST, FILES = "manifest.json", ["vectors.npy"]


@pytest.fixture(autouse=True)
def remote(monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder stands for a bucket: its files are copied."""
    monkeypatch.setattr(storage, "is_local", lambda uri: False)
    monkeypatch.setattr(storage, "local_copy", _copied)


def _copied(uri: str, folder: str | Path) -> Path:
    target = Path(folder) / Path(uri).name
    target.write_bytes(Path(uri).read_bytes())
    return target


def index(root: Path, number: int) -> str:
    folder = root / f"index-{number}"
    folder.mkdir()
    (folder / "vectors.npy").write_text(f"vectors {number}")
    (folder / MANIFEST).write_text(f"manifest {number}")
    return str(folder)


def test_only_copies_that_are_held_stay(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    held = []
    for number in range(6):
        held = [*held[-1:], stage(index(tmp_path, number), FILES, MANIFEST, staging)]  # as a replica that switches
        gc.collect()
        assert {each.folder for each in held} <= set(staging.iterdir())
        assert len(list(staging.iterdir())) <= 3
    assert (held[-1].folder / "vectors.npy").read_text() == "vectors 5"


def test_a_copy_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = index(tmp_path, 0)
    first = stage(folder, FILES, MANIFEST, tmp_path / "staging")
    monkeypatch.setattr(storage, "local_copy", None)
    assert stage(folder, FILES, MANIFEST, tmp_path / "staging").folder == first.folder


def test_what_another_process_holds_stays_until_it_ends(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    first = stage(index(tmp_path, 0), FILES, MANIFEST, staging).folder
    gc.collect()
    code = f"from sidray.retrieval.staging import _hold; from pathlib import Path; _hold(Path({str(first)!r})); "
    command = [sys.executable, "-c", f"{code}print('held', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        second = stage(index(tmp_path, 1), FILES, MANIFEST, staging)
        assert first.is_dir()
        process.kill()
    third = stage(index(tmp_path, 2), FILES, MANIFEST, staging)
    assert set(staging.iterdir()) == {second.folder, third.folder}


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    folder = index(tmp_path, 0)
    (Path(folder) / "vectors.npy").unlink()
    with pytest.raises(FileNotFoundError):
        stage(folder, FILES, MANIFEST, tmp_path / "staging")
    assert list((tmp_path / "staging").iterdir()) == []
    (Path(folder) / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing"):
        stage(folder, FILES, MANIFEST, tmp_path / "staging")
