"""A replica's view after any history of writes, folds and rollbacks, against brute force over the table itself."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray import storage
from sidray.embedding.pool import vector_column
from sidray.errors import StorageError
from sidray.retrieval import index, item_table
from sidray.retrieval.coarse import Lists
from sidray.retrieval.collection import Collection
from sidray.serving.follower import Follower
from sidray.serving.view import View
from tests.serving.runs import DIMENSION, MODEL_KEY, tiny_run

COUNT = 8
IDS = [f"i{n:03d}" for n in range(COUNT + 3)]  # the last three are new
PLACES = ("food", "", "toys", "books")
FOREVER = 3600.0


def rows(ids: list[str], seed: int, model_key: str = MODEL_KEY) -> pa.Table:
    random = np.random.default_rng(seed)
    columns = {
        "item_id": ids,
        "title": [f"new {seed}"] * len(ids),
        "partition": [PLACES[n] for n in random.integers(0, len(PLACES), len(ids))],
        "vector": vector_column(random.standard_normal((len(ids), DIMENSION)).astype(np.float32)),
        "model_key": [model_key] * len(ids),
        "sids": pa.array([[seed]] * len(ids), pa.list_(pa.int32())),
        "shop": ["new shop"] * len(ids),
        "thumbnail": pa.array([f"{item_id} {seed}".encode() for item_id in ids], pa.binary()),
    }
    return pa.table(columns)


def agrees(view: View, collection: Collection, seed: int) -> None:
    """Search, items and pictures of the view are those of the table's current rows."""
    table = item_table.current(collection.table).to_pylist()
    own = {row["item_id"]: row for row in table}
    vectors = np.array([row["vector"] for row in table], np.float64).reshape(len(table), DIMENSION)
    assert view.count == len(own)
    random = np.random.default_rng(seed)
    query = random.standard_normal(DIMENSION)
    query /= np.linalg.norm(query)
    scores = dict(zip(own, vectors @ query / np.linalg.norm(vectors, axis=1), strict=True))
    exclude = random.choice(IDS, 3).tolist()
    for partitions in (None, ["food"], ["toys", "books", ""]):
        for k in (1, 4, 50):
            hits = view.search(query.astype(np.float32), k, partitions, exclude)
            wanted = [
                item_id
                for item_id in sorted(scores, key=lambda each: -scores[each])
                if item_id not in exclude and (partitions is None or own[item_id]["partition"] in partitions)
            ][:k]
            assert [hit["item_id"] for hit in hits] == wanted
            np.testing.assert_allclose([hit["score"] for hit in hits], [scores[each] for each in wanted], atol=1e-5)
            for hit in hits:
                for name in ("title", "partition", "sids", "shop"):
                    assert hit[name] == own[hit["item_id"]][name]
    for item_id in IDS:
        item, vector = view.item(item_id), view.vector_of(item_id)
        assert (item is None) == (vector is None) == (item_id not in own)
        if item is not None and vector is not None:
            assert item["title"] == own[item_id]["title"]
            expected = np.array(own[item_id]["vector"]) / np.linalg.norm(own[item_id]["vector"])
            np.testing.assert_allclose(vector, expected, atol=1e-6)
            assert view.thumbnail(item) == own[item_id]["thumbnail"]


step = st.one_of(
    st.tuples(st.just("put"), st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("delete"), st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)),
    st.tuples(st.sampled_from(["refresh", "tidy", "compact", "fold", "rollback"]), st.just([])),
)


@settings(max_examples=25)
@given(steps=st.lists(step, max_size=9), seed=st.integers(0, 1000))
def test_any_history(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str]]], seed: int) -> None:
    collection = Collection.of(tiny_run(tmp_path_factory.mktemp("run"), COUNT))
    follower = Follower(collection, FOREVER)
    writers = [item_table.ItemLog(collection.table), item_table.ItemLog(collection.table)]
    seen = item_table.open_version(collection.table).version
    for number, (kind, ids) in enumerate(steps):
        if kind == "put":
            writers[number % 2].append(rows(ids, seed + number))
        elif kind == "delete":
            writers[number % 2].append(item_table.tombstones(ids))
        elif kind == "compact":
            item_table.compact(collection.table, item_table.open_version(collection.table).version)
        elif kind == "tidy":
            collection.tidy(seen)
        elif kind == "fold":
            collection.fold()
        elif kind == "rollback" and len(collection.pointer().generations) > 1:
            collection.rollback()
            seen = item_table.open_version(collection.table).version
            writers = [item_table.ItemLog(collection.table), item_table.ItemLog(collection.table)]
        elif kind == "refresh":
            follower.refresh()
            agrees(follower.view, collection, seed)
            seen = follower.view.table_version
    follower.refresh()
    agrees(follower.view, collection, seed)
    assert follower.view.table_version == item_table.open_version(collection.table).version
    agrees(Follower(collection, FOREVER).view, collection, seed)  # as a new replica sees it


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection.of(tiny_run(tmp_path, COUNT))


