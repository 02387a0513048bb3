"""The package's metrics apart from Ray: the table, and gauges that are set again."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from sidray import metrics


class Told:
    """In the place of Ray's gauge."""

    def __init__(self) -> None:
        self.values = list[tuple[float, dict[str, str]]]()

    def set(self, value: float, labels: dict[str, str]) -> None:
        self.values.append((value, labels))


def test_a_gauge_is_set_again_while_somebody_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(metrics, "_make", lambda name, kind: told)
    gauge = metrics.gauge("sidray_training_step")
    gauge.set(1, {"stage": "a"})
    gauge.set(2, {"stage": "a"})
    gauge.set(7, {"stage": "b"})
    assert len(told.values) == 3
    metrics._repeat_all()
    assert told.values[3:] == [(2, {"stage": "a"}), (7, {"stage": "b"})]
    del gauge
    metrics._repeat_all()
    assert len(told.values) == 5
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "gauges"] == [True]


def test_metrics_can_be_told_without_ray() -> None:
    program = """from sidray import metrics
metrics.counter("sidray_training_samples").inc(3, {"stage": "a"})
metrics.gauge("sidray_training_loss").set(0.5, {"stage": "a"})
metrics.histogram("sidray_search_recall").observe(1.0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)  # other tests have joined a Ray in this process


def test_a_metric_is_made_as_what_it_is() -> None:
    with pytest.raises(TypeError, match="is a Counter, not a Gauge"):
        metrics.gauge("sidray_training_samples")


@pytest.mark.parametrize("name", metrics.METRICS)
def test_names_say_part_and_unit(name: str) -> None:
    metric = metrics.METRICS[name]
    assert name.startswith(f"sidray_{metric.part}_")
    assert not name.endswith("_total")  # Prometheus adds it
    assert (metric.kind == "Histogram") == bool(metric.bounds)
    assert list(metric.bounds) == sorted(set(metric.bounds))
