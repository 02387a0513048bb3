"""Tables larger than memory should hold: rows in a mapped file without a name, whose pages the system takes back.

table = spilled(dataset.to_batches(), schema)  # a pa.Table; the file goes with it
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import pyarrow as pa


def large(schema: pa.Schema) -> pa.Schema:
    """Strings with 64-bit offsets, so that a column of any size is one piece."""
    return pa.schema([(f.name, pa.large_string() if pa.types.is_string(f.type) else f.type) for f in schema])


def spilled(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The rows in order, strings as `large` has them. The file lies in the folder for temporary files (TMPDIR)."""
    layout = large(schema)
    with tempfile.TemporaryFile() as file:  # without a name from the start: gone however the process ends
        with pa.ipc.new_file(file, layout) as writer:
            for batch in batches:
                writer.write(batch.cast(layout))
        file.flush()
        with pa.memory_map(f"/proc/self/fd/{file.fileno()}") as mapped:
            return pa.ipc.open_file(mapped).read_all()
