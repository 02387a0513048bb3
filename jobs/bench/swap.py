"""Searches while a replica swaps to a new generation that another process built: one JSON line.

    python jobs/bench/swap.py [--items 5800000] [--rounds 2] [--folder F]

A collection of the items of recall_data.py, and one Recall, asked in this process at half the rate that 16 tasks reach:
single searches in the partition of a random item. In each round another process appends rows and folds. `before` ends
where that begins, `building` where the pointer changes, `swap` with the first answer from the new generation; `after`
has the next --seconds. Latencies count from the intended times. `--folder` keeps the collection for the next time.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from recall_data import Floats, make_queries, noise, write_items
from service import arrivals, at_times, closed_loop, mean_of, percentiles

from sidray import storage
from sidray.finished import RunFolder
from sidray.recipe import from_values
from sidray.retrieval import index, item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.exact import unit
from sidray.serving.messages import Found, RecallQuery
from sidray.serving.recall import Recall
from sidray.serving.settings import RecallSettings

MODEL_KEY = "bench-0123"  # the recipe's name and the key of the step "embed"
STEPS = {role: f"{role}-0123" for role in ("embed", "table", "index")}
CLIENTS, QUERIES, WRITTEN = 16, 20_000, 1000


def made_run(folder: Path, items: int, dimension: int, partitions: int) -> RunFolder:
    """A run that has an item table and an index, and nothing else; made unless it is there."""
    values = {
        "name": "bench",
        "stages": [{"name": "one", "tasks": {"query2item": 1}}],
        "data": {"source": "tables", "items": "items.parquet"},
    }
    recipe = from_values(values, "bench")[0]
    run = RunFolder(str(folder / "runs" / "bench-1"), recipe.label, recipe, STEPS)
    if (folder / "done").exists():
        return run
    for step in STEPS.values():
        storage.write_json(str(folder / "steps" / step / "manifest.json"), {"attempt": "a"})
    (folder / "steps" / STEPS["table"] / "a").mkdir()
    rows = write_items(folder, items, dimension, partitions)
    rows = rows.set_column(rows.column_names.index("model_key"), "model_key", pa.repeat(MODEL_KEY, items))
    table = storage.join(run.output("table"), "items.lance")
    version = int(item_table.create(table, rows.to_batches(65_536), dimension).version)
    index.build(item_table.indexed(table, version), run.output("index"), version, MODEL_KEY)
    (folder / "raw.npy").unlink()
    Collection.of(run)
    (folder / "done").touch()
    return run


def fold(run: RunFolder, dimension: int, seed: int) -> None:
    """What the other process does."""
    vectors = unit(noise(np.random.default_rng(seed), WRITTEN, dimension, 1.0))
    columns = {
        "item_id": [f"new-{seed}-{n}" for n in range(WRITTEN)],
        "partition": [f"p{n:05d}" for n in range(WRITTEN)],
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dimension),
        "model_key": [MODEL_KEY] * WRITTEN,
    }
    collection = Collection.of(run)
    item_table.append(collection.table, pa.table(columns))
    collection.fold()


def folded_elsewhere(run: RunFolder, dimension: int, seed: int) -> None:
    """At the lowest priority, as if on another machine."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), os.nice, (19,)) as pool:
        pool.submit(fold, run, dimension, seed).result()


@dataclass
class Asked:
    """Searches of a Recall; `generations`: each, and when it answered first."""

    recall: Recall
    queries: Iterator[RecallQuery]
    failed: int = 0
    generations: dict[str, float] = field(default_factory=dict)

    async def one(self) -> None:
        found = await self.recall.search(next(self.queries))
        if not isinstance(found, Found):
            self.failed += 1
        elif found.index.generation not in self.generations:
            self.generations[found.index.generation] = time.perf_counter()

    async def saturated(self, seconds: float) -> float:
        """Searches per second of CLIENTS tasks."""
        return len(await closed_loop(self.one, CLIENTS, seconds)) / seconds


def query(vector: Floats, partition: str) -> RecallQuery:
    return RecallQuery(vector, MODEL_KEY, 10, [partition], [], [], 0)


async def one_round(run: RunFolder, asked: Asked, rate: float, dimension: int, seconds: float, seed: int) -> Any:
    """Percentiles of each part of a round, in ms, and the seconds of the swap."""
    marks = {"before": time.perf_counter()}
    going = True

    def times() -> Iterator[float]:
        return itertools.takewhile(lambda _: going, arrivals(rate))

    load = asyncio.create_task(at_times(asked.one, times()))
    await asyncio.sleep(seconds)
    known = len(asked.generations)
    marks["building"] = time.perf_counter()
    await asyncio.to_thread(folded_elsewhere, run, dimension, seed)
    while len(asked.generations) == known:
        await asyncio.sleep(0.05)
    marks["after"] = list(asked.generations.values())[-1]
    await asyncio.sleep(seconds)
    going = False
    pointer = Path(storage.absolute(Collection.of(run).uri)) / "current.json"
    marks["swap"] = pointer.stat().st_mtime - time.time() + time.perf_counter()
    return parts(await load, marks) | {"swap_s": round(marks["after"] - marks["swap"], 2)}


def parts(measured: list[tuple[float, float]], marks: dict[str, float]) -> dict[str, Any]:
    """The percentiles of the searches that were meant to begin between one mark and the next."""
    meant, took = np.array(measured).T
    names = sorted(marks, key=lambda name: marks[name])
    ends = [*(marks[name] for name in names[1:]), np.inf]
    spans = {name: (meant >= marks[name]) & (meant < end) for name, end in zip(names, ends, strict=True)}
    return {
        name: mean_of([percentiles(took[span])]) | {"searches": int(span.sum())}
        for name, span in spans.items()
        if span.any()
    }


def peak_gib() -> float:
    """Of this process's memory, mapped files included."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 2**20, 2)


async def measure(run: RunFolder, dimension: int, seconds: float, rounds: int) -> dict[str, Any]:
    recall = Recall(run, RecallSettings())
    loaded = index.PartitionedIndex.load(run.output("index"), threads=1)
    made = make_queries(loaded, QUERIES, truth=False)
    queries = [query(*pair) for pair in zip(made["vectors"], np.array(loaded.partitions)[made["codes"]], strict=True)]
    asked = Asked(recall, itertools.cycle(queries))
    del loaded, made
    await asked.saturated(len(queries) / 2000)  # warm
    saturated = await asked.saturated(5)
    seeds = [time.time_ns() + n for n in range(rounds)]
    done = [await one_round(run, asked, saturated / 2, dimension, seconds, seed) for seed in seeds]
    return {
        "saturated searches/s": round(saturated, 1),
        "rounds": done,
        "p99 ratios": [round(each["swap"]["p99_ms"] / each["before"]["p99_ms"], 2) for each in done],
        "failed": asked.failed,
        "peak GiB": peak_gib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5_800_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--partitions", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", help="where the collection stays; else it goes to a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.folder or scratch)
        os.makedirs(folder, exist_ok=True)
        run = made_run(folder, options.items, options.dimension, options.partitions)
        line = asyncio.run(measure(run, options.dimension, options.seconds, options.rounds))
    print(json.dumps({"bench": "swap", "items": options.items, **line}))


if __name__ == "__main__":
    main()
