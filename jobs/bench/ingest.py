"""Ingest of an item table (validated, test-decoded, written to Lance) against Pillow's bare two-process decoding.

    python jobs/bench/ingest.py --items FOLDER [--rows 5000] [--copies 10]

The rows are ingested once and then `copies` times under new ids: the rate is that of the rows between the two, so that
start-up does not count, and the two peaks of memory show whether it grows with the catalogue. One JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from PIL import Image

from sidray.cluster import prepare_environment, ray_cluster

PROCESSES = 2


def decode(images: list[bytes]) -> int:
    for data in images:
        Image.open(io.BytesIO(data)).convert("RGB").load()
    return len(images)


def bare_rate(images: list[bytes]) -> float:
    """Pictures decoded per second by two processes, started before the clock."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(PROCESSES) as pool:
        pool.map(decode, [images[:2], images[:2]])
        started = time.perf_counter()
        pool.map(decode, [images[start : start + 100] for start in range(0, len(images), 100)], chunksize=1)
        return len(images) / (time.perf_counter() - started)


def write_copies(table: pa.Table, copies: int, path: Path) -> None:
    with pq.ParquetWriter(path, table.schema) as writer:
        for copy in range(copies):
            ids = pa.array([f"{copy}-{item}" for item in table["item_id"].to_pylist()])
            writer.write_table(table.set_column(table.schema.get_field_index("item_id"), "item_id", ids), 1000)


def seconds_of_ingest(table: pa.Table, copies: int, folder: str) -> float:
    from sidray.data.ingest import ingest
    from sidray.data.settings import DataSettings

    items = Path(folder) / f"items-{copies}.parquet"
    write_copies(table, copies, items)
    started = time.perf_counter()
    ingest(DataSettings(source="tables", items=str(items)), f"{folder}/out-{copies}", wanted=None)
    return time.perf_counter() - started


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", required=True)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--copies", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.copies < 2:
        parser.error("--copies must be at least 2: the rate is that of the rows beyond the first copy")
    prepare_environment()
    table = ds.dataset(arguments.items).head(arguments.rows)
    bare = bare_rate(table["image"].to_pylist())
    with tempfile.TemporaryDirectory() as folder, ray_cluster():
        once = seconds_of_ingest(table, 1, folder)
        small = peak_mib()
        many = seconds_of_ingest(table, arguments.copies, folder)
    rate = len(table) * (arguments.copies - 1) / (many - once)
    line = {
        "bench": "ingest",
        "items": len(table) * arguments.copies,
        "seconds": round(many, 1),
        "seconds of one copy": round(once, 1),
        "items/s after the first copy": round(rate, 1),
        "bare decode/s": round(bare, 1),
        "ratio": round(rate / bare, 3),
        "driver peak MiB": round(peak_mib()),
        "driver peak MiB of one copy": round(small),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
