"""Several exporters' pages as one."""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sidray.serving.metrics import joined, relay
from tests.client.servers import under_uvicorn
from tests.serving.fakes import FakeBackend, client_of

ONE = """# HELP ray_a of a
# TYPE ray_a counter
ray_a{node="1"} 1
# HELP ray_b of b
# TYPE ray_b histogram
ray_b_bucket{le="1",node="1"} 2
ray_b_count{node="1"} 2
"""
TWO = ONE.replace('node="1"', 'node="2"').replace("ray_b", "ray_c")


def test_each_metric_has_one_head_before_all_of_its_samples() -> None:
    assert joined([ONE, "", TWO]).splitlines() == [
        "# HELP ray_a of a",
        "# TYPE ray_a counter",
        'ray_a{node="1"} 1',
        'ray_a{node="2"} 1',
        "# HELP ray_b of b",
        "# TYPE ray_b histogram",
        'ray_b_bucket{le="1",node="1"} 2',
        'ray_b_count{node="1"} 2',
        "# HELP ray_c of b",
        "# TYPE ray_c histogram",
        'ray_c_bucket{le="1",node="2"} 2',
        'ray_c_count{node="2"} 2',
    ]


async def test_a_node_that_does_not_answer_is_left_out() -> None:
    async def exporter(scope: Scope, receive: Receive, send: Send) -> None:
        status = 200 if scope["path"] == "/metrics" else 500
        await PlainTextResponse(ONE, status)(scope, receive, send)

    with under_uvicorn(exporter) as url:
        assert await relay([f"{url}/metrics", f"{url}/broken", "http://127.0.0.1:9/metrics"]) == ONE
    assert await relay([]) == ""


async def test_the_route() -> None:
    async with client_of(FakeBackend()) as client:
        answer = await client.get("/metrics")
    assert (answer.text, answer.headers["content-type"].split(";")[0]) == ("up 1\n", "text/plain")
