"""The HTTP contract, error by error, on a backend of the tests' own."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidray.serving.messages import Refusal
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.service import MAX_TEXT_CHARACTERS, unit_vector
from tests.data.makers import picture
from tests.serving.fakes import (
    HIT,
    INDEX,
    MODEL_KEY,
    FakeBackend,
    client_of,
    in_base64,
    refused,
    search,
    waits,
)

PNG = in_base64(picture())


async def test_a_search_answers_hits_index_and_times() -> None:
    backend = FakeBackend()
    body = {"query": "soup", "partition": "food", "k": 3, "exclude": ["b2"], "with_fields": ["shop"]}
    answer = await search(body, backend)
    assert answer.status_code == 200
    assert answer.json()["hits"] == [HIT]
    assert answer.json()["index"] == INDEX.model_dump()
    took = answer.json()["took_ms"]
    assert set(took) == {"total", "embed", "recall"}
    assert took["total"] >= took["embed"] + took["recall"] - 0.01
    assert backend.embedded == [("soup", None)]
    asked = backend.recalled[0]
    assert (asked.k, asked.partitions, asked.exclude, asked.fields) == (3, ["food"], ["b2"], ["shop"])
    assert asked.model_key == MODEL_KEY


async def test_defaults() -> None:
    backend = FakeBackend()
    await search({"query": "soup"}, backend)
    asked = backend.recalled[0]
    assert (asked.k, asked.partitions, asked.exclude, asked.fields) == (10, None, [], [])


@pytest.mark.parametrize(
    ("partition", "expected"),
    [(None, None), ("", None), ("a", ["a"]), (["a", "b"], ["a", "b"]), (["a", ""], None)],
)
async def test_an_empty_partition_means_everywhere(partition: Any, expected: list[str] | None) -> None:
    backend = FakeBackend()
    assert (await search({"query": "soup", "partition": partition}, backend)).status_code == 200
    assert backend.recalled[0].partitions == expected


async def test_a_vector_is_not_embedded_and_carries_no_model_key() -> None:
    backend = FakeBackend()
    answer = await search({"vector": [3, 0, 4.0, 0]}, backend)
    assert backend.embedded == []
    assert answer.json()["took_ms"]["embed"] == 0
    assert backend.recalled[0].model_key == ""
    np.testing.assert_allclose(backend.recalled[0].vector, [0.6, 0, 0.8, 0], rtol=1e-6)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8).filter(any))
def test_any_finite_vector_but_zero_gets_unit_length(values: list[float]) -> None:
    vector = unit_vector(values)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-6)
    assert int(np.argmax(np.abs(values))) in np.flatnonzero(np.abs(vector) == np.abs(vector).max())


@pytest.mark.parametrize("text", [PNG, f"data:image/png;base64,{PNG}", f"data:;base64,{PNG}", f"{PNG[:9]}\n{PNG[9:]}"])
@pytest.mark.parametrize("query", ["soup", "", None])
async def test_pictures_alone_and_beside_a_query(text: str, query: str | None) -> None:
    backend = FakeBackend()
    assert (await search({"image": text, "query": query}, backend)).status_code == 200
    assert backend.embedded == [(query or "", picture())]


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
async def test_other_formats(format: str) -> None:
    assert (await search({"image": in_base64(picture(kind=format))})).status_code == 200


BOTH = {"query": "soup"}
DAMAGED = in_base64(picture(size=(60, 60), kind="JPEG")[:300])
LARGE = in_base64(picture(size=(101, 100)))


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ("", 400, "invalid_body", None),
        ('{"query":', 400, "invalid_json", None),
        (b'{"query": "\xff"}', 400, "bad_request", None),
        ("[" * 100_000, 400, "bad_request", None),
        ("[1]", 400, "invalid_body", None),
        ('"soup"', 400, "invalid_body", None),
        ("null", 400, "invalid_body", None),
        ({"query": 3}, 400, "string_type", "query"),
        ({"query": "soup", "k": "10"}, 400, "int_type", "k"),
        ({"query": "soup", "k": 1.0}, 400, "int_type", "k"),
        ({"query": "soup", "k": True}, 400, "int_type", "k"),
        ({"query": "soup", "k": None}, 400, "int_type", "k"),
        ({"query": "soup", "partition": 3}, 400, "string_type", "partition"),
        ({"query": "soup", "partition": [3]}, 400, "string_type", "partition"),
        ({"query": "soup", "exclude": "a1"}, 400, "list_type", "exclude"),
        ({"vector": "AAAA"}, 400, "list_type", "vector"),
        ({"vector": [None]}, 400, "float_type", "vector"),
        ({"image": "%%%"}, 400, "invalid_base64", "image"),
        ({"image": "data:image/png,raw"}, 422, "url_not_allowed", "image"),
        ({"image": "http://169.254.169.254/latest"}, 422, "url_not_allowed", "image"),
        ({"image": "file:///etc/passwd"}, 422, "url_not_allowed", "image"),
        ({"image": in_base64(b"GIF89a not a picture")}, 415, "not_an_image", "image"),
        ({"image": in_base64(b"<svg/>")}, 415, "not_an_image", "image"),
        ({"image": ""}, 415, "not_an_image", "image"),
        ({"image": DAMAGED}, 415, "not_an_image", "image"),
        ({"image": LARGE}, 413, "too_many_pixels", "image"),
        ({"query": "x" * (MAX_TEXT_CHARACTERS + 1)}, 413, "query_too_long", "query"),
        ({}, 422, "empty_query", None),
        ({"query": " \n"}, 422, "empty_query", None),
        ({"vector": [1.0], "query": "soup"}, 422, "ambiguous_query", None),
        ({"vector": [1.0], "image": PNG}, 422, "ambiguous_query", None),
        ({"query": "soup", "k": 0}, 422, "greater_than_equal", "k"),
        ({"query": "soup", "k": 1001}, 422, "less_than_equal", "k"),
        ({"query": "soup", "k": 10**400}, 422, "less_than_equal", "k"),
        ({"query": "soup", "filter": "x"}, 422, "extra_forbidden", "filter"),
        ({"query": "soup", "partition": []}, 422, "empty_partition", None),
        ({"query": "soup", "exclude": ["x"] * 1001}, 422, "too_long", "exclude"),
        ({"vector": []}, 422, "too_short", "vector"),
        ({"vector": [1.0] * 65_537}, 422, "too_long", "vector"),
        ({"vector": [0, 0.0, -0.0, 0]}, 422, "zero_vector", "vector"),
        ('{"vector": [NaN, 1, 1, 1]}', 422, "finite_number", "vector"),
        ('{"vector": [1e999, 1, 1, 1]}', 422, "finite_number", "vector"),
        (r'{"query": "\ud800"}', 422, "string_unicode", "query"),
        (r'{"query": "soup", "exclude": ["\udfff"]}', 422, "string_unicode", "exclude"),
    ],
)
async def test_refused_before_any_model_is_asked(body: Any, status: int, code: str, param: str | None) -> None:
    backend = FakeBackend()
    refused(await search(body, backend), status, code, param)
    assert not backend.embedded
    assert not backend.recalled


async def test_a_clients_own_key_is_named_but_short() -> None:
    refused(await search({"query": "soup", "x" * 100_000: 1}), 422, "extra_forbidden", "x" * 80)
    refused(await search(r'{"query": "soup", "\ud800": 1}'), 422, "string_unicode", None)


async def test_another_content_type_is_told_what_to_send() -> None:
    async with client_of(FakeBackend()) as client:
        answer = await client.post("/v1/search", data={"query": "soup"})
    refused(answer, 400, "invalid_body", None)
    assert "Content-Type: application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal(404, "unknown_partition", "no partition is called 'x'", "partition"), "not_found_error"),
        (Refusal(422, "wrong_dimension", "vector has 3 values", "vector"), "invalid_request_error"),
    ],
)
async def test_what_recall_refuses_reaches_the_client(refusal: Refusal, kind: str) -> None:
    backend = FakeBackend()
    backend.answer = refusal
    answer = await search({"query": "soup"}, backend)
    refused(answer, refusal.status, refusal.code, refusal.param)
    assert answer.json()["error"]["type"] == kind


async def test_a_full_gateway_answers_503_and_probes_still_pass() -> None:
    backend, release = FakeBackend(), asyncio.Event()
    backend.before = lambda: waits(release)
    async with client_of(backend, max_in_flight=1) as client:
        first = asyncio.create_task(client.post("/v1/search", json=BOTH))
        while not backend.embedded:
            await asyncio.sleep(0)
        second = await client.post("/v1/search", json=BOTH)
        refused(second, 503, "overloaded", None)
        assert int(second.headers["retry-after"]) >= 1
        assert (await client.get("/healthz")).status_code == 200
        release.set()
        assert (await first).status_code == 200
        assert (await client.post("/v1/search", json=BOTH)).status_code == 200


ITEMS = ("PUT", "/v1/items", {"items": [{"item_id": "a1", "title": "Soup"}]})
EMBED = ("POST", "/v1/embeddings", {"model": MODEL_KEY, "input": ["soup"] * 256})


@pytest.mark.parametrize("prefix", ["", "/sidray"])
@pytest.mark.parametrize(("method", "path", "body"), [ITEMS, EMBED])
async def test_slow_work_that_waits_leaves_half_of_the_gateway_to_searches(
    method: str, path: str, body: Any, prefix: str
) -> None:
    backend, release = FakeBackend(), asyncio.Event()
    backend.before = lambda: waits(release)
    async with client_of(backend, max_in_flight=4, prefix=prefix) as client:
        writes = [asyncio.create_task(client.request(method, path, json=body)) for _ in range(3)]
        done, waiting = await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
        refused(done.pop().result(), 503, "overloaded", None)
        assert len(waiting) == 2
        search = asyncio.create_task(client.post("/v1/search", json=BOTH))
        release.set()
        assert (await search).status_code == 200
        assert [(await write).status_code for write in waiting] == [200, 200]
        assert (await client.request(method, path, json=body)).status_code == 200


async def test_full_queues_behind_the_gateway_answer_503() -> None:
    backend = FakeBackend()

    async def busy() -> None:
        raise ApiError(overloaded())

    backend.before = busy
    answer = await search({"query": "soup"}, backend)
    refused(answer, 503, "overloaded", None)
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert answer.headers["retry-after"]


async def test_the_deadline_answers_504_and_cancels_the_work() -> None:
    backend, cancelled = FakeBackend(), asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    backend.before = hangs
    async with client_of(backend, timeout_s=0.05) as client:
        refused(await client.post("/v1/search", json=BOTH), 504, "deadline_exceeded", None)
    assert cancelled.is_set()


async def test_looking_for_the_model_and_embedding_share_a_deadline() -> None:
    backend = FakeBackend()
    backend.before = lambda: asyncio.sleep(0.3)
    async with client_of(backend, timeout_s=0.5) as client:
        refused(await client.post(EMBED[1], json={**EMBED[2], "input": "soup"}), 504, "deadline_exceeded", None)
        assert backend.embedded == [("soup", None)]


async def test_an_unexpected_error_tells_the_client_nothing() -> None:
    backend = FakeBackend()

    async def breaks() -> None:
        raise RuntimeError("secret path /srv/models")

    backend.before = breaks
    answer = await search({"query": "soup"}, backend)
    refused(answer, 500, "internal_error", None)
    assert "secret" not in answer.text


async def test_probes_models_and_index() -> None:
    async with client_of(FakeBackend()) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        model = (await client.get("/v1/models")).json()
        assert (model["object"], model["data"][0]["id"], model["data"][0]["dimension"]) == ("list", MODEL_KEY, 4)
        index = (await client.get("/v1/index")).json()
        assert (index["generation"], index["items"], index["lag_seconds"]) == ("index-1", 7, 0.0)


async def test_not_ready_while_model_and_index_disagree() -> None:
    backend = FakeBackend()
    backend.model_key = "m-2"
    async with client_of(backend) as client:
        refused(await client.get("/readyz"), 503, "overloaded", None)
        assert (await client.get("/healthz")).status_code == 200


async def test_not_ready_while_the_model_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidray.serving.service.READY_S", 0.05)
    backend = FakeBackend()
    backend.before = lambda: waits(asyncio.Event())
    async with client_of(backend) as client:
        refused(await client.get("/readyz"), 503, "overloaded", None)


async def test_unknown_routes_and_methods_answer_in_json() -> None:
    async with client_of(FakeBackend()) as client:
        refused(await client.get("/v1/nothing"), 404, "not_found", None)
        wrong = await client.get("/v1/search")
        refused(wrong, 405, "method_not_allowed", None)
        assert wrong.headers["allow"] == "POST"


async def test_openapi_describes_the_routes_and_every_error() -> None:
    async with client_of(FakeBackend()) as client:
        document = (await client.get("/openapi.json")).json()
    assert {path: sorted(routes) for path, routes in document["paths"].items()} == {
        "/v1/search": ["post"],
        "/v1/similar": ["post"],
        "/v1/embeddings": ["post"],
        "/v1/items": ["put"],
        "/v1/items/{item_id}": ["delete", "get"],
        "/v1/items/{item_id}/image": ["get"],
        "/v1/events": ["post"],
        "/v1/models": ["get"],
        "/v1/index": ["get"],
        "/healthz": ["get"],
        "/readyz": ["get"],
        "/metrics": ["get"],
    }
    responses = document["paths"]["/v1/search"]["post"]["responses"]
    assert set(responses) == {"200", "400", "401", "404", "413", "415", "422", "429", "500", "503", "504"}
    for status, answer in responses.items():
        schema = answer["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert schema == ("SearchResponse" if status == "200" else "ErrorBody")
