"""What a call of `sidray embed` reads, and what a later one takes up again: without an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidray.config import load_yaml
from sidray.data import items
from sidray.embedding.attempt import attempt
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.recipe import from_values
from tests.data.conftest import blocks_in_this_process
from tests.data.makers import item_rows, write


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_checked_blocks", blocks_in_this_process)


def a_run(folder: Path, **data: Any) -> RunFolder:
    tables = {"source": "tables", "items": "unused", **data}
    recipe, _, _ = from_values({**load_yaml("smgr-debug"), "data": tables}, "own")
    return RunFolder(str(folder / "runs" / "own"), recipe.label, recipe, {"embed": "embed-1"})


def test_only_the_renamed_columns_of_items_are_looked_for(tmp_path: Path) -> None:
    """The run's clicks had their own names; a picture that would be lost is told."""
    rows = [row | {"picture": row.pop("image")} for row in item_rows(5)]
    uri = write(rows, tmp_path / "items.parquet")
    run = a_run(tmp_path, columns={"image": "picture", "query": "search", "item_id": "clicked"})
    with attempt(run, uri, str(tmp_path / "out"), 0.0) as own:
        assert (own.catalogue.n_items, own.catalogue.n_images) == (5, 5)
    lost = a_run(tmp_path, columns={"image": "pcture"})
    with pytest.raises(UserError, match="no column 'pcture'"), attempt(lost, uri, str(tmp_path / "lost"), 0.0):
        pass
