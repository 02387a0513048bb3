"""What this package tells Ray's metrics, in one table.

    loss = gauge("sidray_training_loss");  loss.set(3.4, {"stage": "finetune"})

Prometheus finds a metric as `ray_<name>`, a counter as `ray_<name>_total`; cluster/observability shows them. Without a
running Ray what is told is forgotten. What Ray and Serve export themselves (nodes, requests, replicas, queues) is not
counted here again. Light: Ray is imported with the first metric.
"""

from __future__ import annotations

import functools
import importlib
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Histogram

Kind = Literal["Counter", "Gauge", "Histogram"]
Part = Literal["training", "embedding", "ingest", "embedder", "search", "recall"]
_REPLICAS = frozenset[Part]({"embedder", "search", "recall"})  # Serve adds their application, deployment and replica


@dataclass(frozen=True)
class Metric:
    """`bounds`: the upper ends of a histogram's buckets. Ray counts an observation into the sum as the middle of its
    bucket, and as twice the last bound when it is above that."""

    part: Part
    kind: Kind
    about: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


_STAGE, _STEP, _LANE = ("stage",), ("step",), ("lane",)
_SHARES = (*(n / 100 for n in range(5, 100, 10)), 0.975, 0.985, 0.995, 1.005)  # middles at .1, .2 to .9, .98, .99, 1
_WAITS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
METRICS = {
    "sidray_training_samples": Metric("training", "Counter", "samples that a worker trained on", _STAGE),
    "sidray_training_data_wait_seconds": Metric("training", "Counter", "seconds a worker waited for batches", _STAGE),
    "sidray_training_loss": Metric("training", "Gauge", "loss of the last step, mean over the workers", _STAGE),
    "sidray_training_step": Metric("training", "Gauge", "steps of the stage that are done", _STAGE),
    "sidray_training_steps": Metric("training", "Gauge", "steps of the whole stage", _STAGE),
    "sidray_embedding_items": Metric("embedding", "Counter", "rows that came out of the encoders", _STEP),
    "sidray_embedding_backlog": Metric("embedding", "Gauge", "rows left to encode, 0 when the step ends", _STEP),
    "sidray_ingest_quarantined_rows": Metric("ingest", "Counter", "bad rows put aside", ("table",)),
    "sidray_embedder_rows": Metric("embedder", "Counter", "rows through the model", _LANE),
    "sidray_embedder_batches": Metric("embedder", "Counter", "batches through the model", _LANE),
    "sidray_embedder_busy_ms": Metric("embedder", "Counter", "milliseconds in the model thread", _LANE),
    "sidray_embedder_tokens": Metric("embedder", "Counter", "tokens of texts", _LANE),
    "sidray_embedder_padded_tokens": Metric("embedder", "Counter", "the same with padding", _LANE),
    "sidray_search_recall": Metric(
        "search", "Histogram", "share of the exact answer that a search found", bounds=_SHARES
    ),
    "sidray_recall_visible_after_seconds": Metric(
        "recall", "Histogram", "seconds from a commit until a replica finds it", bounds=_WAITS_S
    ),
    "sidray_recall_last_look_timestamp_seconds": Metric(
        "recall", "Gauge", "when a replica last knew all of the item table, seconds since 1970"
    ),
}


REPEAT_S = 5.0  # Ray drops a gauge that nobody has set for 20 s
_KEPT: weakref.WeakSet[Gauge] = weakref.WeakSet()
_LOCK = threading.Lock()
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Gauge:
    """A gauge of Ray that is set again every few seconds for as long as somebody holds it: what hangs has not gone."""

    def __init__(self, name: str) -> None:
        self._gauge = _make(name, "Gauge")
        self._values: dict[tuple[tuple[str, str], ...], float] = {}
        self._lock = threading.Lock()
        with _LOCK:
            _KEPT.add(self)
        _repeater()

    def set(self, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        with self._lock:
            self._values[tuple(labels.items())] = value
            self._gauge.set(value, dict(labels))

    def repeat(self) -> None:
        with self._lock:
            for labels, value in self._values.items():
                self._gauge.set(value, dict(labels))


@functools.cache
def _repeater() -> threading.Thread:
    """The one thread of this process that sets its gauges again."""
    thread = threading.Thread(target=_repeat_for_ever, name="gauges", daemon=True)
    thread.start()
    return thread


def _repeat_for_ever() -> None:
    while True:
        time.sleep(REPEAT_S)
        _repeat_all()


def _repeat_all() -> None:
    with _LOCK:
        kept = list(_KEPT)
    for each in kept:
        each.repeat()


def counter(name: str) -> Counter:
    found: Counter = _make(name, "Counter")
    return found


def gauge(name: str) -> Gauge:
    return Gauge(name)


def histogram(name: str) -> Histogram:
    found: Histogram = _make(name, "Histogram", boundaries=list(METRICS[name].bounds))
    return found


def _make(name: str, kind: Kind, **options: Any) -> Any:
    metric = METRICS[name]
    if metric.kind != kind:
        raise TypeError(f"{name} is a {metric.kind}, not a {kind}")
    module = importlib.import_module("ray.serve.metrics" if metric.part in _REPLICAS else "ray.util.metrics")
    return getattr(module, kind)(name, description=metric.about, tag_keys=metric.labels, **options)
