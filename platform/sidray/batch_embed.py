"""`sidray embed RUN --items URI --out URI`: any contract item table through a finished run, cluster-wide.

Output: Parquet with item_id, vector, sids, model_key. Bad rows go to <out>/quarantine with their reason.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.data.ingest import ingest
from sidray.data.settings import DataSettings
from sidray.embedding.encoded import load_model
from sidray.embedding.pool import Encoder, encode_rows, vector_column
from sidray.finished import RunFolder
from sidray.steps import Summary


def batch_embed(run: RunFolder, items: str, out: str, max_bad_fraction: float) -> Summary:
    """Ingests (validates) the table, encodes its items by an actor pool, writes <out>/items.parquet in row order."""
    started = time.time()
    data = run.recipe.data
    settings = DataSettings(
        source="tables",
        items=items,
        text_fields=data.text_fields,
        max_image_pixels=data.max_image_pixels,
        max_bad_fraction=max_bad_fraction,
    )
    work = storage.join(storage.absolute(out), "catalogue")
    summary = ingest(settings, work, wanted=None)
    catalogue = Catalogue.open(work)
    make = functools.partial(_encoder, run, catalogue)
    tables = encode_rows("embed", catalogue.n_items, make, run.recipe.embedding)
    target = storage.join(storage.absolute(out), "items.parquet")
    _write(target, tables)
    seconds = time.time() - started
    return {"items": catalogue.n_items, "quarantined": summary["quarantined"], "out": target, "seconds": seconds}


def _write(uri: str, tables: Iterator[pa.Table]) -> None:
    filesystem, path = storage.open_uri(uri)
    first = next(tables)
    with storage.write_errors(uri), pq.ParquetWriter(path, first.schema, filesystem=filesystem) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


def _encoder(run: RunFolder, catalogue: Catalogue) -> Encoder:
    model = load_model(run)

    def encode(rows: Any) -> pa.Table:
        table = catalogue.items(rows, ["item_id", "title", "image", *catalogue.text_fields])
        encoded = model.items(table.to_pylist())
        return pa.table(
            {
                "item_id": table["item_id"],
                "vector": vector_column(encoded.vectors),
                "sids": pa.array(encoded.sids, pa.list_(pa.int32())),
                "model_key": pa.array([model.model_key] * len(rows)),
            }
        )

    return encode
