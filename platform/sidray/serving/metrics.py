"""What the service's replicas tell Ray's metrics, and /metrics: the exporters of all live nodes as one page.

    batches = BatchMetrics();  batches.computed("queries", rows=2, seconds=0.012)
    text = await relay(exporters())     # Prometheus text

Ray's exporter on each node has the metrics of every process there: the replicas' own, the machine's, and Serve's, which
counts requests and their latency by route and status (serve_num_http_requests, serve_http_request_latency_ms).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence

import aiohttp
import ray

from sidray.metrics import counter, gauge, histogram

_EXPORTER_S = 2.0  # a node that does not answer is left out of the page


class BatchMetrics:
    """Of one embedder replica: rows, how long the model was busy with them, and the padding of texts. May be told from
    several threads."""

    def __init__(self) -> None:
        self._rows = counter("sidray_embedder_rows")
        self._batches = counter("sidray_embedder_batches")
        self._busy = counter("sidray_embedder_busy_ms")
        self._tokens = counter("sidray_embedder_tokens")
        self._padded = counter("sidray_embedder_padded_tokens")

    def computed(self, lane: str, rows: int, seconds: float) -> None:
        self._rows.inc(rows, {"lane": lane})
        self._batches.inc(1, {"lane": lane})
        self._busy.inc(max(1000 * seconds, 1e-6), {"lane": lane})

    def padded(self, lane: str, lengths: Sequence[int]) -> None:
        """Of the texts that one call of the model reads."""
        self._tokens.inc(sum(lengths), {"lane": lane})
        self._padded.inc(max(lengths) * len(lengths), {"lane": lane})


class FreshnessMetrics:
    """Of one recall replica: how soon it knows what was written."""

    def __init__(self) -> None:
        self._visible = histogram("sidray_recall_visible_after_seconds")
        self._looked = gauge("sidray_recall_last_look_timestamp_seconds")
        self._newest = 0

    def looked(self) -> None:
        """It knows all that is in the table now."""
        self._looked.set(time.time())

    def found(self, seq: int) -> None:
        """The newest of the rows that a look brought; their `seq` counts nanoseconds (retrieval/item_table.py). Rows
        may come again, after the table was compacted."""
        if seq > self._newest:
            self._newest = seq
            self._visible.observe(max(0.0, time.time() - seq / 1e9))


def exporters() -> list[str]:
    """The URL of every live node's exporter."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]


async def relay(urls: Sequence[str]) -> str:
    """All pages as one."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_EXPORTER_S)) as session:
        pages = await asyncio.gather(*(_page(session, url) for url in urls))
    return joined(pages)


async def _page(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url) as answer:
            return await answer.text() if answer.status == 200 else ""
    except (TimeoutError, aiohttp.ClientError):
        return ""


def joined(pages: Iterable[str]) -> str:
    """Prometheus text of several pages: each metric's HELP and TYPE once, before all of its samples."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for page in pages:
        name = ""
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                name = line.split(" ", 3)[2]
                if line not in heads.setdefault(name, []):
                    heads[name].append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(name, []).append(line)
    lines = [line for name in samples for line in (*heads.get(name, []), *samples[name])]
    return "\n".join([*lines, ""])
