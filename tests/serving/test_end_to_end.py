"""The whole service on Serve, over a run that was trained: its answers against a search in this process."""

from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from sidray.data.catalogue import Catalogue
from sidray.embedding.runtime import RunModel
from sidray.finished import RunFolder
from sidray.retrieval.index import PartitionedIndex
from sidray.search import query_vector
from sidray.serving.run import running_service

pytestmark = pytest.mark.ray
QUERIES = ["cat", "happy face", "a flag", "red heart", "rain", "fruit"]


@pytest.fixture(scope="module")
def client(debug_run: str) -> Iterator[httpx.Client]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with running_service(debug_run, "", "127.0.0.1", port) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)


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
    assert index["items"] == Catalogue.open(run.output("catalogue")).n_items
