"""The routes beside search: similar items, embeddings, items, events; on a backend of the tests' own."""

from __future__ import annotations

import base64
import re
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest

from sidray.serving.messages import Refusal
from sidray.serving.service import MAX_TEXT_CHARACTERS
from tests.data.makers import picture
from tests.serving.fakes import HIT, INDEX, MODEL_KEY, FakeBackend, client_of, in_base64, refused

PNG = in_base64(picture())
SIMILAR = {"item_ids": ["a1", "z9", "a1"]}
EMBED = {"model": MODEL_KEY, "input": "soup"}
ITEM = {"item_id": "a1", "title": "Soup"}
EVENT = {"user_id": "u1", "item_id": "a1", "action": "click", "ts": "2026-01-31T12:00:00+02:00"}


async def request(method: str, path: str, body: Any = None, backend: FakeBackend | None = None) -> httpx.Response:
    async with client_of(backend or FakeBackend()) as client:
        return await client.request(method, path, json=body)


async def test_similar_items() -> None:
    backend = FakeBackend()
    body = {**SIMILAR, "k": 3, "partition": "food", "exclude_seen": False, "recency": 0.5, "min_table_version": 7}
    answer = await request("POST", "/v1/similar", body, backend)
    assert answer.json()["hits"] == [HIT]
    assert answer.json()["unknown"] == ["z9"]
    assert answer.json()["index"] == INDEX.model_dump()
    asked = backend.liked[0]
    assert (asked.item_ids, asked.k, asked.partitions, asked.exclude_seen) == (["a1", "z9"], 3, ["food"], False)
    assert asked.recency == 0.5
    assert asked.min_table_version == 7


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"item_ids": []}, 422, "too_short", "item_ids"),
        ({"item_ids": ["a"] * 51}, 422, "too_long", "item_ids"),
        ({"item_ids": "a1"}, 400, "list_type", "item_ids"),
        ({**SIMILAR, "partition": []}, 422, "empty_partition", None),
        ({**SIMILAR, "recency": 0}, 422, "greater_than", "recency"),
        ({**SIMILAR, "recency": 1.5}, 422, "less_than_equal", "recency"),
        ({**SIMILAR, "query": "soup"}, 422, "extra_forbidden", "query"),
        ({**SIMILAR, "min_table_version": -1}, 422, "greater_than_equal", "min_table_version"),
    ],
)
async def test_similar_refusals(body: Any, status: int, code: str, param: str | None) -> None:
    refused(await request("POST", "/v1/similar", body), status, code, param)


async def test_timing_is_in_the_headers() -> None:
    answer = await request("POST", "/v1/search", {"query": "soup"})
    names = [part.split(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert names == ["total", "queue", "tokenise", "infer", "recall"]
    assert "queue;dur=1, tokenise;dur=2, infer;dur=3" in answer.headers["server-timing"]


async def test_embeddings_in_openais_shape() -> None:
    backend = FakeBackend()
    body = {"model": MODEL_KEY, "input": ["soup", {"text": "red", "image": PNG}, {"image": PNG}], "dimensions": 4}
    answer = (await request("POST", "/v1/embeddings", body, backend)).json()
    assert backend.embedded == [("soup", None), ("red", picture()), ("", picture())]
    assert [(row["object"], row["index"]) for row in answer["data"]] == [("embedding", n) for n in range(3)]
    assert answer["data"][0]["embedding"] == [1, 0, 0, 0]
    assert answer["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    assert (answer["object"], answer["model"]) == ("list", MODEL_KEY)


async def test_an_embedding_in_base64() -> None:
    answer = await request("POST", "/v1/embeddings", {"model": "m", "input": "soup", "encoding_format": "base64"})
    vector = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
    np.testing.assert_array_equal(vector, [1, 0, 0, 0])


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({**EMBED, "dimensions": 2}, 400, "unsupported_dimensions", "dimensions"),
        ({**EMBED, "model": "gpt"}, 404, "model_not_found", "model"),
        ({**EMBED, "input": ""}, 422, "empty_input", None),
        ({**EMBED, "input": ["soup", " "]}, 422, "empty_input", None),
        ({**EMBED, "input": []}, 422, "too_short", "input"),
        ({**EMBED, "input": ["a"] * 257}, 422, "too_long", "input"),
        ({**EMBED, "input": [[1, 2]]}, 400, "input_type", "input"),
        ({**EMBED, "input": 5}, 400, "input_type", "input"),
        ({**EMBED, "input": {"text": "soup"}}, 400, "input_type", "input"),
        ({**EMBED, "input": [{"txt": "soup"}]}, 422, "extra_forbidden", "input"),
        ({**EMBED, "encoding_format": "hex"}, 422, "literal_error", "encoding_format"),
        ({**EMBED, "input": [{"image": "!"}]}, 400, "invalid_base64", "image"),
        ({**EMBED, "input": "a" * (MAX_TEXT_CHARACTERS + 1)}, 413, "query_too_long", "input"),
        ({"input": "soup"}, 400, "missing", "model"),
    ],
)
async def test_embeddings_refusals(body: Any, status: int, code: str, param: str | None) -> None:
    refused(await request("POST", "/v1/embeddings", body), status, code, param)


async def test_writing_items() -> None:
    backend = FakeBackend()
    good = {"item_id": "a/b", "title": "Soup", "partition": "food", "image": PNG, "shop": "Bar"}
    bad = [
        {"item_id": "b1", "title": " "},
        {"item_id": "b2", "title": "Soup", "image": in_base64(b"no picture")},
        {"item_id": "b3", "title": "Soup", "shp": "Bar"},
        {"item_id": "b4", "title": "Soup", "image": in_base64(picture(size=(200, 200)))},
        {"item_id": "b5", "title": "Soup", "image": "https://example.com/a.png"},
    ]
    answer = (await request("PUT", "/v1/items", {"items": [*bad, good]}, backend)).json()
    assert (answer["accepted"], answer["table_version"]) == (1, 4)
    assert list(backend.items) == ["a/b"]
    assert backend.items["a/b"].image == picture()
    reasons = {each["item_id"]: each["reason"] for each in answer["rejected"]}
    assert list(reasons) == ["b1", "b2", "b3", "b4", "b5"]
    for item_id, says in zip(reasons, ("title", "decode|picture", "'shop'", "pixels", "no links"), strict=True):
        assert re.search(says, reasons[item_id]), reasons[item_id]
    nothing = (await request("PUT", "/v1/items", {"items": bad[:1]}, backend)).json()
    assert (nothing["accepted"], nothing["table_version"]) == (0, INDEX.table_version)


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"items": []}, 422, "too_short", "items"),
        ({"items": [{**ITEM, "item_id": str(n)} for n in range(257)]}, 422, "too_long", "items"),
        ({"items": [ITEM, ITEM]}, 422, "duplicate_item", None),
        ({"items": [{**ITEM, "shop": 3}]}, 400, "string_type", "items"),
        ({"items": [{"item_id": "a1"}]}, 400, "missing", "items"),
        ({"items": [{**ITEM, "item_id": ""}]}, 422, "too_short", "items"),
        ({"items": [{**ITEM, "item_id": "a" * 513}]}, 422, "too_long", "items"),
        ([ITEM], 400, "invalid_body", None),
    ],
)
async def test_items_refusals(body: Any, status: int, code: str, param: str | None) -> None:
    refused(await request("PUT", "/v1/items", body), status, code, param)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("items", {"items": [ITEM, {"item_id": "a2"}]}, "items[1].title: the body lacks this field"),
        ("items", {"items": [ITEM, ITEM | {"item_id": "a2", "shop": 3}]}, "items[1].shop: "),
        ("items", {"items": [ITEM, 3]}, "items[1]: this must be a JSON object"),
        ("items", {"things": []}, "items: the body lacks this field"),
        ("search", {"query": "soup", "k": "ten"}, "k: "),
        ("search", {"query": "soup", "exclude": ["a", 1]}, "exclude[1]: "),
        ("embeddings", {"model": "m", "input": [{"words": "soup"}]}, "input: "),
    ],
)
async def test_what_is_wrong_is_named(path: str, body: Any, says: str) -> None:
    answer = await request("PUT" if path == "items" else "POST", f"/v1/{path}", body)
    assert answer.json()["error"]["message"].startswith(says), answer.text


