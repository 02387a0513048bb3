"""What the service counts, through Ray's metrics, and /metrics: the exporters of all live nodes as one page.

    batches = BatchMetrics();  batches.computed("queries", rows=2, seconds=0.012)
    text = await relay(exporters())     # Prometheus text

Ray's exporter on each node has the metrics of every process there: the replicas' own, the machine's, and Serve's, which
counts requests and their latency by route and status (serve_num_http_requests, serve_http_request_latency_ms).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import aiohttp
import ray
from ray.serve.metrics import Counter, Histogram

_SHARES = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999]
_EXPORTER_S = 2.0  # a node that does not answer is left out of the page


class BatchMetrics:
    """Of one embedder replica: rows, how long the model was busy with them, and the padding of texts. May be told from
    several threads."""

    def __init__(self) -> None:
        lanes = ("lane",)
        self._rows = Counter("sidray_embedder_rows", "rows through the model", tag_keys=lanes)
        self._busy = Counter("sidray_embedder_busy_ms", "milliseconds in the model thread", tag_keys=lanes)
        self._tokens = Counter("sidray_embedder_tokens", "tokens of texts", tag_keys=lanes)
        self._padded = Counter("sidray_embedder_padded_tokens", "the same with padding", tag_keys=lanes)

    def computed(self, lane: str, rows: int, seconds: float) -> None:
        self._rows.inc(rows, {"lane": lane})
        self._busy.inc(max(1000 * seconds, 1e-6), {"lane": lane})

    def padded(self, lane: str, lengths: Sequence[int]) -> None:
        """Of the texts that one call of the model reads."""
        self._tokens.inc(sum(lengths), {"lane": lane})
        self._padded.inc(max(lengths) * len(lengths), {"lane": lane})


class RecallMonitor:
    """Of one recall replica: which share of the exact answer its searches find."""

    def __init__(self) -> None:
        about = "share of the exact answer that a search found"
        self._recall = Histogram("sidray_search_recall", about, boundaries=_SHARES)

    def observe(self, recall: float) -> None:
        self._recall.observe(recall)


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
