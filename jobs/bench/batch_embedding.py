"""`sidray embed` against a bare loop over the same model, on the first items of a table.

    python jobs/bench/batch_embedding.py RUN --items items.parquet --notes 2000

The bare loop reads, decodes, tokenises and encodes in one process with all of torch's threads. `sidray embed` starts
Ray's actors first, which a large catalogue does not feel: its rate is that of the notes beyond the first quarter
(two calls, the difference of their times); the rate of the whole call stands beside it. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from sidray.batch_embed import batch_embed
from sidray.cluster import prepare_environment, ray_cluster
from sidray.embedding.encoded import ServedModel, load_model
from sidray.finished import RunFolder


def bare_seconds(model: ServedModel, items: Path, batch_size: int) -> float:
    started = time.perf_counter()
    for batch in pq.ParquetFile(items).iter_batches(batch_size):
        model.items(batch.to_pylist())
    return time.perf_counter() - started


def embed_seconds(run: RunFolder, items: Path) -> float:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        batch_embed(run, str(items), str(Path(folder) / "out"), max_bad_fraction=0)
    return time.perf_counter() - started


def measure(run: RunFolder, items: str, notes: int, folder: Path) -> dict[str, Any]:
    table = pq.read_table(items).slice(0, notes)
    whole, part = folder / "whole.parquet", folder / "part.parquet"
    pq.write_table(table, whole)
    pq.write_table(table.slice(0, notes // 4), part)
    torch.set_num_threads(os.cpu_count() or 1)
    model = load_model(run)
    size = run.recipe.embedding.batch_size
    bare_seconds(model, part, size)  # warm
    before = bare_seconds(model, whole, size)
    first, all_ = embed_seconds(run, part), embed_seconds(run, whole)
    after = bare_seconds(model, whole, size)
    if all_ <= first:
        raise SystemExit("the start of the actors hides the notes: give more with --notes")
    bare, steady = 2 * notes / (before + after), (notes - notes // 4) / (all_ - first)
    return {
        "bench": "batch embedding",
        "run": run.recipe.name,
        "notes": notes,
        "batch": size,
        "actors": run.recipe.embedding.actors,
        "cpus": os.cpu_count(),
        "bare notes/s": round(bare, 2),
        "sidray notes/s": round(steady, 2),
        "ratio": round(steady / bare, 3),
        "whole call notes/s": round(notes / all_, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--items", required=True)
    parser.add_argument("--notes", type=int, default=2000)
    arguments = parser.parse_args()
    prepare_environment()
    with ray_cluster(), tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(RunFolder.open(arguments.run), arguments.items, arguments.notes, Path(folder))))


if __name__ == "__main__":
    main()
