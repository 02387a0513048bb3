"""Partitions that are cut into lists: against brute force, exact where it is promised, 0.99 of it elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.retrieval.coarse import Lists, cut
from sidray.retrieval.exact import top_k, unit
from sidray.retrieval.index import PartitionedIndex, build
from tests.retrieval.test_index import items


def clustered(count: int, seed: int) -> np.ndarray:
    """Items [count, 16] around 60 centres that do not depend on the seed."""
    centres = np.random.default_rng(99).normal(size=(60, 16))
    rng = np.random.default_rng(seed)
    return centres[rng.integers(60, size=count)] + 0.5 * rng.normal(size=(count, 16))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> PartitionedIndex:
    """Partitions big (5,000 items, cut), mid (300) and other (2,000, cut)."""
    table = items(clustered(7300, seed=0), ["big"] * 5000 + ["mid"] * 300 + ["other"] * 2000)
    folder = str(tmp_path_factory.mktemp("large"))
    build(table, folder, table_version=1, model_key="m", ivf_above=1000)
    return PartitionedIndex.load(folder, threads=1)


def codes(index: PartitionedIndex) -> np.ndarray:
    """The number of each row's partition."""
    return np.repeat(np.arange(len(index.partitions)), np.diff(index.manifest.offsets))


@settings(max_examples=40)
@given(
    sizes=st.tuples(st.integers(0, 10**6), st.integers(0, 80), st.integers(0, 12), st.integers(0, 30)),
    k=st.integers(1, 90) | st.just(1001),
    kind=st.sampled_from(["normal", "few values", "equal", "zero"]),
    asked=st.none() | st.lists(st.sampled_from("abc"), max_size=3),
)
def test_what_is_found_is_right_and_enough(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple[int, int, int, int], k: int, kind: str, asked: list[str]
) -> None:
    seed, count, queries, ivf_above = sizes
    rng = np.random.default_rng(seed)
    vectors = {
        "normal": rng.normal(size=(count, 6)),
        "few values": rng.integers(0, 2, size=(count, 6)),
        "equal": np.ones((count, 6)),
        "zero": np.zeros((count, 6)),
    }[kind]
    folder = str(tmp_path_factory.mktemp("index"))
    build(items(vectors, list(rng.choice(list("abc"), count, p=[0.7, 0.2, 0.1]))), folder, 1, "m", ivf_above)
    index = PartitionedIndex.load(folder, threads=1)
    asked = [name for name in asked if name in index.partitions] if asked is not None else None
    query_vecs = rng.normal(size=(queries, 6))
    scores, rows = index.search(query_vecs, k, asked)
    inside = np.array([asked is None or index.partitions[code] in asked for code in codes(index)], dtype=int)
    best, _ = top_k(query_vecs, index.vectors, k, inside.reshape(-1), np.ones(queries, int))
    cosines = unit(query_vecs) @ index.vectors.T
    for row, score, most, cosine in zip(rows, scores, best, cosines, strict=True):
        found = row[row >= 0]
        assert len(found) == len(set(found)) == min(k, inside.sum())
        assert inside[found].all()
        np.testing.assert_allclose(score[row >= 0], cosine[found], atol=1e-6)
        assert (np.diff(score[row >= 0]) <= 0).all()
        assert (score[row < 0] == -np.inf).all()
        assert (score <= most + 1e-6).all()
        if k > 1000 or not set(asked if asked is not None else index.partitions) & set(index.manifest.probes):
            np.testing.assert_allclose(score, most, atol=1e-6)


@pytest.mark.parametrize(("k", "least"), [(1, 0.99), (10, 0.99), (60, 0.99), (700, 0.99), (1001, 1.0)])
def test_recall_in_lists(large: PartitionedIndex, k: int, least: float) -> None:
    query_vecs = clustered(200, seed=1)  # held out: the probes were counted on other vectors
    for name in ("big", "other"):
        _, rows = large.search(query_vecs, k, [name])
        wanted = np.full(200, large.partitions.index(name))
        _, true = top_k(query_vecs, large.vectors, k, codes(large), wanted)
        recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(rows, true, strict=True)])
        assert recall >= least
    assert 1 < large.manifest.probes["big"][0] < 70  # of 142 lists


def test_partitions_below_the_size_stay_exact_and_in_the_order_of_items(large: PartitionedIndex) -> None:
    assert set(large.manifest.probes) == {"big", "other"}
    query_vecs = clustered(20, seed=2)
    scores, rows = large.search(query_vecs, 10, ["mid"])
    true_scores, true = top_k(query_vecs, large.vectors, 10, codes(large), np.full(20, 1))
    np.testing.assert_array_equal(rows, true)
    np.testing.assert_allclose(scores, true_scores, atol=1e-6)
    names = [item["item_id"] for item in large.fields(np.flatnonzero(codes(large) == 1))]
    assert names == sorted(names)


