"""Does the cost of an item, or memory, grow with the catalogue? Small pictures through ingest, encoder, table, index.

    python jobs/bench/scale.py RUN [a.b=c ...] [--sizes 100000 300000 1000000] [--plot FILE.png]

Each size goes with `sidray embed --into-table` into a fresh copy of the run (of a debug recipe: what is measured is all
around the model). a.b=c are overrides of `sidray embed`. Reported: seconds and CPU seconds by phase, those of an item
between one size and the next over those of the smallest, and the peak of resident memory of every kind of process and
of Ray's object store. One JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sidray import storage
from sidray.batch_embed import embed_into_table, with_pool
from sidray.cluster import prepare_environment, ray_cluster
from sidray.finished import RunFolder
from sidray.retrieval.collection import Collection

FILE_ROWS = 20_000
PARTITIONS = 100
PHASES = ("ingest", "embed", "index")
EVERY_S = 1.0
SHOWN = 6  # kinds of process in the plot, the largest ones
WORDS = [
    *("red", "blue", "green", "small", "large", "old", "new", "sweet", "salty", "hot"),
    *("soup", "bread", "noodle", "rice", "cake", "tea", "fish", "egg", "bean", "milk"),
]


def write_items(folder: Path, size: int) -> None:
    """Parquet files of FILE_ROWS items: three words, a partition, a small JPEG of two colours."""
    import ray

    folder.mkdir()
    ray.get(
        [
            ray.remote(_write_file).remote(str(folder), start, min(FILE_ROWS, size - start))
            for start in range(0, size, FILE_ROWS)
        ]
    )


def _write_file(folder: str, start: int, rows: int) -> None:
    random = np.random.default_rng(start)
    colours = random.integers(0, 256, (rows, 2, 3), np.uint8)
    words = random.integers(0, len(WORDS), (rows, 3))
    images = []
    for left, right in colours:
        sink = io.BytesIO()
        Image.fromarray(np.repeat(np.stack([left, right])[None], 16, 0).repeat(8, 1)).save(sink, "JPEG")
        images.append(sink.getvalue())
    table = pa.table(
        {
            "item_id": [f"i{row}" for row in range(start, start + rows)],
            "title": [" ".join(WORDS[n] for n in line) for line in words],
            "partition": [f"p{n}" for n in random.integers(0, PARTITIONS, rows)],
            "image": pa.array(images, pa.binary()),
        }
    )
    pq.write_table(table, f"{folder}/{start:09d}.parquet", row_group_size=2000)


@dataclass(frozen=True)
class Sample:
    """`at` seconds from the start; `cpu_s`: of all processes until then; MiB resident of each kind's largest process,
    and MiB in Ray's object store."""

    at: float
    phase: str
    cpu_s: float
    resident: dict[str, float]
    store: float


class Watch:
    """Samples this process and all below it while the block runs."""

    def __init__(self, collection: Collection) -> None:
        self._work = storage.join(collection.uri, "embed")
        self._seen = ""
        self._cpu: dict[tuple[int, float], float] = {}
        self._stop = threading.Event()
        self.samples: list[Sample] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _phase(self) -> str:
        if storage.exists(storage.join(self._work, "catalogue", "catalogue.json")):
            self._seen = "embed"
        elif self._seen:
            self._seen = "index"
        return self._seen or "ingest"

    def _watch(self) -> None:
        started = time.perf_counter()
        before = self._cpu_seconds()
        while not self._stop.is_set():
            cpu_s = self._cpu_seconds() - before
            resident: dict[str, float] = {}
            for process in _processes():
                kind, mib = _kind(process), _resident(process)
                resident[kind] = max(resident.get(kind, 0), mib)
            self.samples.append(Sample(time.perf_counter() - started, self._phase(), cpu_s, resident, _store_mib()))
            self._stop.wait(EVERY_S)

    def _cpu_seconds(self) -> float:
        """Of all processes that were seen, those that ended included."""
        for process in _processes():
            try:
                times = process.cpu_times()
                self._cpu[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self._cpu.values())


def _processes() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def _kind(process: psutil.Process) -> str:
    try:
        if process.pid == psutil.Process().pid:
            return "driver"
        name = (process.cmdline() or [process.name()])[0]
        actor = name.removeprefix("ray::").split("(")[0].split(".")[0]  # ray::Actor.method, ray::task(name)
        return actor if name.startswith("ray::") else Path(name).name if "/" in name else process.name()
    except psutil.Error:
        return "ended"


def _resident(process: psutil.Process) -> float:
    """MiB, without the object store's, which all processes share."""
    try:
        memory = process.memory_info()
        return float(memory.rss - memory.shared) / 2**20
    except psutil.Error:
        return 0.0


