"""The item table on its way into Lance: read, checked and test-decoded by Ray Data tasks, in the order of the source.

    written = write_items(open_table(uri, "items"), settings, "out/items.lance", quarantine)

Blocks of about 2 MiB flow through the driver one at a time, so pictures never gather in memory; what the driver keeps
is the item ids (about 150 bytes each), to find duplicates and to resolve clicks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
from ray.exceptions import RayError

from sidray.data.blocks import in_order
from sidray.data.checks import check_items, item_schema, read_items
from sidray.data.quarantine import Quarantine
from sidray.data.settings import DataSettings
from sidray.data.tables import TableFiles
from sidray.datasets import write_dataset
from sidray.errors import UserError, root_user_error

MAX_READS = 1_000  # read tasks in all; each reads one unit or several, one after the other
BUFFER_BYTES = 256 * 2**20  # of encoded rows in Ray's object store at once


@dataclass
class ItemIndex:
    """What the other tables need to know of the items."""

    row_of: dict[str, int] = field(default_factory=dict)  # item_id -> row in items.lance, in the order of the rows
    refused: set[str] = field(default_factory=set)  # ids of quarantined rows
    images: int = 0
    image_bytes: int = 0


def write_items(table: TableFiles, settings: DataSettings, uri: str, quarantine: Quarantine) -> ItemIndex:
    """Writes the good rows to the Lance dataset `uri`.

    Raises UserError when too many rows are bad or none is good."""
    stream = _ItemStream(table, settings, quarantine)
    reader = pa.RecordBatchReader.from_batches(item_schema(settings), stream.batches())
    try:
        write_dataset(uri, reader)
    except RayError as error:
        raise (root_user_error(error) or error) from error
    quarantine.check("items", stream.rows)
    if not stream.index.row_of:
        raise UserError(f"data.items: {table.uri} holds no item", "give a table with at least one row")
    return stream.index


class _ItemStream:
    """Pulls checked blocks from Ray Data, sets bad rows and duplicates aside, and passes the rest on."""

    def __init__(self, table: TableFiles, settings: DataSettings, quarantine: Quarantine) -> None:
        self.table, self.settings, self.quarantine = table, settings, quarantine
        self.limit = settings.limit or np.iinfo(np.int64).max
        self.rows = 0
        self.index = ItemIndex()

    def batches(self) -> Iterator[pa.RecordBatch]:
        for block in _checked_blocks(self.table, self.settings):
            yield from self._keep(block).to_batches()
            if len(self.index.row_of) >= self.limit:
                return

    def _keep(self, block: pa.Table) -> pa.Table:
        """The rows of `block` that enter the catalogue: good, the first of their id, and within the limit."""
        reasons = block["_reason"].to_pylist()
        keep, row_of = [], self.index.row_of
        for row, item_id in enumerate(block["item_id"].to_pylist()):
            if len(row_of) >= self.limit:
                reasons = reasons[:row]
                break
            if reasons[row] is None and item_id in row_of:
                reasons[row] = "duplicate item_id"
            if reasons[row] is None:
                row_of[item_id] = len(row_of)
                keep.append(row)
        self.rows += len(reasons)
        self._set_aside(block, reasons)
        kept = block.select(item_schema(self.settings).names)
        if len(keep) < block.num_rows:
            kept = kept.take(pa.array(keep, pa.int64()))
        self.index.images += kept.num_rows - kept["image"].null_count
        self.index.image_bytes += pc.sum(pc.binary_length(kept["image"])).as_py() or 0
        return kept

    def _set_aside(self, block: pa.Table, reasons: list[str | None]) -> None:
        bad = [row for row, reason in enumerate(reasons) if reason is not None]
        if bad:
            refused = block.select(["_unit", "_row", "item_id"]).take(pa.array(bad))
            self.index.refused.update(refused["item_id"].to_pylist())
            files = [self.table.units[unit].file for unit in refused["_unit"].to_pylist()]
            columns = [pa.array(files), refused["_row"], refused["item_id"], pa.array([reasons[row] for row in bad])]
            self.quarantine.add("items", pa.table(columns, names=["file", "row", "value", "reason"]))


def _checked_blocks(table: TableFiles, settings: DataSettings) -> Iterator[pa.Table]:
    """Blocks of item_schema's columns with _unit, _row (in its file), _reason (null: good), in the source's order."""
    if not table.units:
        return
    count, cpus = len(table.units), int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    units = ray.data.from_items(list(range(count)), override_num_blocks=min(count, MAX_READS))
    in_order(units, BUFFER_BYTES)

    def read(batch: pa.Table) -> Iterator[pa.Table]:
        for number in batch["item"].to_pylist():
            yield from read_items(table, number, settings)

    def check(block: pa.Table) -> Iterator[pa.Table]:
        yield from check_items(block, settings, table)

    def read_and_check(batch: pa.Table) -> Iterator[pa.Table]:
        for block in read(batch):
            yield from check(block)

    if count >= 2 * cpus:  # units enough for all cores: one task does both, and costs a third less than two
        checked = units.map_batches(read_and_check, batch_format="pyarrow", batch_size=1, num_cpus=1)
    else:  # a few large units: one task reads, all cores check. Reading takes no CPU slot, so that it runs beside them
        reader = ray.data.TaskPoolStrategy(max(1, cpus // 4))
        rows = units.map_batches(read, batch_format="pyarrow", batch_size=1, num_cpus=0, compute=reader)
        checked = rows.map_batches(check, batch_format="pyarrow", batch_size=None, num_cpus=1)
    yield from checked.iter_batches(batch_size=None, batch_format="pyarrow")
