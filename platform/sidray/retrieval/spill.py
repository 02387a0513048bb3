"""Tables larger than memory should hold: rows in a mapped file without a name, whose pages the system takes back.

table = spilled(dataset.to_batches(), schema)  # a pa.Table; the file goes with it
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from functools import partial

import pyarrow as pa

from sidray import storage


def large(schema: pa.Schema) -> pa.Schema:
    """Strings with 64-bit offsets, so that a column of any size is one piece."""
    return pa.schema([(f.name, pa.large_string() if pa.types.is_string(f.type) else f.type) for f in schema])


def spilled(batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """The rows in order, strings as `large` has them. The file lies in the folder for temporary files (TMPDIR).

    Raises StorageError when that is full."""
    layout, writing = large(schema), partial(storage.write_errors, tempfile.gettempdir())
    with tempfile.TemporaryFile() as file:  # without a name from the start: gone however the process ends
        path = f"/proc/self/fd/{file.fileno()}"
        with writing():
            sink = pa.OSFile(path, "wb")  # no buffer of Python's that fails a second time when the file is closed
            writer = pa.ipc.new_file(sink, layout)
        for batch in batches:  # what reading them raises is another's
            with writing():
                writer.write(batch.cast(layout))
        with writing():
            writer.close()
            sink.close()
        with pa.memory_map(path) as mapped:
            return pa.ipc.open_file(mapped).read_all()
