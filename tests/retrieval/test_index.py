"""The partitioned index against brute force, and against files that were damaged."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from sidray import storage
from sidray.errors import UserError
from sidray.retrieval import index as index_module
from sidray.retrieval.index import FORMAT, PartitionedIndex, build


def items(vectors: np.ndarray, partitions: list[str], model_key: str = "m") -> pa.Table:
    count, dimension = vectors.shape
    flat = pa.array(vectors.astype(np.float32).ravel())
    return pa.table(
        {
            "item_id": pa.array([f"item-{(n * 7919) % 10_007}" for n in range(count)], pa.string()),
            "title": pa.array([f"title {n}" for n in range(count)], pa.string()),
            "partition": pa.array(partitions, pa.string()),
            "sids": pa.array([[n, n + 1] for n in range(count)], pa.list_(pa.int32())),
            "vector": pa.FixedSizeListArray.from_arrays(flat, dimension),
            "model_key": pa.array([model_key] * count, pa.string()),
        }
    )


def make(folder: Path, vectors: np.ndarray, partitions: list[str]) -> PartitionedIndex:
    build(items(vectors, partitions), str(folder), table_version=3, model_key="m")
    return PartitionedIndex.load(str(folder), threads=1)


def test_ties_and_duplicates_of_a_partition_name(tmp_path: Path) -> None:
    index = make(tmp_path, np.ones((6, 2)), ["a", "b"] * 3)
    scores, rows = index.search(np.ones((1, 2)), 5, ["a", "a"])
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 1, 2]
    np.testing.assert_allclose(scores[0], [1, 1, 1, -np.inf, -np.inf], atol=1e-6)
    assert index.search(np.ones((2, 2)), 2, [])[1].tolist() == [[-1, -1], [-1, -1]]


def test_fields_and_rows_of_agree(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = items(rng.normal(size=(50, 4)), [str(n % 5) for n in range(50)])
    table = table.append_column("shop", pa.array([f"shop {n}" for n in range(50)]))
    build(table, str(tmp_path), table_version=1, model_key="m")
    index = PartitionedIndex.load(str(tmp_path), threads=1)
    wanted = table["item_id"].to_pylist()
    rows = index.rows_of([*wanted, "unknown", "", "zzz"])
    assert rows[-3:].tolist() == [-1, -1, -1]
    expected = table.select(["item_id", "title", "partition", "sids", "shop"]).to_pylist()
    assert index.fields(rows[:-3]) == expected
    unit = table["vector"].combine_chunks().flatten().to_numpy().reshape(50, 4).astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(index.vectors[rows[:-3]], unit, atol=1e-6)


def test_partitions_are_contiguous_and_mapped(tmp_path: Path) -> None:
    index = make(tmp_path, np.random.default_rng(0).normal(size=(30, 4)), [str(n % 3) for n in range(30)])
    assert isinstance(index.vectors, np.memmap)
    assert index.manifest.offsets == [0, 10, 20, 30]
    assert [row["partition"] for row in index.fields(range(30))] == ["0"] * 10 + ["1"] * 10 + ["2"] * 10
    assert index.manifest.table_version == 3
    assert index.manifest.metric == "cosine"


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    table = items(np.random.default_rng(0).normal(size=(40, 4)), [str(n % 3) for n in range(40)])
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(40)))
    first = build(table, str(tmp_path / "a"), 1, "m")
    assert build(shuffled, str(tmp_path / "b"), 1, "m") == first
    moved = items(np.random.default_rng(0).normal(size=(40, 4)), [str(n % 4) for n in range(40)])
    assert build(moved, str(tmp_path / "c"), 1, "m").sha256 != first.sha256


@pytest.mark.parametrize("name", ["vectors.npy", "centroids.npy", "lists.npy", "items.arrow", "by_id.npy"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, damage: str) -> None:
    make(tmp_path, np.random.default_rng(0).normal(size=(20, 4)), ["p"] * 20)
    data = (tmp_path / name).read_bytes()
    if damage == "remove":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(data[:-1] if damage == "truncate" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name} is missing, truncated or altered"):
        PartitionedIndex.load(str(tmp_path), threads=1)


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    make(tmp_path, np.ones((3, 2)), ["p"] * 3)
    path = tmp_path / "manifest.json"
    good = json.loads(path.read_text())
    for text in (
        path.read_text()[:-20],
        json.dumps(good | {"count": "x"}),
        json.dumps(good | {"format": FORMAT + 1}),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json"):
            PartitionedIndex.load(str(tmp_path), threads=1)
    path.write_text(json.dumps(good | {"sha256": {"../../etc/passwd": ""}}))
    with pytest.raises(UserError, match=r"manifest\.json"):
        PartitionedIndex.load(str(tmp_path), threads=1)
    for broken in (good | {"count": 4}, good | {"probes": {"q": [1, 1, 1]}}):
        path.write_text(json.dumps(broken))
        with pytest.raises(UserError, match="disagree with its manifest"):
            PartitionedIndex.load(str(tmp_path), threads=1)
    path.unlink()
    with pytest.raises(UserError, match="there is no index"):
        PartitionedIndex.load(str(tmp_path), threads=1)


def test_bad_queries_are_explained(tmp_path: Path) -> None:
    index = make(tmp_path, np.ones((2, 3)), ["Menswear", "Ladieswear"])
    with pytest.raises(UserError, match=r"'menswear' \(did you mean 'Menswear'\?\)"):
        index.search(np.ones((1, 3)), 1, ["menswear"])
    with pytest.raises(UserError, match="the index has dimension 3"):
        index.search(np.ones((1, 4)), 1)
    with pytest.raises(UserError, match="NaN"):
        index.search(np.full((1, 3), np.nan), 1)
    with pytest.raises(UserError, match="k is 0"):
        index.search(np.ones((1, 3)), 0)


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_an_item_that_occurs_twice_is_found_wherever_blocks_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(index_module, "_BLOCK", block)
    good = items(np.eye(4), ["p", "q", "p", "q"])
    assert build(good, str(tmp_path), 1, "m").count == 4
    for row in range(4):
        with pytest.raises(UserError, match=f"{good['item_id'][row]}' occurs twice"):
            build(pa.concat_tables([good, good.slice(row, 1)]), str(tmp_path), 1, "m")


def test_a_table_that_cannot_be_served_is_refused(tmp_path: Path) -> None:
    good = items(np.eye(3), ["p"] * 3)
    with pytest.raises(UserError, match="is of model 'm', the index is for 'n'"):
        build(good, str(tmp_path), 1, "n")
    with pytest.raises(UserError, match="item-0' occurs twice"):
        build(pa.concat_tables([good, items(np.eye(3)[:1], ["q"])]), str(tmp_path), 1, "m")
    with pytest.raises(UserError, match="vector of item 'item-7919' has NaN"):
        build(items(np.array([[1.0, 0], [np.inf, 0]]), ["p"] * 2), str(tmp_path), 1, "m")
    without = good.set_column(4, "vector", pa.array([[1.0, 0, 0], None, [0, 0, 1.0]], pa.list_(pa.float32(), 3)))
    with pytest.raises(UserError, match="item 'item-7919' has no vector"):
        build(without, str(tmp_path), 1, "m")
    assert not (tmp_path / "manifest.json").exists()


def test_a_remote_index_is_staged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem that is not local: a folder behind a pyarrow SubTreeFileSystem."""
    remote = tmp_path / "bucket"
    remote.mkdir()
    (tmp_path / "stage").mkdir()
    subtree, plain = pafs.SubTreeFileSystem(str(remote), pafs.LocalFileSystem()), storage.open_uri
    opener = lambda uri: (subtree, uri[len("far://") :]) if uri.startswith("far://") else plain(uri)  # noqa: E731
    monkeypatch.setattr(storage, "open_uri", opener)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "stage"))
    vectors = np.random.default_rng(0).normal(size=(20, 4))
    build(items(vectors, ["p"] * 20), "far://gen-1", 1, "m")
    index = PartitionedIndex.load("far://gen-1", threads=1)
    (remote / "gen-1" / "vectors.npy").unlink()  # the second load must not need it
    again = PartitionedIndex.load("far://gen-1", threads=1)
    np.testing.assert_array_equal(again.search(vectors, 3)[1], index.search(vectors, 3)[1])
    assert len(list((tmp_path / "stage" / "sidray-index").iterdir())) == 1
    with pytest.raises(UserError, match="there is no index"):
        PartitionedIndex.load("far://gen-2", threads=1)


def test_the_number_of_threads_holds_in_every_thread(tmp_path: Path) -> None:
    """OpenMP keeps it for each thread: set once at loading, it would not reach the threads that search."""
    index = make(tmp_path, np.ones((3, 2)), ["p"] * 3)
    index.threads = 7
    seen: list[int] = []

    def search() -> None:
        for queries in (20, 2):  # no more threads than queries
            index.search(np.ones((queries, 2)), 1)
            seen.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert seen == [7, 2]
