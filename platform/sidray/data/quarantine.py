"""Bad rows: written to quarantine/<table>.parquet with file, row and reason, counted, and fatal above a share.

with Quarantine("out/quarantine", max_bad_fraction=0.05) as quarantine:
    quarantine.add("items", rows)  # pa.Table of SCHEMA: file, row, value, reason
    quarantine.check("items", total_rows)
"""

from __future__ import annotations

from collections import Counter
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sidray import storage
from sidray.errors import UserError
from sidray.metrics import counter

SCHEMA = pa.schema([("file", pa.string()), ("row", pa.int64()), ("value", pa.string()), ("reason", pa.string())])


class Quarantine:
    """Collects the bad rows of all tables, streaming them to Parquet; its memory does not grow with their number."""

    def __init__(self, folder: str, max_bad_fraction: float) -> None:
        self.folder = folder
        self.max_bad_fraction = max_bad_fraction
        self.counts: Counter[str] = Counter()  # "items: duplicate item_id" -> rows
        self._told = counter("sidray_ingest_quarantined_rows")
        self._writers: dict[str, tuple[pq.ParquetWriter, Any]] = {}

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        writers, self._writers = self._writers, {}
        for table, (writer, stream) in writers.items():
            with storage.write_errors(self.uri(table)), stream, writer:
                pass

    def add(self, table: str, rows: pa.Table) -> None:
        """rows: columns as SCHEMA; row counts from 0 within the file, value is the row's item_id or query."""
        if not rows.num_rows:
            return
        self.counts.update(f"{table}: {reason}" for reason in rows["reason"].to_pylist())
        self._told.inc(rows.num_rows, {"table": table})
        with storage.write_errors(self.uri(table)):
            if table not in self._writers:
                storage.make_folder(self.folder)
                filesystem, path = storage.open_uri(self.uri(table))
                stream = filesystem.open_output_stream(path)
                self._writers[table] = (pq.ParquetWriter(stream, SCHEMA), stream)
            self._writers[table][0].write_table(rows.select(SCHEMA.names).cast(SCHEMA))

    def uri(self, table: str) -> str:
        return storage.join(self.folder, f"{table}.parquet")

    def bad(self, table: str) -> int:
        return sum(count for reason, count in self.counts.items() if reason.startswith(f"{table}: "))

    def check(self, table: str, rows: int) -> None:
        """Raises UserError when more than max_bad_fraction of the table's `rows` rows are bad."""
        bad = self.bad(table)
        if bad <= self.max_bad_fraction * rows:
            return
        self.__exit__(None, None, None)  # the file is whole before the message names it
        worst = [f"{reason}: {count}" for reason, count in self.counts.most_common() if reason.startswith(f"{table}: ")]
        raise UserError(
            f"{bad} of {rows} rows of data.{table} are bad, more than data.max_bad_fraction={self.max_bad_fraction} "
            f"allows ({'; '.join(worst[:3])})",
            f"mend them: {self.uri(table)} lists file, row and reason; or raise data.max_bad_fraction",
        )
