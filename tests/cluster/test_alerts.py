"""Prometheus itself reads the alert rules and the dashboard's expressions, and the alerts fire when they should."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.test_observability import FOLDER, expressions

Series = dict[str, str]
EDGES = ("100", "500", "1000", "+Inf")  # ms; some of those of Serve
SLOW = 'ray_serve_deployment_processing_latency_ms_bucket{{deployment="Gateway",route="/v1/search",le="{}"}}'
TARGET = 'ray_serve_autoscaling_target_replicas{application="shop",deployment="Recall"}'
HEALTHY = 'ray_serve_deployment_replica_healthy{application="shop",deployment="Recall",replica="a"}'
OF_STAGE = '{stage="query2item",WorkerId="w"}'
# Alert -> series by the minute while it fires, and while it does not. "a+bxn": a, then b more for n times.
SCENES: dict[str, tuple[Series, Series]] = {
    "SidrayErrors": (
        {
            'ray_serve_num_http_requests_total{status_code="200"}': "0+97x30",
            'ray_serve_num_http_requests_total{status_code="503"}': "0+3x30",
        },
        {
            'ray_serve_num_http_requests_total{status_code="404"}': "0+100x30",
            'ray_serve_num_http_requests_total{status_code="500"}': "0+0x30",
        },
    ),
    "SidraySearchSlow": (
        dict(zip(map(SLOW.format, EDGES), ("0+90x30", "0+95x30", "0+100x30", "0+100x30"), strict=True)),
        dict(zip(map(SLOW.format, EDGES), ("0+90x30", "0+100x30", "0+100x30", "0+100x30"), strict=True)),
    ),
    "SidrayReplicasMissing": ({TARGET: "2+0x30", HEALTHY: "1+0x30"}, {TARGET: "1+0x30", HEALTHY: "1+0x30"}),
    "SidrayTrainingStalled": (
        {
            f"ray_sidray_training_steps{OF_STAGE}": "100+0x30",
            f"ray_sidray_training_step{OF_STAGE}": "40+0x30",
            f"ray_sidray_training_samples_total{OF_STAGE}": "4000+0x30",
        },
        {
            f"ray_sidray_training_steps{OF_STAGE}": "100+0x30",
            f"ray_sidray_training_step{OF_STAGE}": "40+1x30",
            f"ray_sidray_training_samples_total{OF_STAGE}": "4000+100x30",
        },
    ),
    "RayHeadDown": (  # of one cluster, while another has its head
        {
            'ray_node_cpu_count{ray_io_cluster="a",IsHeadNode="false"}': "8+0x30",
            'ray_node_cpu_count{ray_io_cluster="b",IsHeadNode="true"}': "8+0x30",
        },
        {'ray_node_cpu_count{ray_io_cluster="b",IsHeadNode="true"}': "8+0x30"},
    ),
}


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool")
    done = subprocess.run(["promtool", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(FOLDER / "alerts.yaml"))


def test_prometheus_takes_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    shown = [expression.replace("$__rate_interval", "5m") for expression in expressions()]
    rules = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(shown)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "panels.yaml"))


@pytest.mark.parametrize("fires", [True, False])
@pytest.mark.parametrize("name", SCENES)
def test_an_alert_fires_when_it_should(name: str, fires: bool, tmp_path: Path) -> None:
    series = [{"series": each, "values": values} for each, values in SCENES[name][0 if fires else 1].items()]
    expression = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
    expected: list[dict[str, Any]] = [{"labels": "{}", "value": int(fires)}]
    scene = {
        "rule_files": [str(FOLDER / "alerts.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [{"expr": expression, "eval_time": "25m", "exp_samples": expected}],
            }
        ],
    }
    (tmp_path / "scene.yaml").write_text(yaml.safe_dump(scene))
    promtool("test", "rules", str(tmp_path / "scene.yaml"))
