"""Recall alone at the size of the paper's catalogue, beside other libraries at equal recall, each on one core.

    python jobs/bench/recall.py [--items 5800000] [--rivals flat,ivf,hnswlib,usearch,lancedb,milvus] [--folder F]

Items: a mixture of 1,000 clusters of unit vectors, in partitions of Zipf sizes (exponent 1) that know nothing of the
clusters. A query is an item moved by noise of half its length and asks for the 10 nearest in that item's partition, one
query at a time. FAISS holds all items; the other rivals a subset (--subset), ours on the same subset beside them. Each
rival takes the first of its settings that reaches a recall@10 of .99. "CPU" is the time of the process that asks, which
tells how much of a latency is waiting where the machine has other work. One JSON line; what is known so far goes to
stderr. Needs the extra `bench`, about 9 GiB of disk and, for a rival's copy of the vectors, 4 GiB of memory.
"""

from __future__ import annotations

import argparse
import bisect
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from recall_data import Floats, K, make_queries, write_items
from recall_rivals import RIVALS

from sidray.retrieval.index import PartitionedIndex, build

LEAST = 0.99  # recall@10 that a setting must reach
TUNING = 200  # queries that choose a rival's setting; the timed ones come after them
TIMED_S = 15.0  # a rival is timed for so long, or for all queries
ON_ALL, ON_SUBSET = ("flat", "ivf"), ("hnswlib", "usearch", "usearch-each", "lancedb", "lancedb-flat", "milvus")

Measured = npt.NDArray[np.float64]
Search = Callable[[Floats, int], npt.NDArray[np.int64]]  # (vector [d], its partition) -> rows