def _store_mib() -> float:
    import ray

    have, left = ray.cluster_resources(), ray.available_resources()
    return float(have.get("object_store_memory", 0) - left.get("object_store_memory", 0)) / 2**20


def phases(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Phase -> its seconds and CPU seconds."""
    found, first = {}, 0
    for name in PHASES:
        last = max((n for n, each in enumerate(samples) if each.phase == name), default=first)
        found[name] = (samples[last].at - samples[first].at, samples[last].cpu_s - samples[first].cpu_s)
        first = last
    return found


def measure(run: RunFolder, size: int, folder: Path) -> tuple[dict[str, Any], list[Sample]]:
    """The figures of one size, and what was sampled."""
    root = folder / "root"
    copied = replace(run, uri=str(root / "runs" / "run"))
    for step in set(run.steps.values()):
        storage.copy(storage.join(run.root, "steps", step), str(root / "steps" / step))
    write_items(folder / "items", size)
    collection = Collection.of(copied)
    watch = Watch(collection)
    with watch.watching():
        done = embed_into_table(copied, str(folder / "items"), max_bad_fraction=0)
    if done["items"] != size or done["kept"]:
        raise SystemExit(f"{done['items']} of {size} items were embedded, {done['kept']} were there before")
    samples, found = watch.samples, phases(watch.samples)
    kinds = {kind for each in samples for kind in each.resident} - {"ended"}
    peaks = {kind: round(max(each.resident.get(kind, 0) for each in samples)) for kind in sorted(kinds)}
    return {
        "items": size,
        "seconds": {name: round(seconds, 1) for name, (seconds, _) in found.items()},
        "cpu seconds": {name: round(seconds, 1) for name, (_, seconds) in found.items()},
        "peak MiB": {kind: mib for kind, mib in peaks.items() if mib >= 50},
        "peak object store MiB": round(max(each.store for each in samples)),
    }, samples


def growth(lines: Sequence[dict[str, Any]], what: str) -> list[float]:
    """Cost of an item between one size and the next over its cost in the smallest."""
    totals = [sum(line[what].values()) for line in lines]
    first = totals[0] / lines[0]["items"]
    sizes = [line["items"] for line in lines]
    steps = zip(pairwise(totals), pairwise(sizes), strict=True)
    return [round((cost[1] - cost[0]) / (size[1] - size[0]) / first, 3) for cost, size in steps]


def plot(path: str, lines: Sequence[dict[str, Any]], samples: Sequence[Sample]) -> None:
    """Left: microseconds of CPU per item and phase by size. Right: memory over the time of the largest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    bottom = np.zeros(len(lines))
    names = [f"{line['items']:,}" for line in lines]
    for phase in PHASES:
        cost = np.array([1e3 * line["cpu seconds"][phase] / line["items"] for line in lines])
        left.bar(names, cost, bottom=bottom, label=phase)
        bottom += cost
    left.set(title="cost of an item", xlabel="items", ylabel="CPU ms")
    left.set_ylim(0, 1.25 * bottom.max())
    left.legend(fontsize=8, ncols=len(PHASES))
    minutes = [each.at / 60 for each in samples]
    peaks = lines[-1]["peak MiB"]
    for kind in sorted(peaks, key=peaks.__getitem__, reverse=True)[:SHOWN]:
        right.plot(minutes, [each.resident.get(kind, np.nan) for each in samples], label=kind)
    right.plot(minutes, [each.store for each in samples], "k--", label="object store")
    for phase in PHASES[1:]:
        start = min((each.at for each in samples if each.phase == phase), default=0.0) / 60
        right.axvline(start, color="grey", linewidth=0.8)
        right.text(start, right.get_ylim()[1], f" {phase}", va="top", fontsize=8)
    right.set(title=f"{lines[-1]['items']:,} items: the largest process of each kind", xlabel="minutes", ylabel="MiB")
    figure.legend(*right.get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--plot")
    arguments = parser.parse_intermixed_args()
    prepare_environment()
    run = with_pool(RunFolder.open(arguments.run), arguments.overrides)
    lines, samples = [], list[Sample]()
    with ray_cluster():
        for size in sorted(arguments.sizes):
            with tempfile.TemporaryDirectory() as folder:
                line, samples = measure(run, size, Path(folder))
            lines.append(line)
            print(json.dumps(line), flush=True)
    growths = {f"{what} of one more item": growth(lines, what) for what in ("seconds", "cpu seconds")}
    print(json.dumps({"bench": "scale", "run": run.recipe.name, "sizes": lines, **growths}))
    if arguments.plot:
        plot(arguments.plot, lines, samples)


if __name__ == "__main__":
    main()
