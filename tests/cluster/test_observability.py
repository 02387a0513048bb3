"""The dashboard and the alert rules: each metric that they ask for is one that a running job or service exports."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import yaml

from sidray.cluster import free_port
from sidray.metrics import METRICS, Metric
from tests.cluster.exported import Page, exported_now, told

FOLDER = Path(__file__).resolve().parents[2] / "cluster" / "observability"
README = (FOLDER / "README.md").read_text()
# Words of PromQL that these expressions use; what else is a word in one of them is the name of a metric.
FUNCTIONS = {"rate", "increase", "histogram_quantile", "max_over_time", "absent", "time", "vector"}
WORDS = FUNCTIONS | {"by", "on", "or", "and", "unless", "offset", "sum", "max", "count"}
EXPORTED_S = 120.0  # Ray exports every 10 s, a machine that others use more rarely
OWN = "observed"  # stage and step of these tests, on a Ray that others use, too
ROWS = 50


def panels() -> list[dict[str, Any]]:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]] + [rule["expr"] for rule in rules()]


def names_in(expression: str) -> set[str]:
    """The metrics that an expression names, as Prometheus knows them."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(by|on)\s*\([^)]*\)|\b\d[\w.]*", " ", expression)
    return set(re.findall(r"[A-Za-z_:][\w:]*", bare)) - WORDS


def exported_as(name: str, metric: Metric) -> set[str]:
    ends = {"Counter": ["_total"], "Gauge": [""], "Histogram": ["_bucket", "_sum", "_count"]}
    return {f"ray_{name}{end}" for end in ends[metric.kind]}


def test_the_names_in_an_expression() -> None:
    found = names_in(
        'sum by (le, a) (rate(ray_x_bucket{le="0.95",b=~"y.*"}[5m])) / on (c) ray_z_total offset 15m > 0.5'
    )
    assert found == {"ray_x_bucket", "ray_z_total"}


def test_a_panel_has_a_unit_a_description_and_a_place_of_its_own() -> None:
    board = json.loads((FOLDER / "dashboard.json").read_text())
    assert [each["type"] for each in board["templating"]["list"] if each["name"] == "datasource"] == ["datasource"]
    assert [row["title"] for row in board["panels"] if row["type"] == "row"] == re.findall(
        r"^- \*\*(.+)\*\*", README, re.M
    )
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    places = set[tuple[int, int]]()
    for panel in board["panels"]:
        at = panel["gridPos"]
        own = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not own & places, panel["title"]
        assert at["x"] + at["w"] <= 24
        places |= own
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {"${datasource}"}


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["description"].endswith("."), rule["alert"]
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        kept = {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in group.split(", ")}
        assert used <= kept, rule["alert"]


def cluster_label() -> str:
    """The label that Prometheus, not Ray, gives each metric: of which cluster it is."""
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    (relabeling,) = monitor["spec"]["podMetricsEndpoints"][0]["relabelings"]
    assert relabeling["sourceLabels"] == ["__meta_kubernetes_pod_label_ray_io_cluster"]
    label: str = relabeling["targetLabel"]
    return label


def test_a_lost_head_is_told_of_each_cluster() -> None:
    """Another cluster's head is no reason to be silent."""
    (rule,) = [rule for rule in rules() if rule["alert"] == "RayHeadDown"]
    label, count = cluster_label(), "ray_node_cpu_count"
    everybody = f"count by ({label}) ({count})"
    head = f'unless on ({label}) {count}{{IsHeadNode="true"}}'
    assert rule["expr"] == f"{everybody} {head} or absent({count})"
    assert f"$labels.{label}" in rule["annotations"]["summary"]


def test_what_sidray_exports_is_shown_and_nothing_else_of_that_name_is_asked_for() -> None:
    asked = {name for expression in expressions() for name in names_in(expression) if "sidray" in name}
    own = {name: exported_as(name, metric) for name, metric in METRICS.items()}
    assert asked <= set().union(*own.values())
    assert [name for name, exported in own.items() if not exported & asked] == []


def test_the_readme_has_the_table_of_metrics() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.+) \|$", README, re.M)
    assert rows == [
        (name, metric.kind.lower(), ", ".join(f"`{label}`" for label in metric.labels), metric.about)
        for name, metric in METRICS.items()
    ]


def test_the_alerts_become_a_prometheus_rule_by_the_readmes_command() -> None:
    command = re.search(r"^\{ printf.*?\}(?= \| kubectl)", README, re.M | re.S)
    assert command is not None
    made = subprocess.run(["bash", "-c", command[0]], cwd=FOLDER, check=True, capture_output=True).stdout
    rule = yaml.safe_load(made)
    assert (rule["kind"], rule["spec"]) == ("PrometheusRule", yaml.safe_load((FOLDER / "alerts.yaml").read_text()))
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text())
    assert monitor["metadata"]["labels"] == rule["metadata"]["labels"]


def wanted() -> set[str]:
    """All that the expressions name but the metrics of GPUs, which nobody has here."""
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    gpus = {f"ray_{name}" for name in METRICS_GAUGES if name.startswith(("node_gpu", "node_gram"))}
    return {name for expression in expressions() for name in names_in(expression)} - gpus


class Trainer:
    """A worker of a stage; its gauges last as long as it lives."""

    def train(self) -> None:
        from sidray.training.metrics import StageMetrics

        metrics = StageMetrics(OWN, leads=True)
        metrics.starts(step=0, steps=60)
        for step in (1, 2):
            metrics.stepped(step, samples=8, waited_s=0.5 * step, loss=3.0)


