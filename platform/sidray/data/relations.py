"""Clicks, pairs and events on their way into Lance: items resolved to their rows, bad rows set aside, splits given.

    writer = RelationWriter(index, settings, "out", quarantine)
    summary = writer.write({"clicks": open_table(uri, "clicks")})

These rows are small: clicks and pairs pass through the driver's memory as Arrow (about 100 bytes each), events stream.
Pairs that are made from events are made by Ray Data (cooccurrence.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sidray import storage
from sidray.data import splits
from sidray.data.contract import Reasons, blank, conform, source_names
from sidray.data.cooccurrence import co_occurrence
from sidray.data.items import ItemIndex
from sidray.data.quarantine import Quarantine
from sidray.data.settings import SPLITS, DataSettings
from sidray.data.tables import TableFiles
from sidray.datasets import open_dataset, write_dataset

Ints = npt.NDArray[np.int64]
Rules = Callable[[pa.Table, Reasons], pa.Table]
_OUTSIDE = "outside data.limit"  # not a fault: counted, not quarantined


class RelationWriter:
    """Writes the tables that refer to items. `skipped` counts what was left out without being bad."""

    def __init__(self, index: ItemIndex, settings: DataSettings, output: str, quarantine: Quarantine) -> None:
        self.index, self.settings, self.quarantine = index, settings, quarantine
        self.output = storage.absolute(output)
        self.skipped: Counter[str] = Counter()

    @cached_property
    def item_partition(self) -> pa.ChunkedArray:
        """string [items]"""
        return open_dataset(self._uri("items")).to_table(columns=["partition"])["partition"]

    @cached_property
    def partitions(self) -> list[str]:
        return sorted(pc.unique(self.item_partition).to_pylist())

    @cached_property
    def _item_split(self) -> splits.Codes:
        """int8 [items]: the split of each item by its hash, for rows that bring none."""
        given = self.settings
        return splits.by_hash(self.index.row_of, given.valid_fraction, given.test_fraction, given.seed)

    def write(self, tables: dict[str, TableFiles]) -> dict[str, Any]:
        """Writes those of clicks, events and pairs that are there; pairs come from events where none are given."""
        summary: dict[str, Any] = {}
        if "clicks" in tables:
            clicks = self._clicks(tables["clicks"])
            write_dataset(self._uri("clicks"), clicks)
            summary["clicks"] = _by_split(clicks)
            summary["queries"] = int(pc.count_distinct(clicks["query_id"]).as_py())
        if "events" in tables:
            summary["events"] = self._write_events(tables["events"])
        pairs = self._pairs(tables["pairs"]) if "pairs" in tables else None
        if pairs is None and summary.get("events"):
            pairs = self._derived_pairs()
        if pairs is not None:
            write_dataset(self._uri("pairs"), pairs)
            summary["pairs"] = _by_split(pairs)
        return summary

    def _clicks(self, table: TableFiles) -> pa.Table:
        present = {name for _, schema in table.schemas for name in source_names(schema, "clicks", self.settings)}
        by_time = "split" not in present and "ts" in present

        def rules(rows: pa.Table, reasons: Reasons) -> pa.Table:
            reasons.add(blank(rows["query"]), "null or empty query")
            item_row = self._resolve(rows["item_id"], "item_id", reasons)
            own = self.item_partition.take(pa.array(np.maximum(item_row, 0)))
            partition = pc.coalesce(rows["partition"], own) if "partition" in rows.column_names else own
            allowed = pa.array(["", *self.partitions])  # '' searches all
            reasons.add(pc.invert(pc.is_in(partition, allowed)), "partition that no item has")
            if "split" in present:
                reasons.add(_unknown_split(rows, SPLITS), "unknown split")
            if by_time:
                reasons.add(_or_null(rows, "ts").is_null(), "null ts, which the split by time needs")
            columns = {"query": rows["query"], "item_row": pa.array(item_row), "partition": partition}
            columns |= {name: rows[name] for name in ("split", "ts") if name in rows.column_names}
            if "kind" in present:
                columns["kind"] = _or_null(rows, "kind").fill_null("")
            if "hard_negatives" in present:
                columns["hard_negatives"] = self._hard_negatives(rows)
            return pa.table(columns)

        clicks = pa.concat_tables(self._good(table, rules), promote_options="default")
        if "split" not in present:
            clicks = clicks.append_column("split", splits.names(self._split_of(clicks, by_time)))
        encoded = clicks["query"].dictionary_encode()
        query_id = pa.chunked_array([chunk.indices for chunk in encoded.chunks], pa.int32())
        clicks = clicks.append_column("query_id", query_id)
        first = ["query", "query_id", "item_row", "partition", "split"]
        return clicks.select([*first, *(name for name in clicks.column_names if name not in first)])

    def _split_of(self, clicks: pa.Table, by_time: bool) -> splits.Codes:
        if not by_time:
            codes: splits.Codes = self._item_split[clicks["item_row"].to_numpy()]
            return codes
        stamps = clicks["ts"].cast(pa.int64()).to_numpy()
        return splits.by_time(stamps, self.settings.valid_fraction, self.settings.test_fraction)

    def _hard_negatives(self, rows: pa.Table) -> pa.Array:
        """list<int64>: item rows; ids that no item has are left out and counted."""
        if "hard_negatives" not in rows.column_names:
            return pa.array([[]] * rows.num_rows, pa.list_(pa.int64()))
        lists = rows["hard_negatives"].fill_null([]).to_pylist()
        known = [[self.index.row_of[item] for item in items if item in self.index.row_of] for items in lists]
        self.skipped["hard negatives that are no item"] += sum(map(len, lists)) - sum(map(len, known))
        return pa.array(known, pa.list_(pa.int64()))

    def _pairs(self, table: TableFiles) -> pa.Table:
        present = {name for _, schema in table.schemas for name in source_names(schema, "pairs", self.settings)}

        def rules(rows: pa.Table, reasons: Reasons) -> pa.Table:
            item, other = (self._resolve(rows[name], name, reasons) for name in ("item_id", "related_id"))
            reasons.add(item == other, "an item paired with itself")
            if "split" in present:
                reasons.add(_unknown_split(rows, (*SPLITS, "mixed")), "unknown split")
                split = _or_null(rows, "split")
            else:
                split = splits.names(splits.of_pairs(self._item_split[item], self._item_split[other]))
            score = _or_null(rows, "score", pa.float32()).fill_null(1.0)
            return pa.table({"item_row": item, "related_row": other, "split": split, "score": score})

        return pa.concat_tables(self._good(table, rules))

    def _write_events(self, table: TableFiles) -> int:
        def rules(rows: pa.Table, reasons: Reasons) -> pa.Table:
            reasons.add(blank(rows["user_id"]), "null or empty user_id")
            reasons.add(blank(rows["action"]), "null or empty action")
            reasons.add(rows["ts"].is_null(), "null ts")
            item_row = pa.array(self._resolve(rows["item_id"], "item_id", reasons))
            return pa.table(
                {"user_id": rows["user_id"], "item_row": item_row, "action": rows["action"], "ts": rows["ts"]}
            )

        stream = self._good(table, rules)
        first = next(stream)  # an empty table of the right columns
        batches = (batch for part in stream for batch in part.to_batches())
        write_dataset(self._uri("events"), pa.RecordBatchReader.from_batches(first.schema, batches))
        return int(open_dataset(self._uri("events")).count_rows())

    def _derived_pairs(self) -> pa.Table:
        """Pairs by co-occurrence, and its scores."""
        pairs = co_occurrence(self._uri("events"), self.settings.cooccurrence)
        item, other = (pairs[name].to_numpy() for name in ("item_row", "related_row"))
        split = splits.names(splits.of_pairs(self._item_split[item], self._item_split[other]))
        score = pairs["score"].cast(pa.float32())
        return pa.table({"item_row": item, "related_row": other, "split": split, "score": score})

    def _good(self, table: TableFiles, rules: Rules) -> Iterator[pa.Table]:
        """The table's good rows block by block, after an empty one; the others go to the quarantine."""
        total = 0
        first = pa.Table.from_batches([], table.schemas[0][1])
        yield rules(conform(first, table.name, self.settings, Reasons(0)), Reasons(0))
        for unit in table.units:
            schema = dict(table.schemas)[unit.file]
            row = unit.first_row
            for batch in table.read(unit, list(source_names(schema, table.name, self.settings).values())):
                reasons = Reasons(batch.num_rows)
                raw = conform(pa.Table.from_batches([batch]), table.name, self.settings, reasons)
                rows = rules(raw, reasons)
                total += self._set_aside(table.name, unit.file, row, raw["item_id"], reasons)
                row += batch.num_rows
                yield rows.filter(pa.array(reasons.good))
        self.quarantine.check(table.name, total)

    def _set_aside(self, name: str, file: str, first_row: int, item_id: pa.ChunkedArray, reasons: Reasons) -> int:
        """Quarantines the bad rows of a block; returns how many rows were judged."""
        texts = reasons.array()
        outside = pc.equal(texts, _OUTSIDE).fill_null(False)
        self.skipped[f"{name} {_OUTSIDE}"] += pc.sum(outside).as_py() or 0
        bad = pc.and_(texts.is_valid(), pc.invert(outside))
        rows = pa.array(np.arange(first_row, first_row + len(texts)))
        files = pa.array([file] * len(texts))
        block = pa.table({"file": files, "row": rows, "value": item_id, "reason": texts})
        self.quarantine.add(name, block.filter(bad))
        return len(texts) - int(pc.sum(outside).as_py() or 0)

    def _resolve(self, ids: pa.ChunkedArray, column: str, reasons: Reasons) -> Ints:
        """Item rows, int64 [rows]; -1 where the id is unknown (a reason says so)."""
        reasons.add(blank(ids), f"null or empty {column}")
        texts = ids.to_pylist()
        rows = np.array([self.index.row_of.get(text, -1) for text in texts], dtype=np.int64)
        unknown = rows < 0
        refused = np.array([text in self.index.refused for text in texts], dtype=np.bool_)
        reasons.add(unknown & refused, f"{column} of a quarantined item")
        reasons.add(unknown, _OUTSIDE if self.settings.limit else f"{column} of no item")
        return rows

    def _uri(self, name: str) -> str:
        return storage.join(self.output, f"{name}.lance")


def _or_null(rows: pa.Table, name: str, kind: pa.DataType | None = None) -> pa.Array:
    """A column that some files of a table have and others lack; `kind`: default string."""
    return rows[name] if name in rows.column_names else pa.nulls(rows.num_rows, kind or pa.string())


def _unknown_split(rows: pa.Table, known: tuple[str, ...]) -> pa.Array:
    return pc.invert(pc.is_in(_or_null(rows, "split"), pa.array(known)))


def _by_split(table: pa.Table) -> dict[str, int]:
    counts = pc.value_counts(table["split"]).to_pylist()
    return {str(entry["values"]): int(entry["counts"]) for entry in sorted(counts, key=lambda entry: entry["values"])}
