"""The publishing steps: final vectors + catalogue -> item table (Lance log) -> FAISS index by partition.

table: items.lance;  index: the folder that PartitionedIndex.load opens. Both carry the model_key of the towers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.data.content import content_hash, thumbnail
from sidray.datasets import open_dataset
from sidray.embedding.pool import read_vectors, vector_column
from sidray.retrieval import index as index_module
from sidray.retrieval import item_table
from sidray.steps import Summary, Work

TABLE_VERSION = 1
INDEX_VERSION = 4
BATCH = 2048


def publish_table(model_key: str, work: Work) -> Summary:
    """Inputs: catalogue, embed, and sids when the recipe has them."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    vectors = storage.join(work.inputs["embed"], "items.lance")
    dimension = open_dataset(vectors).schema.field("vector").type.list_size
    uri = work.path("items.lance")
    item_table.create(
        uri, _rows(catalogue, vectors, work.inputs.get("sids"), model_key), dimension, catalogue.text_fields
    )
    return {"items": catalogue.n_items, "dimension": dimension, "model_key": model_key}


def _rows(catalogue: Catalogue, vectors: str, sids: str | None, model_key: str) -> Iterator[pa.RecordBatch]:
    columns = ["item_id", "title", "partition", *catalogue.text_fields]
    codes = open_dataset(storage.join(sids, "sids.lance")) if sids else None
    for start in range(0, catalogue.n_items, BATCH):
        rows = np.arange(start, min(start + BATCH, catalogue.n_items))
        table = catalogue.items(rows, [*columns, "image"])
        plain = table.to_pylist()
        images = [row["image"] for row in plain]
        texts = [[row[field] or "" for field in catalogue.text_fields] for row in plain]
        hashes = [
            content_hash(row["title"], fields, row["partition"], image)
            for row, fields, image in zip(plain, texts, images, strict=True)
        ]
        out = table.select(columns).append_column("vector", vector_column(read_vectors(vectors, "vector", rows)))
        out = out.append_column("content_hash", pa.array(hashes)).append_column(
            "model_key", pa.array([model_key] * len(rows))
        )
        out = out.append_column("thumbnail", pa.array([thumbnail(image) for image in images], pa.binary()))
        if codes is not None:
            out = out.append_column("sids", codes.take(rows, columns=["sids"])["sids"])
        yield from out.combine_chunks().to_batches()


def build_index(model_key: str, work: Work) -> Summary:
    """Inputs: table."""
    table = storage.join(work.inputs["table"], "items.lance")
    version = int(open_dataset(table).version)
    manifest = index_module.build(item_table.indexed(table, version), work.output, version, model_key)
    return {"items": manifest.count, "partitions": len(manifest.partitions), "dimension": manifest.dimension}
