"""Lists that are longer than a request: how they are cut, and their answers merged."""

from __future__ import annotations

import base64
import json
import os
from typing import Any

import numpy as np
import pytest

from sidray.client import ApiError, Item
from sidray.client.rows import MAX_BODY_BYTES, bodies
from tests.client.servers import Fault, Scripted


def test_embeddings_keep_their_order_over_requests(client: Any, server: Scripted) -> None:
    vectors = client.embed((str(number) for number in range(600)), "m-1")
    assert vectors.dtype == np.float32
    assert np.array_equal(vectors, np.array([[number, 0.1] for number in range(600)], np.float32))
    assert [len(seen.json["input"]) for seen in server.seen] == [256, 256, 88]


def test_no_inputs_no_request(client: Any, server: Scripted) -> None:
    assert client.embed([], "m-1").shape == (0, 0)
    assert client.embed([], "m-1", 64).shape == (0, 64)
    assert client.put_items([]).model_dump() == {"accepted": 0, "rejected": [], "table_version": 0}
    assert not server.seen


def test_items_of_all_kinds(client: Any, server: Scripted) -> None:
    rows: list[Any] = [
        Item(item_id="a", title="A", shop="Noodle bar"),
        {"item_id": "b", "title": "B", "image": b"\x89PNG", "partition": "food"},
        {"item_id": "c", "title": "C", "image": None},
    ]
    assert client.put_items(rows).accepted == 3
    assert client.put_items(rows[0]).accepted == client.put_items(rows[1]).accepted == 1
    first = {"item_id": "a", "title": "A", "partition": "", "shop": "Noodle bar"}
    coded = base64.b64encode(b"\x89PNG").decode()
    second = {"item_id": "b", "title": "B", "image": coded, "partition": "food"}
    assert [seen.json["items"] for seen in server.seen] == [[first, second, rows[2]], [first], [second]]
    assert rows[1]["image"] == b"\x89PNG"  # the caller's row is as it was


def test_items_are_cut_by_number_and_answers_merged(client: Any, server: Scripted) -> None:
    server.table_versions.extend([5, 9, 7])
    rows = [{"item_id": str(number), "title": "" if number in (3, 599) else "t"} for number in range(600)]
    done = client.put_items(iter(rows))
    sent = [[item["item_id"] for item in seen.json["items"]] for seen in server.seen]
    assert [len(ids) for ids in sent] == [256, 256, 88]
    assert [item_id for ids in sent for item_id in ids] == [row["item_id"] for row in rows]
    assert (done.accepted, done.table_version) == (598, 9)
    assert [rejected.item_id for rejected in done.rejected] == ["3", "599"]


def test_an_item_that_comes_twice_ends_with_its_last_content(client: Any, server: Scripted) -> None:
    rows = [{"item_id": item_id, "title": str(number)} for number, item_id in enumerate("abacbb")]
    assert client.put_items(rows).accepted == 6
    assert ["".join(item["item_id"] for item in seen.json["items"]) for seen in server.seen] == ["ab", "acb", "b"]


def test_events_are_cut(client: Any, server: Scripted) -> None:
    row = {"user_id": "u", "item_id": "a", "action": "click", "ts": "2026-01-31T12:00:00Z"}
    assert client.events(row for _ in range(1001)).accepted == 1001
    assert [len(seen.json["events"]) for seen in server.seen] == [1000, 1]


def test_large_pictures_are_cut_below_the_limit_on_bodies(client: Any, server: Scripted) -> None:
    picture = os.urandom(7 * 2**20)
    rows = [{"item_id": str(number), "title": "t", "image": picture} for number in range(5)]
    assert client.put_items(rows).accepted == 5
    assert [len(seen.json["items"]) for seen in server.seen] == [3, 2]
    assert all(int(seen.headers["content-length"]) <= MAX_BODY_BYTES < 32 * 2**20 for seen in server.seen)


def test_the_limit_counts_every_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["x" * 10, "面" * 10, "y", "z" * 100]
    for limit in range(20, 200):
        monkeypatch.setattr("sidray.client.rows.MAX_BODY_BYTES", limit)
        cut = list(bodies("input", rows, 3, {"m": 1}))
        assert sum(count for _, count in cut) == 4
        assert all(len(body) <= limit or count == 1 for body, count in cut)
        whole = len(b'{"m":1,"input":["xxxxxxxxxx","' + b"---" * 10 + b'","y"]}')
        assert (cut[0][1] == 3) == (limit >= whole)


def test_a_refusal_ends_a_long_list(client: Any, server: Scripted) -> None:
    def rows() -> Any:
        for number in range(100_000):
            yield {"item_id": str(number), "title": "t"}
            taken.append(number)

    taken: list[int] = []
    server.script.append(Fault(401))
    with pytest.raises(ApiError, match="401"):
        client.put_items(rows())
    assert len(taken) < 300  # rows are taken as they are sent


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1.0, 2.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "A"}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": "AAA="}],
    ],
)
def test_embeddings_that_are_missing_or_broken_are_an_error(client: Any, server: Scripted, data: Any) -> None:
    answer = {"data": data, "model": "m-1", "usage": {"prompt_tokens": 1, "total_tokens": 1}}
    server.script.append(Fault(200, json.dumps(answer).encode()))
    with pytest.raises(ApiError) as caught:
        client.embed(["1", "2"], "m-1")
    assert (caught.value.status, caught.value.code) == (200, "invalid_answer")