def recall(found: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    """The share of the true rows that are among those found."""
    wanted = true[true >= 0]
    return float(np.isin(wanted, found).sum() / len(wanted))


def timed(search: Search, queries: dict[str, Any], first: int, limit_s: float) -> Measured:
    """Seconds, seconds of CPU and recalls [3, n] of single queries from number `first` on, until `limit_s` are over."""
    measured, began = [], time.perf_counter()
    for vector, code, true in zip(*(queries[name][first:] for name in ("vectors", "codes", "true")), strict=True):
        started, cpu = time.perf_counter(), time.process_time()
        found = search(vector, code)
        measured.append((time.perf_counter() - started, time.process_time() - cpu, recall(found, true)))
        if time.perf_counter() - began > limit_s:
            break
    return np.array(measured).T


def figures(measured: Measured) -> dict[str, float]:
    seconds, cpu, recalls = measured
    times = [("p50 ms", seconds, 0.5), ("p99 ms", seconds, 0.99), ("CPU p50 ms", cpu, 0.5), ("CPU p99 ms", cpu, 0.99)]
    line = {"QPS": round(len(seconds) / float(seconds.sum()), 1), "CPU QPS": round(len(cpu) / float(cpu.sum()), 1)}
    line |= {name: round(float(np.quantile(values, share)) * 1e3, 3) for name, values, share in times}
    return line | {"recall@10": round(float(recalls.mean()), 4), "queries": len(seconds)}


def by_partition(measured: Measured, index: PartitionedIndex, queries: dict[str, Any]) -> dict[str, Any]:
    """The figures of all queries, and those of partitions that our index searches exactly and in lists."""
    names = [index.partitions[code] for code in queries["codes"][TUNING:]]
    cut = np.array([name in index.manifest.probes for name in names])[: measured.shape[1]]
    parts = {"exact partitions": measured[:, ~cut], "partitions in lists": measured[:, cut]}
    return figures(measured) | {name: figures(part) for name, part in parts.items() if part.size}


def resident() -> int:
    """Bytes of this process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def drop_pages(folder: str) -> None:
    """Takes the files out of the page cache, so that loading reads the disk."""
    os.sync()
    for path in Path(folder).iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours(folder: str, queries: dict[str, Any]) -> dict[str, Any]:
    drop_pages(folder)
    before, started = resident(), time.perf_counter()
    index = PartitionedIndex.load(folder, threads=1)
    cold_s = time.perf_counter() - started
    names = index.partitions
    search: Search = lambda vector, code: index.search(vector[None], K, [names[code]])[1][0]  # noqa: E731
    timed(search, queries, 0, 600)  # pages and caches are warm
    measured = timed(search, queries, TUNING, 600)
    raw = index.vectors.nbytes
    files = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
    line = by_partition(measured, index, queries)
    line |= {"load s, files not in memory": round(cold_s, 2), "resident / raw": round((resident() - before) / raw, 3)}
    return line | {
        "files but items / raw": round((sum(files.values()) - files["items.arrow"]) / raw, 3),
        "files / raw": round(sum(files.values()) / raw, 3),
    }


def rival(name: str, folder: str, queries: dict[str, Any]) -> dict[str, Any]:
    index = PartitionedIndex.load(folder, threads=1)
    started = time.perf_counter()
    made = RIVALS[name](np.asarray(index.vectors), index.manifest.offsets)
    built_s = time.perf_counter() - started
    tuning = {key: values[:TUNING] for key, values in queries.items()}

    def search_with(setting: int) -> Search:
        return lambda vector, code: made.search(vector, code, K, setting)

    def reaches(setting: int) -> bool:
        return bool(timed(search_with(setting), tuning, 0, TIMED_S)[2].mean() >= LEAST)

    setting = made.settings[min(bisect.bisect_left(made.settings, True, key=reaches), len(made.settings) - 1)]
    line = by_partition(timed(search_with(setting), queries, TUNING, TIMED_S), index, queries)
    return line | {"setting": setting, "build s": round(built_s, 1)}


def apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Runs in a process of its own on one core, so that each begins with nothing in memory; an error is a result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), one_core) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"[:300]}


def one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def measure(folder: Path, options: argparse.Namespace, items: int, rivals: list[str]) -> dict[str, Any]:
    """Builds an index of so many items, then times it and the rivals on the same queries."""
    folder.mkdir(parents=True)
    table = write_items(folder, items, options.dimension, options.partitions)
    started = time.perf_counter()
    manifest = build(table, str(folder / "index"), 1, "bench")
    line: dict[str, Any] = {"items": items, "build s": round(time.perf_counter() - started, 1)}
    del table
    (folder / "raw.npy").unlink()
    line |= {"partitions": len(manifest.partitions), "in lists": len(manifest.probes)}
    queries = make_queries(PartitionedIndex.load(str(folder / "index"), threads=1), TUNING + options.queries)
    line["sidray"] = apart(ours, str(folder / "index"), queries)
    for name in rivals:
        line[name] = apart(rival, name, str(folder / "index"), queries)
        compare(line["sidray"], line[name])
        print(json.dumps(line), file=sys.stderr, flush=True)
    return line


def compare(own: dict[str, Any], other: dict[str, Any]) -> None:
    """Adds how many times as many queries ours answers in a second, and in a second of CPU, to the other's figures."""
    if "QPS" in own and "QPS" in other:
        other["ours / it"] = round(own["QPS"] / other["QPS"], 2)
        other["ours / it, CPU"] = round(own["CPU QPS"] / other["CPU QPS"], 2)
        for part in own.keys() & other.keys() & {"exact partitions", "partitions in lists"}:
            compare(own[part], other[part])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5_800_000)
    parser.add_argument("--subset", type=int, default=500_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--partitions", type=int, default=5000)
    parser.add_argument("--queries", type=int, default=3000)
    parser.add_argument("--rivals", default=",".join(ON_ALL + ON_SUBSET))
    parser.add_argument("--folder", help="where the files go (a temporary folder below it)")
    options = parser.parse_args()
    chosen = [name for name in options.rivals.split(",") if name]
    if unknown := set(chosen) - {*ON_ALL, *ON_SUBSET}:
        parser.error(f"no rival is called {min(unknown)}: {', '.join(ON_ALL + ON_SUBSET)}")
    one_core()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        line = {"bench": "recall", "dimension": options.dimension}
        on_all, on_subset = ([name for name in chosen if name in group] for group in (ON_ALL, ON_SUBSET))
        line["all"] = measure(Path(folder) / "all", options, options.items, on_all)
        if on_subset:
            line["subset"] = measure(Path(folder) / "subset", options, min(options.subset, options.items), on_subset)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
