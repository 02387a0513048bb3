"""Hostile requests to every route: each is answered in the API's shape, none with a 500.

SIDRAY_FUZZ=2000 pytest tests/serving/test_fuzz.py     # `make chaos`
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
from typing import Any
from urllib.parse import quote

import httpx
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from sidray.serving.auth import Keys
from sidray.serving.schemas import ErrorBody
from tests.data.makers import bomb, picture
from tests.serving.fakes import MODEL_KEY, FakeBackend, api_of, client_of, in_base64

CASES = int(os.environ.get("SIDRAY_FUZZ", "200"))
EXPECTED = {200, 202, 400, 404, 405, 413, 415, 422}


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


PNG = in_base64(picture())
HOSTILE: list[Any] = [
    *(in_base64(bomb(side, side)) for side in (60_000, 2**31 - 1, 0)),
    *(PNG[:-7], "data:image/png;base64,", "!!!", PNG),
    *("http://169.254.169.254/latest", "file:///etc/passwd", "data:text/html,<script>"),
    *("x" * 1_000_000, "\x00", "\x1b[31m", "\u202e", "\ud800", "../../etc/passwd", "a\r\nSet-Cookie: b", "%00", ""),
    *(float("nan"), float("inf"), 1e308, -1, 0, 10**400, 2**63, True, None, [], {}, nested(200), [float("nan")] * 4),
]
GOOD: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/search"): {
        **{"query": "soup", "image": PNG, "vector": [1, 0, 0, 0], "partition": "food", "k": 3, "exclude": ["a"]},
        **{"with_fields": ["shop"], "min_table_version": 1},
    },
    ("POST", "/v1/similar"): {"item_ids": ["a1"], "k": 3, "partition": ["food"], "exclude_seen": True},
    ("POST", "/v1/embeddings"): {"model": MODEL_KEY, "input": ["soup", {"image": PNG}], "dimensions": 4},
    ("PUT", "/v1/items"): {"items": [{"item_id": "a1", "title": "Soup", "image": PNG, "shop": "Bar"}]},
    ("POST", "/v1/events"): {
        "events": [{"user_id": "u", "item_id": "a", "action": "click", "ts": "2026-01-31T12:00:00Z", "query": "q"}]
    },
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, str, Any]:
    """A right body in which some values, at any depth, are hostile, gone, or joined by unknown keys."""
    method, path = draw(st.sampled_from(sorted(GOOD)))
    body = json.loads(json.dumps(GOOD[method, path]))
    for _ in range(draw(st.integers(0, 4))):
        place: Any = body
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if isinstance(place, dict) and draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw(st.sampled_from(HOSTILE) | json_values))
            break
    if draw(st.integers(0, 5)) == 0:
        body[draw(st.sampled_from(["filter", "__class__", "ids", "\x00"]))] = draw(json_values)
    return method, path, draw(st.just(body) | json_values) if draw(st.integers(0, 9)) == 0 else body


def answered(answer: httpx.Response) -> None:
    assert answer.status_code in EXPECTED, (answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        error = ErrorBody.model_validate(answer.json()).error
        assert "Traceback" not in error.message
        assert len(answer.text) < 2000  # nothing long is echoed


async def send(method: str, path: str, content: bytes | None = None) -> httpx.Response:
    async with client_of(FakeBackend()) as client:
        return await client.request(method, path, content=content, headers={"Content-Type": "application/json"})


@settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_hostile_bodies(request: tuple[str, str, Any]) -> None:
    method, path, body = request
    answered(asyncio.run(send(method, path, json.dumps(body).encode())))


@settings(max_examples=CASES)
@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=200), st.integers(0, 60))
def test_bytes_that_are_no_json(route: tuple[str, str], noise: bytes, at: int) -> None:
    """Noise inside a right body, and deep nesting."""
    right = json.dumps(GOOD[route]).encode()
    answered(asyncio.run(send(*route, right[:at] + noise + right[at:])))


@settings(max_examples=CASES)
@given(st.text(min_size=1, max_size=30) | st.binary(max_size=30), st.sampled_from(["GET", "DELETE"]), st.booleans())
def test_any_path(item_id: str | bytes, method: str, image: bool) -> None:
    text = quote(item_id if isinstance(item_id, bytes) else item_id.encode("utf-8", "surrogatepass"), safe="")
    answered(asyncio.run(send(method, f"/v1/items/{text.replace('.', '%2E')}{'/image' if image else ''}")))


def test_deep_json() -> None:
    for content in (b"[" * 100_000, b'{"query":' * 50_000, b'{"vector":' + b"[" * 5000 + b"]" * 5000 + b"}"):
        answered(asyncio.run(send("POST", "/v1/search", content)))


schema = schemathesis.openapi.from_asgi("/openapi.json", api_of(FakeBackend(), 8, Keys({})))


@schema.parametrize()
@settings(max_examples=max(5, CASES // 20), suppress_health_check=list(HealthCheck))
def test_what_the_schema_allows_is_answered(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=[not_a_server_error])
