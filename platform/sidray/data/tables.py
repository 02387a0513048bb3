"""Reading contract tables in row order: Parquet files, folders of them and Lance datasets, on any pyarrow filesystem.

table = open_table("s3://shop/items", "items")  # lists the files and reads their footers, no rows
for batch in table.read(table.units[0], ["item_id", "title"]): ...  # in a worker
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sidray import storage
from sidray.datasets import open_dataset
from sidray.errors import UserError
from sidray.failures import failure_of

if TYPE_CHECKING:
    import lance

BATCH_BYTES = 2 * 2**20  # of the encoded rows that one batch holds, about
MAX_BATCH_ROWS = 65_536
ITEM_ROWS = 256  # of one batch of items: a picture that repeats is stored once, and encoded sizes tell nothing


@dataclass(frozen=True)
class Unit:
    """What one task reads: a row group of a Parquet file, or a fragment of a Lance dataset."""

    file: str  # path inside the filesystem, or the dataset's URI
    group: int
    first_row: int  # position of its first row in the file
    batch_rows: int


@dataclass(frozen=True)
class TableFiles:
    """A contract table: the units in the order of its rows, and the schema of each file. Small and picklable."""

    name: str  # items, clicks, pairs, events
    uri: str
    folder: bool  # else one file
    version: int | None  # of a Lance dataset; None: Parquet
    units: list[Unit]
    schemas: list[tuple[str, pa.Schema]]  # one for each file

    def read(self, unit: Unit, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The unit's rows in order, a few MiB at a time. Columns that this file lacks are left out."""
        if self.version is not None:
            fragments = _at_version(self.uri, self.version, self.name).get_fragments()
            fragment = next(each for each in fragments if each.fragment_id == unit.group)
            present = [name for name in columns if name in fragment.schema.names]
            yield from fragment.to_batches(columns=present, batch_size=unit.batch_rows)
            return
        filesystem, _ = storage.open_uri(self.uri)
        with filesystem.open_input_file(unit.file) as stream:
            parquet = pq.ParquetFile(stream, buffer_size=2**20, pre_buffer=False)  # reads pages, not whole row groups
            present = [name for name in columns if name in parquet.schema_arrow.names]
            yield from parquet.iter_batches(unit.batch_rows, row_groups=[unit.group], columns=present)


def open_table(uri: str, name: str) -> TableFiles:
    """Finds the files of the table `name` of the contract; raises UserError naming what is missing or unreadable."""
    filesystem, path = storage.open_uri(uri)
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise UserError(
            f"data.{name}: {uri} does not exist", "give a Parquet file, a folder of them or a Lance dataset"
        )
    if info.type == pafs.FileType.Directory and storage.exists(storage.join(uri, "_versions")):
        return _open_lance(uri, name)
    files = [path] if info.type == pafs.FileType.File else _parquet_files(filesystem, path)
    if not files:
        raise UserError(f"data.{name}: the folder {uri} holds no *.parquet file", "write Parquet files into it")
    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(lambda file: _footer(filesystem, file, name), files))
    most = ITEM_ROWS if name == "items" else MAX_BATCH_ROWS
    units = [unit for file, footer in zip(files, footers, strict=True) for unit in _row_groups(file, footer, most)]
    schemas = [(file, footer.schema.to_arrow_schema()) for file, footer in zip(files, footers, strict=True)]
    return TableFiles(name, storage.absolute(uri), info.type == pafs.FileType.Directory, None, units, schemas)


def fingerprint(uri: str) -> str:
    """Of a table's files: their names, sizes and times. Another one when any of them is written anew."""
    filesystem, path = storage.open_uri(uri)
    with storage.read_errors(uri):
        infos = [filesystem.get_file_info(path)]
        if infos[0].type == pafs.FileType.Directory:
            infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    files = sorted((info.path, info.size, info.mtime_ns) for info in infos if info.type == pafs.FileType.File)
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]


def _open_lance(uri: str, name: str) -> TableFiles:
    uri = storage.absolute(uri)
    try:
        dataset = open_dataset(uri)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"data.{name}: {uri} cannot be read as a Lance dataset: {error}", "write it anew") from error
    units, first = [], 0
    for fragment in dataset.get_fragments():
        units.append(Unit(uri, fragment.fragment_id, first, ITEM_ROWS))
        first += fragment.count_rows()
    return TableFiles(name, uri, True, int(dataset.version), units, [(uri, dataset.schema)])


def _at_version(uri: str, version: int, name: str) -> lance.LanceDataset:
    """The dataset as it was when its fragments were listed. UserError when that version was removed meanwhile."""
    dataset = open_dataset(uri)
    if dataset.version == version:
        return dataset
    try:
        return dataset.checkout_version(version)
    except (OSError, ValueError) as error:
        gone = UserError(
            f"data.{name}: version {version} of {uri} was removed while it was read",
            "run the same command again, and remove old versions when nobody reads them",
        )
        raise failure_of(error) or gone from error


def _parquet_files(filesystem: pafs.FileSystem, path: str) -> list[str]:
    """All *.parquet below the folder, sorted by path; names that start with _ or . are other programs' notes."""
    infos = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    files = [info for info in infos if info.type == pafs.FileType.File and info.base_name.endswith(".parquet")]
    return sorted(info.path for info in files if not info.base_name.startswith(("_", ".")))


def _footer(filesystem: pafs.FileSystem, file: str, name: str) -> pq.FileMetaData:
    try:
        with filesystem.open_input_file(file) as stream:
            return pq.read_metadata(stream)
    except (pa.ArrowException, OSError) as error:
        unreadable = UserError(f"data.{name}: {file} cannot be read as Parquet: {error}", "write the file anew")
        raise failure_of(error) or unreadable from error


def _row_groups(file: str, footer: pq.FileMetaData, most: int) -> list[Unit]:
    """`most`: rows of a batch."""
    units, first = [], 0
    for group in range(footer.num_row_groups):
        info = footer.row_group(group)
        rows = max(1, info.num_rows)
        batch_rows = min(most, max(16, BATCH_BYTES * rows // max(1, info.total_byte_size)))
        units.append(Unit(file, group, first, batch_rows))
        first += info.num_rows
    return units
