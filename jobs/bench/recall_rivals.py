"""The libraries that jobs/bench/recall.py compares with: each holds the same vectors [N, d], sorted by partition, and
searches one partition through its own filter. `settings` ascend in recall; the bench takes the first that suffices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

_BATCH = 10_000


class Rival(Protocol):
    @property
    def settings(self) -> Sequence[int]: ...

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        """The rows found for one vector [d]."""
        ...


def steps(low: int, high: int) -> list[int]:
    """Whole numbers from low to high, each about 1.19 times the one before."""
    count = 4 * max(1, high // low).bit_length()
    return sorted({min(high, round(low * 2 ** (step / 4))) for step in range(count + 1)})


def _parameters(kind: Any, **values: Any) -> Any:
    """FAISS's own stubs do not know what its Python layer takes."""
    return kind(**values)


class Flat:
    """FAISS IndexFlatIP with IDSelectorRange: exact, and it reads the range alone."""

    settings = (0,)

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        self._offsets = offsets
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._index.add(vectors)

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        selector = faiss.IDSelectorRange(self._offsets[partition], self._offsets[partition + 1])
        return np.asarray(
            self._index.search(vector[None], k, params=_parameters(faiss.SearchParameters, sel=selector))[1][0]
        )


class Ivf:
    """FAISS IndexIVFFlat over all partitions with IDSelectorRange; ids ascend in each list, which it is told."""

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        self._offsets = offsets
        lists = max(1, int(len(vectors) ** 0.5))
        self.settings = steps(1, lists)  # lists visited
        self._quantizer = faiss.IndexFlatIP(vectors.shape[1])
        self._index = faiss.IndexIVFFlat(self._quantizer, vectors.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 64 * lists), replace=False)
        self._index.train(vectors[np.sort(rows)])
        for start in range(0, len(vectors), 10 * _BATCH):
            self._index.add(vectors[start : start + 10 * _BATCH])

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        selector = faiss.IDSelectorRange(self._offsets[partition], self._offsets[partition + 1], True)
        chosen = _parameters(faiss.SearchParametersIVF, sel=selector, nprobe=setting)
        return np.asarray(self._index.search(vector[None], k, params=chosen)[1][0])


class Hnswlib:
    """One graph with a filter, which is a Python function of the label."""

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        import hnswlib

        self._offsets = offsets
        self.settings = steps(10, len(vectors))  # ef: it goes on until so many pass the filter
        self._index = hnswlib.Index("ip", vectors.shape[1])
        self._index.init_index(len(vectors), M=16, ef_construction=100)
        self._index.set_num_threads(1)
        self._index.add_items(vectors, np.arange(len(vectors)))

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        low, high = self._offsets[partition], self._offsets[partition + 1]
        self._index.set_ef(setting)
        try:
            found = self._index.knn_query(
                vector[None], min(k, high - low), num_threads=1, filter=lambda label: low <= label < high
            )
        except RuntimeError:  # it found fewer than k
            return np.empty(0, np.int64)
        return np.asarray(found[0][0], np.int64)


class Usearch:
    """One graph; its Python interface has no filter, so that more is fetched and the rest thrown away."""

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        self._offsets = offsets
        self.settings = steps(10, len(vectors))  # neighbours fetched
        self._index = _usearch(vectors)

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        keys = self._index.search(vector, setting, threads=1).keys.astype(np.int64)
        return np.asarray(keys[(keys >= self._offsets[partition]) & (keys < self._offsets[partition + 1])][:k])


class UsearchEach:
    """One graph for each partition: what usearch offers in place of a filter."""

    settings = steps(10, 1000)  # expansion

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        self._offsets = offsets
        self._indexes = [_usearch(vectors[low:high]) for low, high in pairwise(offsets)]

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        index = self._indexes[partition]
        index.expansion_search = setting
        return np.asarray(self._offsets[partition] + index.search(vector, k, threads=1).keys.astype(np.int64))


def _usearch(vectors: Floats) -> Any:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return index


class Lancedb:
    """A table with IVF_FLAT and a bitmap index of the partition, filtered first."""

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        import lancedb
        from lancedb.index import Bitmap, IvfFlat

        lists = max(1, int(len(vectors) ** 0.5))
        self.settings = steps(1, lists)  # lists visited
        codes = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        self._folder = tempfile.TemporaryDirectory()
        rows = pa.table({"row": np.arange(len(vectors)), "part": codes, "vector": column})
        self._table = lancedb.connect(self._folder.name).create_table("items", rows)
        self._table.create_index("vector", config=IvfFlat(distance_type="dot", num_partitions=lists))
        self._table.create_index("part", config=Bitmap())

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        query = self._table.search(vector, vector_column_name="vector").where(f"part = {partition}", prefilter=True)
        query = query.distance_type("dot").limit(k).select(["row", "_distance"])
        query = query.nprobes(setting) if setting else query.bypass_vector_index()
        return np.asarray(query.to_arrow()["row"].to_numpy(), np.int64)


class LancedbFlat(Lancedb):
    """All rows that pass the filter, without the vector index: exact."""

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        super().__init__(vectors, offsets)
        self.settings = [0]


class Milvus:
    """milvus-lite with IVF_FLAT and a filter on the partition's number."""

    def __init__(self, vectors: Floats, offsets: list[int]) -> None:
        from pymilvus import DataType, MilvusClient

        lists = max(1, int(len(vectors) ** 0.5))
        self.settings = steps(1, lists)  # lists visited
        self._folder = tempfile.TemporaryDirectory()
        self._client = MilvusClient(f"{self._folder.name}/milvus.db")
        schema = self._client.create_schema(auto_id=False)
        schema.add_field("row", DataType.INT64, is_primary=True)
        schema.add_field("part", DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
        self._client.create_collection("items", schema=schema)
        codes = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        for start in range(0, len(vectors), _BATCH):
            rows = range(start, min(start + _BATCH, len(vectors)))
            self._client.insert("items", [{"row": n, "part": int(codes[n]), "vector": vectors[n]} for n in rows])
        parameters = self._client.prepare_index_params()
        parameters.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params={"nlist": lists})
        parameters.add_index("part", index_type="INVERTED")
        self._client.create_index("items", parameters)
        self._client.load_collection("items")

    def search(self, vector: Floats, partition: int, k: int, setting: int) -> Ints:
        parameters = {"params": {"nprobe": setting}}
        filtered = f"part == {partition}"
        found = self._client.search("items", [vector], filter=filtered, limit=k, search_params=parameters)
        return np.array([hit["row"] for hit in found[0]], np.int64)


RIVALS: dict[str, Callable[[Floats, list[int]], Rival]] = {
    "flat": Flat,
    "ivf": Ivf,
    "hnswlib": Hnswlib,
    "usearch": Usearch,
    "usearch-each": UsearchEach,
    "lancedb": Lancedb,
    "lancedb-flat": LancedbFlat,
    "milvus": Milvus,
}
