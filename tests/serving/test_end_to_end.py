"""The whole service on Serve, over a run that was trained: its answers against a search in this process."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from sidray.client import ApiError, Client
from sidray.data.catalogue import Catalogue
from sidray.embedding.runtime import RunModel
from sidray.finished import RunFolder
from sidray.retrieval.collection import Collection
from sidray.retrieval.index import PartitionedIndex
from sidray.search import query_vector

pytestmark = pytest.mark.ray
QUERIES = ["cat", "happy face", "a flag", "red heart", "rain", "fruit"]


@pytest.fixture(scope="module")
def client(service: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service, timeout=60) as client:
        yield client


def picture_of(run: RunFolder, row: int) -> bytes:
    picture: bytes = Catalogue.open(run.output("catalogue")).items(np.array([row]), ["image"])["image"][0].as_py()
    return picture


def test_answers_equal_a_search_in_this_process(client: httpx.Client, debug_run: str) -> None:
    run = RunFolder.open(debug_run)
    model, index = RunModel.load(run), PartitionedIndex.load(run.output("index"), threads=1)
    partition = index.partitions[0]
    picture = picture_of(run, 5)
    encoded = base64.b64encode(picture).decode()
    bodies = [({"query": query}, query, None) for query in QUERIES]
    bodies += [({"image": encoded}, "", picture), ({"image": encoded, "query": "cat"}, "cat", picture)]
    bodies += [({"query": "cat", "partition": partition}, "cat", None)]
    with ThreadPoolExecutor(8) as pool:  # together, so that they are batched
        answers = list(pool.map(lambda body: client.post("/v1/search", json={**body[0], "k": 7}), bodies))
    for (body, query, image), answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        places = [body["partition"]] if "partition" in body else None
        scores, rows = index.search(query_vector(model, query, image), 7, places)
        hits = answer.json()["hits"]
        np.testing.assert_allclose([hit["score"] for hit in hits], scores[0], atol=1e-4)
        vectors = index.vectors[index.rows_of([hit["item_id"] for hit in hits])]
        np.testing.assert_allclose(vectors @ query_vector(model, query, image)[0], scores[0], atol=1e-4)
        assert len({hit["item_id"] for hit in hits}) == len(hits) == len(rows[0])
        assert {hit["partition"] for hit in hits} <= set(places or index.partitions)
        assert answer.json()["index"]["model_key"] == model.model_key


def test_an_item_finds_itself_by_its_vector_unless_excluded(client: httpx.Client, debug_run: str) -> None:
    index = PartitionedIndex.load(RunFolder.open(debug_run).output("index"), threads=1)
    vector, item_id = index.vectors[3].tolist(), index.fields([3])[0]["item_id"]
    found = client.post("/v1/search", json={"vector": vector, "k": 300, "with_fields": ["sids"]}).json()["hits"]
    own = next(hit for hit in found if hit["item_id"] == item_id)
    assert own["score"] == pytest.approx(1, abs=1e-5)
    assert own["fields"] == {"sids": index.fields([3])[0]["sids"]}
    left = client.post("/v1/search", json={"vector": vector, "k": 300, "exclude": [item_id]}).json()["hits"]
    assert {hit["item_id"] for hit in found} - {hit["item_id"] for hit in left} == {item_id}


def test_refusals_pass_through_serve_as_they_are(client: httpx.Client) -> None:
    cases = [
        (client.post("/v1/search", json={"query": "cat", "partition": "nowhere"}), 404, "unknown_partition"),
        (client.post("/v1/search", json={"vector": [1.0]}), 422, "wrong_dimension"),
        (client.post("/v1/search", json={"query": "a b " * 8000}), 413, "query_too_long"),
        (client.post("/v1/search", json={"image": "aGVsbG8="}), 415, "not_an_image"),
        (client.post("/v1/search", content=b"{", headers={"Content-Type": "application/json"}), 400, "invalid_json"),
        (client.get("/v1/nothing"), 404, "not_found"),
    ]
    for answer, status, code in cases:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_what_is_served(client: httpx.Client, debug_run: str) -> None:
    run = RunFolder.open(debug_run)
    index = client.get("/v1/index").json()
    assert client.get("/readyz").json() == {"status": "ready"}
    assert client.get("/v1/models").json()["data"][0]["id"] == index["model_key"]
    assert index["generation"] == run.steps["index"]
    assert index["run"] == run.name
    assert index["items"] == Catalogue.open(run.output("catalogue")).n_items


def test_a_written_item_is_found_at_once_and_a_deleted_one_is_not(client: httpx.Client, debug_run: str) -> None:
    """Read your writes: through the delta, within the 2 s of min_table_version."""
    service = Client(str(client.base_url))
    picture = picture_of(RunFolder.open(debug_run), 5)
    items = [{"item_id": f"new/{n}", "title": "purple submarine", "partition": "boats"} for n in range(3)]
    version = service.put_items([{**items[0], "image": picture}, *items[1:]]).table_version
    found = service.search("purple submarine", partition="boats", min_table_version=version, with_fields=["sids"])
    assert {hit.item_id for hit in found.hits} == {"new/0", "new/1", "new/2"}
    assert found.index.table_version >= version
    assert all(len(hit.fields["sids"]) == 9 for hit in found.hits)
    assert service.item("new/0").title == "purple submarine"
    assert service.item_image("new/0")[:3] == b"\xff\xd8\xff"
    near = service.similar(["new/1", "unheard-of"], partition="boats")
    assert {hit.item_id for hit in near.hits} == {"new/0", "new/2"}  # not what was seen
    assert near.unknown == ["unheard-of"]
    assert service.put_items(items[1:]).table_version == version  # nothing new
    last = max(service.delete_item(item["item_id"]).table_version for item in items)
    gone = service.search("purple submarine", partition="boats", min_table_version=last)
    assert gone.hits == []  # an emptied partition is no error
    with pytest.raises(ApiError) as caught:
        service.delete_item("new/0")
    assert (caught.value.status, caught.value.code) == (404, "unknown_item")


def test_written_items_get_the_vectors_of_the_run(client: httpx.Client, debug_run: str) -> None:
    """An item of the catalogue, written under a new id, lies where its twin lies."""
    run = RunFolder.open(debug_run)
    catalogue = Catalogue.open(run.output("catalogue"))
    columns = ["title", "image", "partition", *catalogue.text_fields]
    twins = catalogue.items(np.arange(40), columns).to_pylist()
    service = Client(str(client.base_url))
    version = service.put_items([{**twin, "item_id": f"twin{n}"} for n, twin in enumerate(twins)]).table_version
    ids = catalogue.items(np.arange(40), ["item_id"])["item_id"].to_pylist()
    for n, item_id in enumerate(ids):
        hits = service.similar([f"twin{n}"], k=3, min_table_version=version).hits
        assert next(hit.score for hit in hits if hit.item_id == item_id) > 0.9999
    for n in range(len(twins)):
        service.delete_item(f"twin{n}")


def test_a_version_that_does_not_come_is_503(client: httpx.Client) -> None:
    answer = client.post("/v1/search", json={"query": "cat", "min_table_version": 10**6})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "version_not_reached")
    assert answer.headers["retry-after"] == "1"


def test_embeddings_are_those_of_the_searches(client: httpx.Client, debug_run: str) -> None:
    model = RunModel.load(RunFolder.open(debug_run))
    vectors = Client(str(client.base_url)).embed(QUERIES * 20)
    np.testing.assert_allclose(vectors, np.tile(model.queries(QUERIES), (20, 1)), atol=1e-4)


def test_an_answer_carries_the_clients_request_id_or_one_of_its_own(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers.get_list("x-request-id") == ["abc-1"]
    own = [client.get("/healthz").headers["x-request-id"] for _ in range(2)]
    assert len(set(own)) == 2


def test_metrics_of_all_replicas_are_on_one_page(client: httpx.Client) -> None:
    """Ray's exporters lag by some seconds. The writes are those of the tests above."""
    wanted = ["serve_num_http_requests", "serve_http_request_latency_ms", "sidray_embedder_rows"]
    wanted += [
        "sidray_recall_last_look_timestamp_seconds",
        "sidray_recall_visible_after_seconds",
    ]  # of the writes above
    until = time.monotonic() + 30
    while time.monotonic() < until:
        text = client.get("/metrics").text
        if all(each in text for each in wanted):
            break
    assert [each for each in wanted if each not in text] == []


def test_events_are_kept_once(client: httpx.Client, debug_run: str) -> None:
    event = {"user_id": "u", "item_id": "i", "action": "click", "ts": "2026-01-31T12:00:00Z"}
    for _ in range(2):
        assert client.post("/v1/events", json={"events": [event]}).status_code == 202
    kept = pq.read_table(Collection.of(RunFolder.open(debug_run)).events).to_pylist()
    assert [(row["user_id"], row["action"]) for row in kept] == [("u", "click")]