IDS = ["a1", "a/b", "a/image", "image", "/image", "..", "%2F", "a%2Fb", "a b", "a\nb", "a\n", "é中", "a?b#c", "+"]


@pytest.mark.parametrize("item_id", IDS)
async def test_any_item_id_in_a_path(item_id: str) -> None:
    backend = FakeBackend()
    await request("PUT", "/v1/items", {"items": [{"item_id": item_id, "title": "Soup", "image": PNG}]}, backend)
    path = f"/v1/items/{quote(item_id, safe='').replace('.', '%2E')}"
    found = await request("GET", path, backend=backend)
    assert (found.json()["item_id"], found.json()["title"], found.json()["table_version"]) == (item_id, "Soup", 4)
    image = await request("GET", f"{path}/image", backend=backend)
    assert (image.content, image.headers["content-type"]) == (picture(), "image/jpeg")
    assert (await request("DELETE", path, backend=backend)).json() == {"item_id": item_id, "table_version": 4}
    refused(await request("DELETE", path, backend=backend), 404, "unknown_item", "item_id")
    refused(await request("GET", path, backend=backend), 404, "unknown_item", "item_id")


@pytest.mark.parametrize("prefix", ["/sidray", "/behind/a proxy"])
async def test_an_item_id_with_slashes_below_a_prefix(prefix: str) -> None:
    backend = FakeBackend()
    await request("PUT", "/v1/items", {"items": [{"item_id": "a/image", "title": "Soup"}]}, backend)
    async with client_of(backend, prefix=prefix) as client:
        assert (await client.get("/v1/items/a%2Fimage")).json()["item_id"] == "a/image"
        refused(await client.get("/v1/items/a"), 404, "unknown_item", "item_id")


async def test_an_item_id_that_is_no_text() -> None:
    refused(await request("GET", "/v1/items/%ff"), 400, "invalid_item_id", "item_id")
    refused(await request("GET", "/v1/items/a/b"), 404, "not_found", None)


async def test_events() -> None:
    backend = FakeBackend()
    answer = await request("POST", "/v1/events", {"events": [EVENT, {**EVENT, "query": "soup"}]}, backend)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 2})
    assert backend.events[1]["query"] == "soup"
    assert backend.events[0]["ts"].utcoffset().total_seconds() == 7200


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"ts": "2026-01-31T12:00:00"}, 422, "naive_ts"),
        ({"ts": "yesterday"}, 422, "datetime_from_date_parsing"),
        ({"action": ""}, 422, "too_short"),
        ({"user_id": 7}, 400, "string_type"),
        ({"price": 7}, 422, "extra_forbidden"),
    ],
)
async def test_events_refusals(change: dict[str, Any], status: int, code: str) -> None:
    refused(await request("POST", "/v1/events", {"events": [{**EVENT, **change}]}), status, code, "events")


async def test_a_writer_that_refuses_is_passed_on() -> None:
    backend = FakeBackend()
    backend.written = Refusal(503, "storage_unavailable", "away")
    answer = await request("PUT", "/v1/items", {"items": [ITEM]}, backend)
    refused(answer, 503, "storage_unavailable", None)
    assert answer.headers["retry-after"] == "1"