def test_a_view_does_not_change_under_its_reader(collection: Collection) -> None:
    follower = Follower(collection, FOREVER)
    item_table.append(collection.table, rows(IDS[:2], 1))
    follower.refresh()
    before = follower.view
    query = np.ones(DIMENSION, np.float32) / np.sqrt(DIMENSION).astype(np.float32)
    answer = before.search(query, 50, None, [])
    item_table.append(collection.table, rows(IDS, 2))
    item_table.append(collection.table, item_table.tombstones(IDS[:5]))
    follower.refresh()
    assert before.search(query, 50, None, []) == answer
    assert follower.view.search(query, 50, None, []) != answer


def test_a_write_is_told_with_its_age_once(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(collection, FOREVER)
    ages = list[float]()
    monkeypatch.setattr(follower._metrics._visible, "observe", ages.append)
    written = time.time()
    item_table.append(collection.table, rows(IDS[:2], 1))
    item_table.append(collection.table, rows(IDS[:1], 2))
    follower.refresh()
    assert len(ages) == 1
    assert 0 <= ages[0] <= time.time() - written
    collection.tidy(follower.view.table_version)
    follower.refresh()
    assert len(ages) == 1


def test_rows_of_another_model_are_passed_over(collection: Collection) -> None:
    follower = Follower(collection, FOREVER)
    item_table.append(collection.table, rows(IDS[:2], 1, model_key="other-1"))
    follower.refresh()
    assert follower.view.item(IDS[0])["title"] == "title 0"  # type: ignore[index]


def test_a_row_that_comes_late_changes_nothing(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow writer takes its seq first and commits last."""
    slow, fast = item_table.ItemLog(collection.table), item_table.ItemLog(collection.table)
    slow.append(rows(["i005"], 1))
    taken = item_table.time.time_ns()
    fast.append(rows(["i000"], 2))
    follower = Follower(collection, FOREVER)
    monkeypatch.setattr(slow, "_catch_up", lambda: None)
    monkeypatch.setattr("sidray.retrieval.item_table.time.time_ns", lambda: taken)
    slow.append(rows(["i000", "i001"], 3))
    follower.refresh()
    assert [follower.view.item(each)["title"] for each in ("i000", "i001")] == ["new 2", "new 3"]  # type: ignore[index]


def test_a_damaged_generation_is_refused_and_the_one_before_serves(collection: Collection) -> None:
    follower = Follower(collection, FOREVER)
    before = follower.view.generation
    item_table.append(collection.table, rows(IDS[:2], 1))
    generation = collection.fold()
    vectors = Path(collection.index_folder(generation)) / "vectors.npy"
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    follower.refresh()
    assert follower.view.generation == before
    agrees(follower.view, collection, 0)  # what was written is found all the same
    item_table.append(collection.table, rows(IDS[2:4], 2))
    follower.refresh()
    agrees(follower.view, collection, 0)
    mended = collection.fold().name
    follower.refresh()
    assert follower.view.generation == mended != generation.name
    agrees(follower.view, collection, 0)


@pytest.mark.parametrize(
    "error", [StorageError("AWS Error SLOW_DOWN"), RuntimeError("CUDA out of memory"), MemoryError()]
)
def test_a_generation_that_cannot_be_read_now_is_tried_again(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """After a rollback too: rows that are gone must not be served for ever."""
    follower = Follower(collection, FOREVER)
    item_table.append(collection.table, rows([IDS[0]], 1))
    collection.fold()
    follower.refresh()
    collection.rollback()
    load = follower._load_index
    monkeypatch.setattr(follower, "_load_index", partial(_fails, error))
    item_table.append(collection.table, rows(["i007"], 2))
    follower.refresh()
    assert follower.view.item(IDS[0])["title"] == "new 1"  # type: ignore[index]
    assert follower.view.item("i007")["title"] == "new 2"  # type: ignore[index] # the log is read on
    monkeypatch.setattr(follower, "_load_index", load)
    follower.refresh()  # soon after
    assert follower.view.epoch == 0
    monkeypatch.setattr(follower, "_retry_at", 0.0)
    follower.refresh()
    agrees(follower.view, collection, 0)
    assert follower.view.item(IDS[0])["title"] == "title 0"  # type: ignore[index]


def _fails(error: Exception, *_: object, **__: object) -> None:
    raise error


def test_rows_that_could_not_be_taken_in_come_again(collection: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = Follower(collection, FOREVER)
    before = follower.view.table_version
    item_table.append(collection.table, rows(["i000"], 1))
    with monkeypatch.context() as patched:
        patched.setattr("sidray.retrieval.delta.unit", partial(_fails, MemoryError()))
        with pytest.raises(MemoryError):
            follower.refresh()
    assert follower.view.table_version == before
    follower.refresh()
    agrees(follower.view, collection, 0)
    assert follower.view.table_version == before + 1


def test_the_storage_may_go_away(collection: Collection, tmp_path: Path) -> None:
    follower = Follower(collection, FOREVER)
    away = tmp_path / "away"
    Path(collection.uri).rename(away)
    with pytest.raises((OSError, ValueError)):
        follower.refresh()
    assert follower.view.item("i000") is not None
    away.rename(collection.uri)
    item_table.append(collection.table, rows(["i000"], 1))
    follower.refresh()
    agrees(follower.view, collection, 0)


def test_more_hidden_rows_than_a_search_asks_for_at_first(tmp_path: Path) -> None:
    collection = Collection.of(tiny_run(tmp_path, 90))
    ids = [f"i{n:03d}" for n in range(90)]
    item_table.append(collection.table, item_table.tombstones(ids[:40]))
    item_table.append(collection.table, rows(ids[40:80], 1))
    agrees(Follower(collection, FOREVER).view, collection, 0)


@pytest.mark.parametrize("k", [85, 1000])
def test_hidden_rows_are_no_reason_to_search_more_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    run = tiny_run(tmp_path, 4500)
    table = item_table.indexed(storage.join(run.output("table"), "items.lance"))
    index.build(table, run.output("index"), 1, MODEL_KEY, ivf_above=1000)
    collection = Collection.of(run)
    item_table.append(collection.table, rows([f"i{n:03d}" for n in range(0, 600, 3)], 1))
    view, asked, search = Follower(collection, FOREVER).view, list[tuple[int, int]](), Lists.search

    def seen(lists: Lists, queries: np.ndarray, vectors: np.ndarray, near: int, spare: int = 0) -> tuple:
        asked.append((near, spare))
        return search(lists, queries, vectors, near, spare)

    monkeypatch.setattr(Lists, "search", seen)
    vector = np.ones(DIMENSION, np.float32) / np.sqrt(DIMENSION).astype(np.float32)
    exact = {hit["item_id"] for hit in view.search(vector, k, ["food"], [], exact=True)}
    found = {hit["item_id"] for hit in view.search(vector, k, ["food"], [])}
    assert len(found) == k
    assert len(found & exact) / k > 0.98
    assert asked[0] == (k, 16)
    assert max(near for near, _ in asked) <= 1000  # for more the whole partition is searched


def test_a_delta_that_was_thrown_away_leaves_nothing_behind(collection: Collection) -> None:
    view = Follower(collection, FOREVER).view
    names = rows([], 0).column_names
    item_table.append(collection.table, rows(["a", "b"], 1))
    first = item_table.current(collection.table, columns=[*names, "seq", "deleted"]).slice(COUNT)
    thrown = view.delta.plus(first)
    kept = view.delta.plus(first.slice(1))
    assert (kept.row_of("a"), kept.row_of("b"), kept.items[0]["item_id"]) == (None, 0, "b")
    np.testing.assert_array_equal(kept.vectors[0], thrown.vectors[1])