def test_several_partitions_are_merged(large: PartitionedIndex) -> None:
    query_vecs = clustered(30, seed=3)
    for asked in (None, ["mid", "big"], ["other", "big"]):
        scores, rows = large.search(query_vecs, 10, asked)
        parts = [large.search(query_vecs, 10, [name]) for name in sorted(asked or large.partitions)]
        joined = np.concatenate([part[0] for part in parts], axis=1)
        np.testing.assert_array_equal(scores, -np.sort(-joined, axis=1)[:, :10])
        assert all(set(row) <= set(np.concatenate([part[1][i] for part in parts])) for i, row in enumerate(rows))


def test_items_and_vectors_move_together(tmp_path: Path) -> None:
    table = items(clustered(600, seed=4), ["a", "b", "b"] * 200)
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(600)))
    manifest = build(table, str(tmp_path / "one"), 1, "m", ivf_above=100)
    assert build(shuffled, str(tmp_path / "two"), 1, "m", ivf_above=100) == manifest
    index = PartitionedIndex.load(str(tmp_path / "one"), threads=1)
    rows = index.rows_of(table["item_id"].to_pylist())
    assert index.fields(rows) == table.select(["item_id", "title", "partition", "sids"]).to_pylist()
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(600, 16)
    np.testing.assert_allclose(index.vectors[rows], unit(vectors), atol=1e-6)


def test_a_cut_covers_its_rows() -> None:
    vectors = unit(clustered(400, seed=5))
    order, starts, centroids, probes = cut(vectors)
    assert sorted(order) == list(range(400))
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    assert len(starts) == len(centroids)
    lists = np.split(order, starts[1:])
    assert all((np.diff(rows) > 0).all() for rows in lists)
    nearest = np.argmax(vectors @ centroids.T, axis=1)
    assert all((nearest[rows] == number).all() for number, rows in enumerate(lists))
    assert probes == sorted(probes)


def test_lists_that_hold_nothing_are_dropped() -> None:
    for value in (0.0, 0.5):
        _, starts, centroids, probes = cut(np.full((50, 4), value, np.float32))
        assert (starts.tolist(), centroids.shape, probes) == ([0], (1, 4), [1, 1, 1])


def test_only_the_chosen_lists_are_read(large: PartitionedIndex) -> None:
    """With one list in place of those that were counted, some of the nearest must be missed, however it is asked."""
    lists = {span: Lists(each._bounds, each._centroids, [1, 1, 1]) for span, each in large._lists.items()}
    narrow = PartitionedIndex(large.manifest, large.vectors, lists, large._items, large._by_id, threads=1)
    query_vecs = clustered(50, seed=6)
    for asked in (None, ["big"], ["big", "mid"], ["mid", "other"]):
        assert (narrow.search(query_vecs, 10, asked)[1] != large.search(query_vecs, 10, asked)[1]).mean() > 0


@pytest.mark.parametrize(("k", "probes"), [(10, [2, 142, 142]), (100, [2, 8, 142]), (1000, [2, 8, 60])])
def test_spare_rows_are_of_the_lists_that_k_needs(large: PartitionedIndex, k: int, probes: list[int]) -> None:
    span = next(span for span in large._lists if span[1] - span[0] == 5000)
    lists = Lists(large._lists[span]._bounds, large._lists[span]._centroids, probes)
    queries = unit(clustered(20, seed=7))
    scores, rows = lists.search(queries, large._plain, k, spare=16)
    assert rows.shape == (20, k + 16)
    np.testing.assert_array_equal(rows[:, :k], lists.search(queries, large._plain, k)[1])
    assert (rows != lists.search(queries, large._plain, k + 16)[1]).any()
    assert (np.diff(scores) <= 0).all()


def test_spare_rows_of_several_partitions_and_of_fewer_than_asked(large: PartitionedIndex) -> None:
    query_vecs = clustered(10, seed=8)
    for asked, k, spare in ((None, 10, 5), (["mid", "big"], 10, 5), (["mid"], 290, 40)):
        found = large.search(query_vecs, k, asked, exact=True, spare=spare)
        np.testing.assert_array_equal(found, large.search(query_vecs, k + spare, asked, exact=True))


def test_lists_with_too_few_rows_are_not_enough() -> None:
    """Three near lists of one row each: five neighbours need the whole partition."""
    vectors = np.eye(8, dtype=np.float32)[[0, 1, 2, 3, 3, 3, 3]]
    lists = Lists(np.array([0, 1, 2, 3, 7]), np.eye(8, dtype=np.float32)[:4], [3, 3, 3])
    query = unit(np.array([[4.0, 3, 2, 1, 0, 0, 0, 0]]))
    assert lists.search(query, vectors, 3)[1].tolist() == [[0, 1, 2]]
    scores, rows = lists.search(query, vectors, 5)
    assert rows[0, :3].tolist() == [0, 1, 2]
    assert set(rows[0, 3:]) < {3, 4, 5, 6}
    np.testing.assert_allclose(scores[0], np.array([4, 3, 2, 1, 1]) / np.sqrt(30), atol=1e-6)
