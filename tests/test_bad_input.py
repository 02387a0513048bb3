"""A user's mistakes at the command line: a message that names the place and the remedy, exit code 2, no traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sidray.cli import main


def picture() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(out, "PNG")
    return out.getvalue()


def write(
    folder: Path, items: dict[str, list[object]] | None = None, clicks: dict[str, list[object]] | None = None
) -> str:
    """A user's recipe on tables that are right but for what the test changes."""
    good_items: dict[str, list[object]] = {
        "item_id": [str(n) for n in range(40)],
        "title": [f"dish {n}" for n in range(40)],
        "image": [picture()] * 40,
        "partition": ["north", "south"] * 20,
    }
    good_clicks: dict[str, list[object]] = {
        "query": [f"dish {n}" for n in range(40)],
        "item_id": [str(n) for n in range(40)],
        "split": (["train"] * 3 + ["test"]) * 10,
    }
    for name, good, changes in (("items", good_items, items), ("clicks", good_clicks, clicks)):
        columns = {k: v for k, v in {**good, **(changes or {})}.items() if v is not None}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
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
    ("items", "clicks", "message"),
    [
        ({"title": None}, None, "title"),
        ({"item_id": list(range(40))}, None, "item_id"),
        ({"item_id": [], "title": [], "image": [], "partition": []}, {"query": [], "item_id": [], "split": []}, "item"),
        (None, {"split": ["test"] * 40}, "give clicks the split 'train'"),
        (None, {"item_id": ["unknown"] * 40}, "item_id of no item"),
        ({"image": [b"no picture"] * 40}, None, "image"),
        ({"item_id": ["same"] * 40}, None, "duplicate item_id"),
        ({"image": None}, None, "stage image2text learns from pictures, and no item of the catalogue has one"),
    ],
    ids=[
        "missing column",
        "wrong type",
        "empty",
        "no train split",
        "unknown item",
        "corrupt pictures",
        "duplicate ids",
        "no pictures",
    ],
)
def test_bad_tables(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], items: object, clicks: object, message: str
) -> None:
    recipe = write(tmp_path, items, clicks)  # type: ignore[arg-type]
    assert message in fails(capsys, "run", recipe)


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
    bomb = tmp_path / "bomb.png"
    Image.new("L", (10_000, 8_000)).save(bomb)
    shown = fails(capsys, "search", debug_run, "--image", str(bomb))
    assert "bomb.png" in shown
    assert "more than 50,000,000 pixels" in shown
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    assert "animated" in fails(capsys, "search", debug_run, "--image", str(tmp_path / "moving.webp"))
    assert "cannot read picture" in fails(capsys, "search", debug_run, "--image", "nowhere.png")
    assert "no variant 'dual'" in fails(capsys, "search", debug_run, "cat", "--variant", "dual")


def test_the_command_itself(tmp_path: Path) -> None:
    """The installed entry point: help, and exit code 2 from a real process."""
    run = [sys.executable, "-m", "sidray.cli"]
    assert "search" in subprocess.run([*run, "--help"], capture_output=True, text=True, check=True).stdout
    bad = subprocess.run([*run, "run", "nonsense"], capture_output=True, text=True, check=False, env=dict(os.environ))
    assert bad.returncode == 2
    assert "no recipe is called 'nonsense'" in bad.stderr
    assert "Traceback" not in bad.stderr