class Gateway:
    """The routes of the service over a backend that answers at once, and the metrics of all replicas."""

    def __init__(self) -> None:
        from sidray.metrics import histogram
        from sidray.serving.metrics import BatchMetrics, FreshnessMetrics

        batches, recalls, freshness = BatchMetrics(), histogram("sidray_search_recall"), FreshnessMetrics()
        batches.computed("queries", rows=3, seconds=0.02)
        batches.padded("queries", [2, 3, 4])
        for recall in (1.0, 1.0, 0.9, 0.8):
            recalls.observe(recall)
        freshness.looked()
        freshness.found(time.time_ns() - 400_000_000)

    def __serve_build_asgi_app__(self) -> Any:
        from tests.serving.fakes import OPEN, FakeBackend, api_of

        return api_of(FakeBackend(), 8, OPEN)


def doubled(rows: Any) -> pa.Table:
    return pa.table({"value": 2 * rows})


@contextmanager
def serving() -> Iterator[None]:
    """The gateway alone, after some searches."""
    from ray import serve

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        deployment = serve.deployment(name="Gateway", ray_actor_options={"num_cpus": 0.5})(serve.ingress()(Gateway))
        serve.run(deployment.bind(), name="sidray", route_prefix="/")
        for _ in range(3):
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/search", json={"query": "soup"})
            assert answer.status_code == 200, answer.text
        yield
    finally:
        serve.shutdown()


def scraped() -> Page:
    """The newest that the exporters have said of each metric, once that is all of it or time is up."""
    page, until = Page(), time.monotonic() + EXPORTED_S
    while True:
        page |= exported_now()
        whole = wanted() <= page.keys() and told(page, "embedding_items_total", step=OWN) == ROWS
        if (whole and told(page, "embedding_backlog", step=OWN) == 0) or time.monotonic() > until:
            return page
        time.sleep(0.5)


@pytest.fixture(scope="module")
def page(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """What Ray exports after a little training, embedding, a bad row and a few requests."""
    import ray

    from sidray.data.quarantine import SCHEMA, Quarantine
    from sidray.embedding.pool import encode_rows
    from sidray.embedding.settings import EmbeddingSettings

    trainer = ray.remote(num_cpus=0.5)(Trainer).remote()
    training = trainer.train.remote()
    with Quarantine(str(tmp_path_factory.mktemp("bad")), 1.0) as quarantine:
        row = {"file": "f", "row": 1, "value": "i", "reason": "duplicate item_id"}
        quarantine.add("items", pa.Table.from_pylist([row], schema=SCHEMA))
    settings = EmbeddingSettings(cpus=0.5, batch_size=10)
    with serving():
        tables = list(encode_rows(OWN, ROWS, lambda: doubled, settings))
        np.testing.assert_array_equal(pa.concat_tables(tables)["value"].to_numpy(), 2 * np.arange(ROWS))
        ray.get(training)
        yield scraped()
    ray.kill(trainer)


@pytest.mark.ray
def test_every_metric_that_an_expression_names_is_exported(page: Page) -> None:
    assert wanted() - page.keys() == set()


@pytest.mark.ray
def test_every_label_that_an_expression_names_is_one_of_its_metrics(page: Page) -> None:
    for expression in expressions():
        samples = [sample for name in names_in(expression) for sample in page.get(name, [])]
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) if samples else []:
            for label in set(group.split(", ")) - {cluster_label()}:
                assert any(label in sample.labels for sample in samples), f"{label} in {expression}"
        for name, selector in re.findall(r"(\w+)\{([^}]*)\}", expression):
            for label, operator, text in re.findall(r'(\w+)(=~|=)"([^"]*)"', selector):
                values = {sample.labels[label] for sample in page[name] if label in sample.labels}
                assert values, f"{name} has no label {label}"
                assert operator == "=~" or text in values, f"{label} of {name} is never {text}: {values}"


@pytest.mark.ray
def test_the_exported_values_are_those_that_were_told(page: Page) -> None:
    assert told(page, "training_samples_total", stage=OWN) == 16
    assert told(page, "training_data_wait_seconds_total", stage=OWN) == 1.0
    assert [told(page, f"training_{name}", stage=OWN) for name in ("step", "steps", "loss")] == [2, 60, 3.0]
    assert told(page, "embedding_items_total", step=OWN) == ROWS
    assert told(page, "embedding_backlog", step=OWN) == 0
    assert told(page, "ingest_quarantined_rows_total", table="items") >= 1
    own = {"deployment": "Gateway"}  # of the service the embedder and recall have these metrics
    assert told(page, "embedder_rows_total", lane="queries", **own) == 3
    assert told(page, "embedder_batches_total", lane="queries", **own) == 1
    assert told(page, "embedder_tokens_total", lane="queries", **own) == 9
    assert told(page, "embedder_padded_tokens_total", lane="queries", **own) == 12
    mean = told(page, "search_recall_sum", **own) / told(page, "search_recall_count", **own)
    assert mean == pytest.approx((1 + 1 + 0.9 + 0.8) / 4, abs=1e-6)
    assert told(page, "recall_visible_after_seconds_bucket", le="0.25", **own) == 0
    assert told(page, "recall_visible_after_seconds_bucket", le="1.0", **own) == 1
    assert 0 <= time.time() - told(page, "recall_last_look_timestamp_seconds", **own) < 300
