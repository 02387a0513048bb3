"""Our arm of batch embedding: `sidray embed` over an item table, less the start of Ray and of the actors.

python sidray_embedding.py RUN --items items.parquet --first 64 --vectors OUT.npy

Two calls, over a quarter of the items and over all; the rate is that of the items beyond the quarter. The rate of the
whole call stands beside it. One JSON line, and the vectors of the first items.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from sidray.batch_embed import batch_embed
from sidray.cluster import prepare_environment, ray_cluster
from sidray.finished import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--items", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--vectors", required=True)
    given = parser.parse_args()
    prepare_environment()
    run, items = RunFolder.open(given.run), pq.read_table(given.items)
    with ray_cluster(), tempfile.TemporaryDirectory() as folder:
        took = []
        for name, count in (("part", len(items) // 4), ("whole", len(items))):
            source = Path(folder) / f"{name}.parquet"
            pq.write_table(items.slice(0, count), source)
            started = time.perf_counter()
            batch_embed(run, str(source), f"{folder}/{name}", max_bad_fraction=0)
            took.append(time.perf_counter() - started)
        vectors = pq.read_table(f"{folder}/whole/items.parquet")["vector"].slice(0, given.first).to_pylist()
    np.save(given.vectors, np.array(vectors, np.float32))
    if took[1] <= took[0]:
        raise SystemExit("the start of the actors hides the items: give more")
    steady = (len(items) - len(items) // 4) / (took[1] - took[0])
    print(json.dumps({"items/s": steady, "whole items/s": len(items) / took[1]}))


if __name__ == "__main__":
    main()
