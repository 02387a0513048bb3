"""What runs inside the Ray Data tasks of the ingest: reading item rows, and the rules that make one usable.

    for block in read_items(table, 0, settings):
        for checked in check_items(block, settings, table): ...  # item_schema + _unit, _row, _reason

Imports neither lance nor torch: a task starts in half the time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from sidray import storage
from sidray.data.contract import Mask, Reasons, blank, conform, source_names
from sidray.data.images import check_image
from sidray.data.settings import DataSettings
from sidray.data.tables import BATCH_BYTES, TableFiles
from sidray.errors import StorageError, UserError
from sidray.failures import is_away

MAX_IMAGE_BYTES = 64 * 2**20  # of one picture that an image_uri names
URI_ROWS = 128  # whose pictures a task reads before it hands them on
READ_THREADS = 8  # pictures read at once by one task


def item_schema(settings: DataSettings) -> pa.Schema:
    """Columns of items.lance. image_id: equal for byte-equal pictures, -1 where there is none."""
    texts = [pa.field(name, pa.string()) for name in ("item_id", "title", "partition", *settings.text_fields)]
    return pa.schema([*texts, pa.field("image", pa.binary()), pa.field("image_id", pa.int64())])


def read_items(table: TableFiles, number: int, settings: DataSettings) -> Iterator[pa.Table]:
    """The rows of the table's unit `number` with _row (position in the file) and _unit, in small blocks."""
    unit = table.units[number]
    schema = next(schema for file, schema in table.schemas if file == unit.file)
    row = unit.first_row
    for batch in table.read(unit, [*source_names(schema, "items", settings).values()]):
        for piece in _pieces(batch):
            positions = pa.array(np.arange(row, row + piece.num_rows))
            units = pa.array(np.full(piece.num_rows, number, dtype=np.int32))
            yield pa.Table.from_batches([piece]).append_column("_row", positions).append_column("_unit", units)
            row += piece.num_rows


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch's rows in order, about BATCH_BYTES at a time."""
    rows = max(1, BATCH_BYTES * batch.num_rows // max(1, batch.nbytes))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def check_items(block: pa.Table, settings: DataSettings, table: TableFiles) -> Iterator[pa.Table]:
    """item_schema's columns with _unit, _row and _reason (null: the row is good), one row for each of the block: in
    several tables where pictures are read, so that those of a block of URIs are not in memory together.

    Relative image URIs start at the folder of the table's files."""
    rows = max(1, block.num_rows)
    step = URI_ROWS if "image_uri" in source_names(block.schema, "items", settings) else rows
    for start in range(0, rows, step):
        yield _checked(block.slice(start, step), settings, table)


def _checked(block: pa.Table, settings: DataSettings, table: TableFiles) -> pa.Table:
    rows = block.num_rows
    reasons = Reasons(rows)
    items = conform(block, "items", settings, reasons)
    reasons.add(blank(items["item_id"]), "null or empty item_id")
    reasons.add(blank(items["title"]), "null or empty title")
    images = _images(items, table, reasons)
    reasons.add_each([None if data is None else check_image(data, settings.max_image_pixels) for data in images])
    kept = [data if good else None for data, good in zip(images, reasons.good, strict=True)]
    empty = pa.array([""] * rows)
    texts = [
        items[name].fill_null("") if name in items.column_names else empty for name in item_schema(settings).names[:-2]
    ]
    checked = pa.table(
        [*texts, pa.array(kept, pa.binary()), pa.array([image_id(data) for data in kept], pa.int64())],
        schema=item_schema(settings),
    )
    checked = checked.append_column("_reason", reasons.array())
    return checked.append_column("_unit", block["_unit"]).append_column("_row", block["_row"])


def image_id(data: bytes | None) -> int:
    """63 bits of the picture's hash, so that equal bytes get equal numbers in any process; -1 for none."""
    if data is None:
        return -1
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def _images(items: pa.Table, table: TableFiles, reasons: Reasons) -> list[bytes | None]:
    """The encoded bytes of the good rows, from column image, else from the file that column image_uri names."""
    images: list[bytes | None] = [None] * items.num_rows
    good: Mask = reasons.good
    if "image" in items.column_names:
        images = [data if ok else None for data, ok in zip(items["image"].to_pylist(), good, strict=True)]
    if "image_uri" in items.column_names:
        uris = items["image_uri"].to_pylist()
        rows = [int(row) for row in np.flatnonzero(good) if images[row] is None and uris[row]]
        with ThreadPoolExecutor(READ_THREADS) as pool:
            found = pool.map(lambda row: _read_image(uris[row], table), rows)
        failed: list[str | None] = [None] * items.num_rows
        for row, answer in zip(rows, found, strict=True):
            if isinstance(answer, bytes):
                images[row] = answer
            else:
                failed[row] = answer
        reasons.add_each(failed)
    return images


def _read_image(uri: str, table: TableFiles) -> bytes | str:
    """The file's bytes, or the reason why there are none. A row does not choose the server that is asked."""
    if "://" in uri and "?" in uri:
        return "image_uri: a URI with options (?...) is not opened"
    try:
        filesystem, path = _locate(uri, table)
        with filesystem.open_input_file(path) as stream:
            if stream.size() > MAX_IMAGE_BYTES:
                return f"image_uri: a file of more than {MAX_IMAGE_BYTES // 2**20} MiB"
            return bytes(stream.read())
    except StorageError:
        raise
    except UserError:
        return f"image_uri: {uri.partition('://')[0][:20]}:// cannot be opened"
    except (OSError, pa.ArrowException, ValueError) as error:
        if is_away(error):
            raise
        return f"image_uri: cannot be read ({type(error).__name__})"


def _locate(uri: str, table: TableFiles) -> tuple[pafs.FileSystem, str]:
    if "://" in uri:
        return storage.open_uri(uri)
    filesystem, root = storage.open_uri(table.uri)
    folder = root if table.folder else os.path.dirname(root)
    return filesystem, os.path.join(folder, uri)  # an absolute path stays as it is
