"""The same tables and the same catalogue on an object store."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.data.ingest import ingest
from sidray.data.settings import DataSettings
from tests.data.makers import click_rows, item_rows, picture


@pytest.mark.usefixtures("without_ray")
def test_tables_and_catalogue_on_an_object_store(bucket: str) -> None:
    def upload(table: pa.Table, name: str) -> None:
        out = pa.BufferOutputStream()
        pq.write_table(table, out, row_group_size=4)
        storage.write_bytes(f"{bucket}/{name}", out.getvalue().to_pybytes())

    rows = item_rows(12)
    for row in rows:
        row["image_uri"] = None
    rows[3] |= {"image": None, "image_uri": "art/3.png"}  # beside the table's files
    rows[4] |= {"image": None, "image_uri": f"{bucket}/in/items/art/3.png"}
    rows[5] |= {"title": " "}
    for part in range(2):
        upload(pa.Table.from_pylist(rows[6 * part : 6 * part + 6]), f"in/items/{part}.parquet")
    storage.write_bytes(f"{bucket}/in/items/art/3.png", picture((1, 2, 3)))
    upload(pa.Table.from_pylist(click_rows(12)), "in/clicks.parquet")
    settings = DataSettings(
        source="tables", items=f"{bucket}/in/items", clicks=f"{bucket}/in/clicks.parquet", max_bad_fraction=0.1
    )
    summary = ingest(settings, f"{bucket}/out")
    catalogue = Catalogue.open(f"{bucket}/out")
    kept = [row["item_id"] for row in rows if row["item_id"] != "i5"]
    assert catalogue.items(None, ["item_id"])["item_id"].to_pylist() == kept
    images = catalogue.items(np.array([4, 3, 0]), ["image"])["image"].to_pylist()
    assert images == [picture((1, 2, 3)), picture((1, 2, 3)), rows[0]["image"]]
    assert summary["clicks"] == {"test": 3, "train": 11}
    assert summary["quarantined"] == {"clicks: item_id of a quarantined item": 1, "items: null or empty title": 1}
    assert storage.list_names(f"{bucket}/out/quarantine") == ["clicks.parquet", "items.parquet"]
