"""A user's mistakes at the command line: a message that names the place and the remedy, exit code 2, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidray.cli import main
from tests.data.makers import animation, bomb, picture


def write(folder: Path, changes: dict[str, list[object] | None] | None = None) -> str:
    """A user's recipe on tables that are right but for these columns of the items."""
    items: dict[str, list[object] | None] = {
        "item_id": [str(n) for n in range(40)],
        "title": [f"dish {n}" for n in range(40)],
        "image": [picture()] * 40,
        "partition": ["north", "south"] * 20,
    }
    clicks = {
        "query": [f"dish {n}" for n in range(40)],
        "item_id": [str(n) for n in range(40)],
        "split": (["train"] * 3 + ["test"]) * 10,
    }
    items |= changes or {}
    pq.write_table(pa.table({k: v for k, v in items.items() if v is not None}), folder / "items.parquet")
    pq.write_table(pa.table(clicks), folder / "clicks.parquet")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"extends: [smgr, sizes/debug]\nname: own\nruns: {{root: {folder}/runs}}\n"
        f"data: {{source: tables, items: {folder}/items.parquet, clicks: {folder}/clicks.parquet}}\n"
    )
    return str(recipe)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs the command line in this process; the message of an exit with code 2."""
    sys.argv = ["sidray", *arguments]
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr().err
    assert stopped.value.code == 2, shown
    assert "Traceback" not in shown
    return shown


def test_unknown_keys_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = fails(capsys, "run", "smgr-debug", "training.worker=3")
    assert "training.worker: unknown key (did you mean 'workers'?)" in shown
    assert "remedy" in shown
    assert "did you mean 'smgr-debug'" in fails(capsys, "run", "smgr-debgu")
    assert "is no run: it has no recipe.yaml" in fails(capsys, "search", "nowhere", "cat")
    assert "is no run" in fails(capsys, "show", "nowhere")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": None}, "has no column 'title'"),
        ({"image": [b"no picture"] * 40}, "image: not a JPEG, PNG or WebP picture"),
        ({"image": None}, "stage image2text learns from pictures, and no item of the catalogue has one"),
    ],
    ids=["missing column", "corrupt pictures", "no pictures"],
)
def test_bad_tables(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    """What else may be wrong with them is in tests/data."""
    assert message in fails(capsys, "run", write(tmp_path, changes))


@pytest.mark.ray
def test_missing_table_and_unwritable_root(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write(tmp_path)
    assert "nowhere.parquet does not exist" in fails(capsys, "run", recipe, "data.items=nowhere.parquet")
    (tmp_path / "file").write_text("")
    shown = fails(capsys, "run", recipe, f"runs.root={tmp_path}/file")
    assert "cannot write" in shown
    assert "runs.root=URI" in shown


@pytest.mark.ray
def test_searches_that_cannot_be(debug_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'objects'" in fails(capsys, "search", debug_run, "cat", "--partition", "object")
    assert "nothing to search for" in fails(capsys, "search", debug_run)
    (tmp_path / "bomb.png").write_bytes(bomb(10_000, 8_000))
    shown = fails(capsys, "search", debug_run, "--image", str(tmp_path / "bomb.png"))
    assert "bomb.png" in shown
    assert "more than 50,000,000 pixels" in shown
    (tmp_path / "moving.webp").write_bytes(animation("WEBP"))
    assert "animated" in fails(capsys, "search", debug_run, "--image", str(tmp_path / "moving.webp"))
    assert "cannot read picture" in fails(capsys, "search", debug_run, "--image", "nowhere.png")
    assert "no variant 'dual'" in fails(capsys, "search", debug_run, "cat", "--variant", "dual")


def test_the_command_itself() -> None:
    """The installed entry point: help, and exit code 2 from a real process."""
    run = [sys.executable, "-m", "sidray.cli"]
    assert "search" in subprocess.run([*run, "--help"], capture_output=True, text=True, check=True).stdout
    bad = subprocess.run([*run, "run", "nonsense"], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert bad.returncode == 2
    assert "no recipe is called 'nonsense'" in bad.stderr
    assert "Traceback" not in bad.stderr
