"""Items and queries of jobs/bench/recall.py: a mixture of clusters, partitions of Zipf sizes, queries near items."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sidray.retrieval.exact import unit
from sidray.retrieval.index import PartitionedIndex

K = 10
CLUSTERS, SPREAD, DISTANCE = 1000, 0.6, 0.5  # lengths of an item's noise and of a query's
BLOCK = 100_000

Floats = npt.NDArray[np.float32]


def noise(rng: np.random.Generator, count: int, dimension: int, length: float) -> Floats:
    return rng.standard_normal((count, dimension), np.float32) * np.float32(length / dimension**0.5)


def write_items(folder: Path, items: int, dimension: int, partitions: int) -> pa.Table:
    """An item table whose vectors are a memory-mapped file: [items, dimension]."""
    rng = np.random.default_rng(0)
    centres = unit(noise(rng, CLUSTERS, dimension, 1.0))
    vectors = np.lib.format.open_memmap(folder / "raw.npy", mode="w+", dtype=np.float32, shape=(items, dimension))
    for start in range(0, items, BLOCK):
        count = min(BLOCK, items - start)
        vectors[start : start + count] = centres[rng.integers(CLUSTERS, size=count)]
        vectors[start : start + count] += noise(rng, count, dimension, SPREAD)
    shares = 1 / np.arange(1, partitions + 1)
    codes = rng.choice(partitions, items, p=shares / shares.sum())
    names = pa.array([f"p{code:05d}" for code in range(partitions)])
    ids = pc.binary_join_element_wise("i", pc.cast(pa.array(rng.permutation(items)), pa.string()), "")
    sids = pa.ListArray.from_arrays(np.arange(items + 1, dtype=np.int32) * 3, np.zeros(3 * items, np.int32))
    columns = {"item_id": ids, "title": ids, "partition": names.take(pa.array(codes)), "sids": sids}
    flat = pa.Array.from_buffers(pa.float32(), vectors.size, [None, pa.py_buffer(vectors)])
    columns |= {"vector": pa.FixedSizeListArray.from_arrays(flat, dimension), "model_key": pa.repeat("bench", items)}
    return pa.table(columns)


def make_queries(index: PartitionedIndex, count: int, truth: bool = True) -> dict[str, Any]:
    """Vectors [Q, d], the partition of each [Q], and, unless `truth` is false, the true rows [Q, 10], -1 where a
    partition has fewer."""
    rng = np.random.default_rng(1)
    rows = rng.integers(index.manifest.count, size=count)
    offsets = np.array(index.manifest.offsets)
    codes = np.searchsorted(offsets, rows, side="right") - 1
    vectors = unit(index.vectors[rows] + noise(rng, count, index.manifest.dimension, DISTANCE))
    if not truth:
        return {"vectors": vectors, "codes": codes}
    true = np.full((count, K), -1)
    for query in np.argsort(codes, kind="stable"):
        low, high = offsets[codes[query] : codes[query] + 2]
        scores = np.asarray(index.vectors[low:high]) @ vectors[query]
        best = low + np.argsort(-scores, kind="stable")[:K]
        true[query, : len(best)] = best
    return {"vectors": vectors, "codes": codes, "true": true}
