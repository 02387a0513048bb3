"""What the client sends on each route, and what it makes of the answers."""

from __future__ import annotations

import base64
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sidray.client import ApiError, AsyncClient, Client, Event, TextOrImage
from tests.client.conftest import Connect
from tests.client.servers import KEY, Fault, Scripted

PNG = b"\x89PNG\x00\xff"


def test_search_sends_what_was_given_and_no_more(client: Any, server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "soup.png").write_bytes(PNG)
    found = client.search("面条", k=3)
    assert (found.hits[0].title, found.index, found.took_ms.total) == ("面条", KEY, 1.0)
    client.search(image=PNG, partition=("food", "drinks"), exclude=["a1"], with_fields=["shop"], min_table_version=7)
    client.search(image=tmp_path / "soup.png", partition="food", exclude="a1")
    client.search(vector=np.array([0.1, 1], np.float32), k=1)
    coded = base64.b64encode(PNG).decode()
    assert [seen.json for seen in server.seen] == [
        {"query": "面条", "k": 3},
        {
            "image": coded,
            "partition": ["food", "drinks"],
            "k": 10,
            "exclude": ["a1"],
            "with_fields": ["shop"],
            "min_table_version": 7,
        },
        {"image": coded, "partition": "food", "k": 10, "exclude": ["a1"]},
        {"vector": [float(np.float32(0.1)), 1.0], "k": 1},
    ]
    assert {seen.headers["content-type"] for seen in server.seen} == {"application/json"}
    assert all(int(seen.headers["content-length"]) == len(seen.body) for seen in server.seen)
    assert all("authorization" not in seen.headers for seen in server.seen)


@pytest.mark.parametrize("vector", [[[1.0]], [float("nan")], 1.0])
def test_a_vector_that_json_cannot_carry_is_refused_before_it_is_sent(
    client: Any, server: Scripted, vector: Any
) -> None:
    with pytest.raises(ValueError, match=r"vector has shape|Out of range"):
        client.search(vector=vector)
    assert not server.seen


def test_half_a_character_is_left_to_the_service(client: Any, server: Scripted) -> None:
    server.script.append(Fault(422))
    with pytest.raises(ApiError):
        client.search("\ud83d")
    assert server.seen[0].body == b'{"query":"\\ud83d","k":10}'


def test_similar(client: Any, server: Scripted) -> None:
    found = client.similar(["a1", "zz"], k=4, exclude_seen=False, recency=0.5, partition="food", with_fields=["shop"])
    assert (found.hits[0].title, found.unknown) == ("a1", ["zz"])
    assert client.similar("a1").hits[0].title == "a1"  # not the letters of the name
    assert [seen.json for seen in server.seen] == [
        {
            "item_ids": ["a1", "zz"],
            "exclude_seen": False,
            "recency": 0.5,
            "partition": "food",
            "k": 4,
            "with_fields": ["shop"],
        },
        {"item_ids": ["a1"], "exclude_seen": True, "k": 10},
    ]


def test_events(client: Any, server: Scripted) -> None:
    ts = datetime(2026, 1, 31, 12, tzinfo=UTC)
    row: dict[str, Any] = {"user_id": "u", "item_id": "a1", "action": "click", "ts": ts, "query": "soup"}
    assert client.events([row, Event(**row), {**row, "ts": "2026-01-31T12:00:00Z"}]).accepted == 3
    assert client.events(row).accepted == 1
    assert client.events([]).accepted == 0
    assert [event["ts"][:19] for event in server.seen[0].json["events"]] == ["2026-01-31T12:00:00"] * 3
    assert len(server.seen) == 2


def test_what_is_served(client: Any) -> None:
    assert client.models().data[0].id == "m-1"
    assert client.index().items == 7
    assert client.healthy()
    client.wait_until_ready(1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=512))
