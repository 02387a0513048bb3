"""A finished run's folder without any training: an item table and its index, written where a run keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sidray import storage
from sidray.finished import RunFolder
from sidray.recipe import from_values
from sidray.retrieval import index, item_table

MODEL_KEY = "tiny-0123"  # recipe and the key of the embed step
DIMENSION = 6
PARTITIONS = ("food", "", "toys")
STEPS = {
    role: f"{role}-0123" for role in ("text-weights", "image-weights", "pretrained-towers", "embed", "table", "index")
}


def vectors_of(count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((count, DIMENSION)).astype(np.float32)


def item_rows(count: int) -> pa.RecordBatch:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_of(count).reshape(-1)), DIMENSION)
    return pa.RecordBatch.from_pydict(
        {
            "item_id": [f"i{n:03d}" for n in range(count)],
            "title": [f"title {n}" for n in range(count)],
            "partition": [PARTITIONS[n % 3] for n in range(count)],
            "vector": vectors,
            "model_key": [MODEL_KEY] * count,
            "sids": pa.array([[n, n + 1] for n in range(count)], pa.list_(pa.int32())),
            "shop": [None if n % 4 == 0 else f"shop {n}" for n in range(count)],
        }
    )


def tiny_run(root: Path, count: int = 40) -> RunFolder:
    """`count` items of random vectors, in three partitions (one of them ""), with one text field."""
    values = {
        "name": "tiny",
        "stages": [{"name": "one", "tasks": {"query2item": 1}}],
        "data": {"source": "tables", "items": "items.parquet", "text_fields": ["shop"]},
    }
    recipe = from_values(values, "tiny")[0]
    for folder in STEPS.values():
        storage.write_json(str(root / "steps" / folder / "manifest.json"), {"attempt": "a"})
    table = str(root / "steps" / STEPS["table"] / "a" / "items.lance")
    version = int(item_table.create(table, [item_rows(count)], DIMENSION, ["shop"]).version)
    folder = str(root / "steps" / STEPS["index"] / "a")
    index.build(item_table.indexed(table, version), folder, version, MODEL_KEY)
    return RunFolder(str(root / "runs" / "tiny-1"), recipe.label, recipe, STEPS)
