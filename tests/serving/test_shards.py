"""A table in three shards answers as the whole one does, after any history."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.index import PartitionedIndex
from sidray.retrieval.shards import Shard, all_shards
from sidray.serving.messages import Found, RecallQuery, Refusal, SimilarQuery
from sidray.serving.recall import Recall
from sidray.serving.settings import RecallSettings
from sidray.serving.shards import Shards
from tests.serving.runs import DIMENSION, MODEL_KEY, tiny_run
from tests.serving.test_view import COUNT, IDS, rows

SETTINGS = RecallSettings(poll_ms=1e9)  # looks when it is told to
OF = 3
UNKNOWN = "z99"


def refreshed(*recalls: Recall) -> None:
    for recall in recalls:
        recall._follower.refresh()


def outcome(answer: Any) -> Any:
    """What must be equal, whatever the order of equal scores."""
    if isinstance(answer, Found):
        hits = [{**hit, "score": round(hit["score"], 5)} for hit in answer.hits]
        return (
            sorted(hits, key=lambda hit: (-hit["score"], hit["item_id"])),
            answer.index.table_version,
            getattr(answer, "unknown", None),
        )
    return (answer.status, answer.code) if isinstance(answer, Refusal) else answer


async def agree(run: RunFolder, whole: Recall, shards: Shards, seed: int) -> None:
    random = np.random.default_rng(seed)
    vector = random.standard_normal(DIMENSION).astype(np.float32)
    vector /= np.linalg.norm(vector)
    table = item_table.current(Collection.of(run).table, columns=["partition"])
    places = table["partition"].unique().to_pylist()
    for partitions in (None, *([name] for name in places), places or None, ["nowhere"], [*places, "nowhere"]):
        for k in (1, 4, 50):
            query = RecallQuery(vector, MODEL_KEY, k, partitions, IDS[:2], ["sids", "shop"])
            assert outcome(await shards.search(query)) == outcome(await whole.search(query))
            for history in (IDS[2:3], [*IDS[:4], UNKNOWN], [UNKNOWN], [UNKNOWN, "z98"]):
                liked = SimilarQuery(history, k, partitions, bool(k % 2), ["sids"], recency=0.9)
                assert outcome(await shards.similar(liked)) == outcome(await whole.similar(liked))
    for item_id in (*IDS, UNKNOWN):
        assert outcome(await shards.item(item_id)) == outcome(await whole.item(item_id))
        assert outcome(await shards.thumbnail(item_id)) == outcome(await whole.thumbnail(item_id))
    described, expected = await shards.describe(), await whole.describe()
    for name in ("items", "table_version", "model_key", "fields"):
        assert getattr(described, name) == getattr(expected, name)


step = st.one_of(
    st.tuples(st.just("put"), st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)),
    st.tuples(st.just("delete"), st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True)),
    st.tuples(st.sampled_from(["fold", "refresh"]), st.just([])),
)


@settings(max_examples=10)
@given(steps=st.lists(step, max_size=6), seed=st.integers(0, 1000))
def test_any_history(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[str]]], seed: int) -> None:
    run = tiny_run(tmp_path_factory.mktemp("run"), COUNT)
    collection = Collection.of(run)
    whole = Recall(run, SETTINGS)
    collection.fold(OF)
    parts = [Recall(run, SETTINGS, shard) for shard in all_shards(OF)]
    for number, (kind, ids) in enumerate(steps):
        if kind == "put":
            item_table.append(collection.table, rows(ids, seed + number))
        elif kind == "delete":
            item_table.append(collection.table, item_table.tombstones(ids))
        elif kind == "fold":
            assert collection.fold().shards == OF
        refreshed(whole, *parts)
    refreshed(whole, *parts)
    asyncio.run(agree(run, whole, Shards(parts), seed))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return tiny_run(tmp_path, COUNT)


def test_a_shard_holds_its_partitions_alone(run: RunFolder) -> None:
    collection = Collection.of(run)
    generation = collection.fold(OF)
    assert (generation.shards, collection.fold(), collection.fold(OF)) == (OF, generation, generation)
    counts = []
    for shard in all_shards(OF):
        index = PartitionedIndex.load(collection.index_folder(generation, shard.number), threads=1)
        assert all(shard.has(name) for name in index.partitions)
        counts.append(index.manifest.count)
    assert sum(counts) == COUNT
    collection.check()
    (Path(collection.index_folder(generation, 1)) / "manifest.json").unlink()
    with pytest.raises(UserError, match="sidray reindex RUN"):
        collection.check()
    assert collection.fold() != generation
    collection.check()


def test_a_replica_keeps_the_number_of_shards_that_it_has(run: RunFolder) -> None:
    collection = Collection.of(run)
    with pytest.raises(UserError, match=r"no generation .* has 3 shards"):
        Recall(run, SETTINGS, Shard(0, OF))
    first = Recall(run, SETTINGS)
    two = collection.fold(2)
    refreshed(first)
    item_table.append(collection.table, rows(["i001"], 5))
    refreshed(first)
    view = first._follower.view
    assert view.generation == collection.pointer().generations[0].name
    assert (view.item("i001") or {})["title"] == "new 5"  # it goes on following
    assert Recall(run, SETTINGS, Shard(1, 2))._follower.view.generation == two.name
    with pytest.raises(UserError, match="no generation before the current one that has 2 shards too"):
        collection.rollback()  # a service that was started since could not follow
    collection.fold(1)
    assert collection.rollback().name == view.generation
    refreshed(first)
    assert (first._follower.view.item("i001") or {})["title"] == "title 1"


def test_only_the_shards_of_a_search_are_asked() -> None:
    asked: list[int] = []

    class Counting:
        def __init__(self, number: int) -> None:
            self.number = number

        async def search(self, query: RecallQuery) -> Refusal:
            asked.append(self.number)
            return Refusal(404, "unknown_partition", "", None)

    shards = Shards([Counting(number) for number in range(OF)])  # type: ignore[list-item]
    name = next(name for name in map(str, range(100)) if Shard(1, OF).has(name))
    query = RecallQuery(np.ones(DIMENSION, np.float32), "", 1, [name], [], [])
    asyncio.run(shards.search(query))
    assert asked == [1]