@example("..")
@example(".")
@example("../../v1/index")
@example("image")
@example("a/image")
@example("a/b//c/")
@example("%2F%")
@example("? # ;=&+ :@")
@example("\x00\r\n\u2028🍜")
@example("𝕏" * 512)
def test_any_item_id_reaches_the_service_as_it_is(client: Any, server: Scripted, item_id: str) -> None:
    server.reset()
    assert client.item(item_id).item_id == item_id
    assert client.delete_item(item_id).item_id == item_id
    assert client.item_image(item_id) == b"\x89PNG"
    assert [seen.method for seen in server.seen] == ["GET", "DELETE", "GET"]
    _, _, _, segment, image = server.seen[2].raw_path.split(b"/")
    assert (unquote_to_bytes(segment).decode(), image) == (item_id, b"image")
    assert segment not in (b".", b"..")


@pytest.mark.parametrize("item_id", ["", "x" * 513, "\ud83d"])
def test_an_id_that_no_item_can_have_is_refused_before_it_is_sent(client: Any, server: Scripted, item_id: str) -> None:
    with pytest.raises(ValueError, match=r"an item_id has 1 to 512|surrogates not allowed"):
        client.item(item_id)
    assert not server.seen


def test_a_base_url_may_have_a_path_and_a_slash(connect: Connect, server: Scripted) -> None:
    assert connect(server.url + "/behind/a%20proxy/").item("a").item_id == "a"
    assert server.seen[0].raw_path == b"/behind/a%20proxy/v1/items/a"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "127.0.0.1:8000"}, "http"),
        ({"base_url": "ftp://host"}, "must begin with http"),
        ({"base_url": "http://"}, "must begin with http"),
        ({"base_url": "http://user:geheim@host"}, "base_url has a user"),
        ({"base_url": "http://host?key=geheim"}, "base_url has a user"),
        ({"base_url": "http://host", "api_key": "geheim\r\nX: 1"}, "the API key has"),
        ({"base_url": "http://host", "api_key": "geheim "}, "the API key has"),
        ({"base_url": "http://host", "timeout_s": 0}, "timeout_s=0 must be positive"),
        ({"base_url": "http://host", "timeout_s": float("inf")}, "timeout_s=inf must be positive"),
        ({"base_url": "http://host", "write_timeout_s": 0}, "write_timeout_s=0 must be positive"),
        ({"base_url": "http://host", "retries": -1}, "retries=-1 must not be negative"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_cannot_be_is_refused_at_once(kind: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        kind(**options)
    assert "geheim" not in str(caught.value)


def test_a_client_is_a_context_manager_and_closes(server: Scripted) -> None:
    with Client(server.url) as client:
        assert client.healthy()
    with pytest.raises(RuntimeError, match="closed"):
        client.index()


async def test_an_async_client_is_a_context_manager_and_closes(server: Scripted) -> None:
    async with AsyncClient(server.url) as client:
        assert await client.healthy()
    with pytest.raises(RuntimeError, match="closed"):
        await client.index()


def test_threads_share_a_client(server: Scripted) -> None:
    queries = [f"query {number}" for number in range(64)]
    with Client(server.url) as client, ThreadPoolExecutor(8) as pool:
        assert [found.hits[0].title for found in pool.map(client.search, queries)] == queries


def test_connections_are_kept(client: Any, server: Scripted) -> None:
    for _ in range(3):
        client.search("cat")
    assert len({seen.port for seen in server.seen}) == 1


def test_the_import_is_light() -> None:
    code = "import sys, sidray.client; print({'ray', 'torch', 'faiss', 'transformers', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_inputs_of_all_kinds(client: Any, server: Scripted) -> None:
    vectors = client.embed(["7", {"text": "8", "image": PNG}, {"image": PNG}, TextOrImage(text="9")], "m-1", 2)
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == [7, 8, -1, 9]
    assert vectors.flags.writeable
    coded = base64.b64encode(PNG).decode()
    assert server.seen[0].json == {
        "model": "m-1",
        "encoding_format": "base64",
        "dimensions": 2,
        "input": ["7", {"text": "8", "image": coded}, {"image": coded}, {"text": "9"}],
    }
    assert client.embed("7").shape == (1, 2)  # the service's own model, asked for first
    assert [seen.raw_path for seen in server.seen[1:]] == [b"/v1/models", b"/v1/embeddings"]
