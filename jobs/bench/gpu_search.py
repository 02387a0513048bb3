"""Exact search on a GPU (retrieval/torch_index.py) beside the same search by FAISS on the CPU: queries per second.

    python jobs/bench/gpu_search.py [--items 1000000] [--dimension 128] [--seconds 3]

Items and queries are those of recall.py, no partition is cut into lists: both searches are exact and must find the same
items, but for equal scores. A batch asks the whole catalogue or its largest partition for 10 items. FAISS has all
cores. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recall_data import Floats, K, make_queries, write_items

from sidray.retrieval.index import PartitionedIndex, build
from sidray.retrieval.torch_index import TorchIndex

PARTITIONS = 100
BATCHES = (1, 32, 1024)


def rate(index: PartitionedIndex, queries: Floats, batch: int, partitions: list[str] | None, seconds: float) -> float:
    index.search(queries[:batch], K, partitions)  # warm
    asked, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        start = asked % max(1, len(queries) - batch + 1)
        index.search(queries[start : start + batch], K, partitions)
        asked += batch
    return asked / passed


def agreement(one: PartitionedIndex, other: PartitionedIndex, queries: Floats) -> float:
    """The share of found items that both have."""
    rows, there = (index.search(queries, K)[1] for index in (one, other))
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(rows.tolist(), there.tolist(), strict=True)]))


def measure(items: int, dimension: int, seconds: float, folder: Path) -> dict[str, Any]:
    build(write_items(folder, items, dimension, PARTITIONS), str(folder / "index"), 1, "bench", ivf_above=items)
    on_cpu = PartitionedIndex.load(str(folder / "index"), threads=os.cpu_count() or 1)
    on_gpu = TorchIndex.load(str(folder / "index"), threads=1)
    queries = make_queries(on_cpu, max(BATCHES), truth=False)["vectors"]
    spans = {"all": None, "largest partition": [on_cpu.partitions[int(np.argmax(np.diff(on_cpu.manifest.offsets)))]]}
    rates: dict[str, dict[str, Any]] = {}
    for span, partitions in spans.items():
        for batch in BATCHES:
            gpu, cpu = (rate(index, queries, batch, partitions, seconds) for index in (on_gpu, on_cpu))
            rates[f"{span}, batches of {batch}"] = {
                "GPU queries/s": round(gpu, 1),
                "CPU queries/s": round(cpu, 1),
                "ratio": round(gpu / cpu, 2),
            }
    return {
        "bench": "gpu search",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "cores": os.cpu_count(),
        "items": items,
        "dimension": dimension,
        "found by both": round(agreement(on_cpu, on_gpu, queries[:256]), 4),
        "rates": rates,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(arguments.items, arguments.dimension, arguments.seconds, Path(folder))))


if __name__ == "__main__":
    main()
