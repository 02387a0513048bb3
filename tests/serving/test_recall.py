"""Recall against brute force in float64."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray import storage
from sidray.finished import RunFolder
from sidray.retrieval import index, item_table
from sidray.serving.messages import Found, RecallQuery, Refusal, SimilarFound, SimilarQuery
from sidray.serving.recall import Recall
from sidray.serving.settings import RecallSettings
from sidray.serving.view import View
from tests.serving.runs import DIMENSION, MODEL_KEY, PARTITIONS, STEPS, tiny_run, vectors_of

COUNT = 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("run"), COUNT)


@pytest.fixture(scope="module")
def recall(run: RunFolder) -> Recall:
    return Recall(run, RecallSettings())


def query(**changes: object) -> RecallQuery:
    values = {"vector": np.ones(DIMENSION, np.float32), "model_key": MODEL_KEY, "k": 5, "partitions": None}
    return RecallQuery(**{**values, "exclude": [], "fields": [], **changes})  # type: ignore[arg-type]


def ask(recall: Recall, **changes: object) -> Found | Refusal:
    return asyncio.run(recall.search(query(**changes)))


def expected(
    vector: np.ndarray, k: int, partitions: list[str] | None, exclude: list[str], count: int = COUNT
) -> list[tuple[str, float]]:
    items = vectors_of(count).astype(np.float64)
    scores = items @ vector / np.linalg.norm(items, axis=1) / np.linalg.norm(vector)
    rows = [n for n in range(count) if partitions is None or PARTITIONS[n % 3] in partitions]
    rows = [n for n in rows if f"i{n:03d}" not in exclude]
    return [(f"i{n:03d}", scores[n]) for n in sorted(rows, key=lambda n: -scores[n])[:k]]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    k=st.sampled_from([1, 3, 1000]),
    partitions=st.none() | st.lists(st.sampled_from(PARTITIONS), min_size=1, max_size=4),
    exclude=st.lists(st.integers(0, COUNT + 5), max_size=30),
)
def test_equal_to_brute_force(
    recall: Recall, seed: int, k: int, partitions: list[str] | None, exclude: list[int]
) -> None:
    vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
    left_out = [f"i{n:03d}" for n in exclude]
    found = ask(recall, vector=vector, k=k, partitions=partitions, exclude=left_out)
    assert isinstance(found, Found)
    wanted = expected(vector.astype(np.float64), k, partitions, left_out)
    assert [hit["item_id"] for hit in found.hits] == [item_id for item_id, _ in wanted]
    np.testing.assert_allclose([hit["score"] for hit in found.hits], [score for _, score in wanted], atol=1e-5)
    for hit in found.hits:
        number = int(hit["item_id"][1:])
        assert (hit["title"], hit["partition"], hit["fields"]) == (f"title {number}", PARTITIONS[number % 3], {})


@settings(max_examples=30)
@given(
    history=st.lists(st.integers(0, COUNT + 3), min_size=1, max_size=6, unique=True),
    k=st.sampled_from([1, 5, 1000]),
    partitions=st.none() | st.lists(st.sampled_from(PARTITIONS), min_size=1, max_size=2),
    exclude_seen=st.booleans(),
    recency=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_similar_items_equal_brute_force(
    recall: Recall, history: list[int], k: int, partitions: list[str] | None, exclude_seen: bool, recency: float
) -> None:
    ids = [f"i{n:03d}" for n in history]
    answer = asyncio.run(recall.similar(SimilarQuery(ids, k, partitions, exclude_seen, [], recency=recency)))
    known = [n for n in history if n < COUNT]
    if not known:
        assert isinstance(answer, Refusal)
        assert answer.status == 404
        return
    items = vectors_of(COUNT).astype(np.float64)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    weights = [recency**position for position, n in enumerate(history) if n < COUNT]
    scores = (items @ items[known].T * weights).max(axis=1)
    rows = [n for n in range(COUNT) if partitions is None or PARTITIONS[n % 3] in partitions]
    rows = sorted((n for n in rows if not (exclude_seen and n in known)), key=lambda n: -scores[n])[:k]
    assert isinstance(answer, SimilarFound)
    assert answer.unknown == [f"i{n:03d}" for n in history if n >= COUNT]
    np.testing.assert_allclose([hit["score"] for hit in answer.hits], scores[rows], atol=1e-5)
    assert {hit["item_id"] for hit in answer.hits if hit["score"] > scores[rows].min() + 1e-5} == {
        f"i{n:03d}" for n in rows if scores[n] > scores[rows].min() + 1e-5
    }


def test_fields_are_those_of_the_item(recall: Recall) -> None:
    found = ask(recall, k=COUNT, fields=["sids", "shop"])
    assert isinstance(found, Found)
    assert len(found.hits) == COUNT
    for hit in found.hits:
        number = int(hit["item_id"][1:])
        shop = None if number % 4 == 0 else f"shop {number}"
        assert hit["fields"] == {"sids": [number, number + 1], "shop": shop}


def test_a_clients_own_vector_needs_no_model_key(recall: Recall) -> None:
    assert isinstance(ask(recall, model_key=""), Found)


@pytest.mark.parametrize(
    ("changes", "status", "code", "says"),
    [
        ({"model_key": "tiny-9999"}, 503, "model_changed", "tiny-9999"),
        ({"vector": np.ones(DIMENSION + 1, np.float32)}, 422, "wrong_dimension", "7 values"),
        ({"partitions": ["food", "fodd"]}, 404, "unknown_partition", "did you mean 'food'?"),
        ({"fields": ["shops"]}, 422, "unknown_field", "did you mean 'shop'?"),
        ({"fields": ["vector"]}, 422, "unknown_field", "fields: shop, sids"),
    ],
)
def test_refusals(recall: Recall, changes: dict[str, object], status: int, code: str, says: str) -> None:
    refusal = ask(recall, **changes)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (status, code)
    assert says in refusal.message


def test_what_it_serves(tmp_path: Path) -> None:
    recall = Recall(tiny_run(tmp_path), RecallSettings())
    told = asyncio.run(recall.describe())
    assert (told.model_key, told.generation, told.table_version) == (MODEL_KEY, STEPS["index"], 1)
    assert (told.dimension, told.items, told.partitions, told.fields) == (DIMENSION, COUNT, 3, ["shop", "sids"])
    assert (told.delta, told.run) == (0, "tiny-1-model")
    assert 0 <= told.lag_seconds < 10


async def test_a_picture_that_is_slow_to_fetch_holds_up_no_search(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recall, fetched = Recall(run, RecallSettings(threads=1)), threading.Event()

    def fetch(view: View, item: dict[str, Any]) -> bytes:
        fetched.wait(10)
        return b"jpeg"

    monkeypatch.setattr(View, "thumbnail", fetch)
    picture = asyncio.create_task(recall.thumbnail("i001"))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        assert isinstance(await recall.search(query()), Found)
    assert not picture.done()
    fetched.set()
    assert await picture == b"jpeg"


def test_a_sample_of_searches_is_held_against_exact_ones(tmp_path: Path) -> None:
    """Lists of which only one is searched: the shares are what is missing of brute force."""
    run = tiny_run(tmp_path, 400)
    table = item_table.indexed(storage.join(run.output("table"), "items.lance"))
    manifest = index.build(table, run.output("index"), 1, MODEL_KEY, ivf_above=50)
    few = manifest.model_copy(update={"probes": {name: [1, 1, 1] for name in manifest.probes}})
    storage.write_bytes(storage.join(run.output("index"), "manifest.json"), few.model_dump_json().encode())
    recall = Recall(run, RecallSettings(check_every=2))
    seen: list[float] = []
    recall._recall.observe = seen.append  # type: ignore[method-assign]
    shares = []
    for seed in range(8):
        vector = np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)
        found = ask(recall, vector=vector, partitions=["food"])
        assert isinstance(found, Found)
        wanted = {item_id for item_id, _ in expected(vector.astype(np.float64), 5, ["food"], [], 400)}
        shares.append(len(wanted & {hit["item_id"] for hit in found.hits}) / 5)
        if recall._checking:
            recall._checking.result()
    assert seen == shares[1::2]
    assert 0 < min(shares) < 1


async def test_checks_do_not_queue(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    recall, checked, gate = Recall(run, RecallSettings(check_every=1)), list[RecallQuery](), threading.Event()

    def check(view: View, asked: RecallQuery, found: Found) -> None:
        checked.append(asked)
        gate.wait(10)

    monkeypatch.setattr(recall, "_check", check)
    for _ in range(4):
        await recall.search(query())
    gate.set()
    await asyncio.to_thread(wait, [recall._checking])
    await recall.search(query())
    recall._checks.shutdown()
    assert len(checked) == 2


async def test_a_client_that_has_gone_ends_its_searches(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    recall, searches, gate, search = Recall(run, RecallSettings()), list[object](), threading.Event(), View.search

    def slow(view: View, *args: Any) -> list[dict[str, Any]]:
        searches.append(args)
        gate.wait(10)
        return search(view, *args)

    monkeypatch.setattr(View, "search", slow)
    history = SimilarQuery([f"i{n:03d}" for n in range(20)], 5, None, True, [])
    asking = asyncio.create_task(recall.similar(history))
    while not searches:
        await asyncio.sleep(0.001)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    gate.set()
    recall._searchers.shutdown()
    assert len(searches) == 1
