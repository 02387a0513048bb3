"""What a call of `sidray embed` reads, and what a later one takes up again: without an encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidray import batch_embed as batch_embed_module
from sidray.batch_embed import batch_embed
from sidray.config import load_yaml
from sidray.data import items
from sidray.data.catalogue import Catalogue
from sidray.embedding.attempt import attempt
from sidray.embedding.kept import Kept
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


class Encoder:
    """In place of the pool of actors: two numbers for each item; `kills`: ids of items that it dies of."""

    def __init__(self) -> None:
        self.kills: set[str] = set()
        self.encoded: list[str] = []

    def __call__(self, run: RunFolder, catalogue: Catalogue, rows: Any, kept: Kept) -> Iterator[pa.Table]:
        ids = catalogue.items(rows, ["item_id"])["item_id"].to_pylist()
        places = kept.find(ids, ids)
        died = [item_id in self.kills for item_id in ids]
        self.encoded = [item_id for item_id, place in zip(ids, places, strict=True) if place < 0]
        new = [place < 0 and not dead for place, dead in zip(places, died, strict=True)]
        vectors = [[1.0, 2.0] if each else None for each in new]
        yield pa.table(
            {
                "item_id": ids,
                "vector": pa.array(vectors, pa.list_(pa.float32(), 2)),
                "sids": pa.array([None] * len(ids), pa.list_(pa.int32())),
                "model_key": [run.model_key] * len(ids),
                "content_hash": ids,
                "place": places,
                "refused": pa.array(
                    ["the encoder's process died of it" if dead else None for dead in died], pa.string()
                ),
            }
        )


def test_what_the_machine_refused_is_tried_again_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder()
    monkeypatch.setattr(batch_embed_module, "encode_items", encoder)
    uri, out, run = write(item_rows(5), tmp_path / "items.parquet"), str(tmp_path / "out"), a_run(tmp_path)
    encoder.kills = {"i1", "i3"}
    with pytest.raises(UserError, match=r"2 of 5 items could not be encoded.*died of it(.|\n)*the same command again"):
        batch_embed(run, uri, out)
    encoder.kills = {"i3"}
    with pytest.raises(UserError, match="1 of 5 items could not be encoded"):
        batch_embed(run, uri, out)
    assert encoder.encoded == ["i1", "i3"]
    encoder.kills = set()
    done = batch_embed(run, uri, out)
    assert encoder.encoded == ["i3"]
    assert (done["items"], done["quarantined"]) == (5, {})
    (part,) = (tmp_path / "out" / "items.parquet").iterdir()
    assert pq.read_table(part)["item_id"].to_pylist() == [f"i{n}" for n in range(5)]


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
