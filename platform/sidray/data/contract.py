"""The contract of the tables that a user brings, checked: schemas stop the job, bad rows get a reason.

check_schema(table, settings)  # raises UserError: file, column, given and wanted type, remedy
check_renamed(tables, settings)  # the same for names in data.columns that no table has
reasons = Reasons(block.num_rows);  reasons.add(mask, "empty title")
block = conform(block, "items", settings, reasons)  # contract names, plain types
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from sidray.data.settings import CONTRACT, DataSettings
from sidray.data.tables import TableFiles
from sidray.errors import UserError, nearest

Mask = npt.NDArray[np.bool_]
REQUIRED = {
    "items": ("item_id", "title"),
    "clicks": ("query", "item_id"),
    "pairs": ("item_id", "related_id"),
    "events": ("user_id", "item_id", "action", "ts"),
}
_WANTED = {"image": "binary", "ts": "timestamp", "score": "float", "hard_negatives": "list<string>"}  # the rest: string
_PLAIN = {
    "binary": pa.binary(),
    "timestamp": pa.timestamp("us"),
    "float": pa.float32(),
    "list<string>": pa.list_(pa.string()),
    "string": pa.string(),
}


def column_names(table: str, settings: DataSettings) -> list[str]:
    """Contract names of the columns that are read from the table, text_fields included."""
    return [*CONTRACT[table], *(settings.text_fields if table == "items" else [])]


def source_names(schema: pa.Schema, table: str, settings: DataSettings) -> dict[str, str]:
    """Contract name -> the column of `schema` that holds it: the one that data.columns names, else its own name."""
    found = {}
    for name in column_names(table, settings):
        given = settings.columns.get(name, name)
        if given in schema.names or name in schema.names:
            found[name] = given if given in schema.names else name
    return found


def check_schema(table: TableFiles, settings: DataSettings) -> None:
    """Raises UserError for the first file that lacks a required column, or has one of a wrong type."""
    required = [*REQUIRED[table.name], *(settings.text_fields if table.name == "items" else [])]
    for file, schema in table.schemas:
        names = source_names(schema, table.name, settings)
        for name in required:
            if name not in names:
                given = settings.columns.get(name, name)
                raise UserError(
                    f"data.{table.name}: {file} has no column {given!r}{nearest(given, schema.names)}; "
                    f"it has {', '.join(schema.names)}",
                    f"add the column, or name yours: data.columns.{name}=...",
                )
        for name, given in names.items():
            kind, wanted = schema.field(given).type, _WANTED.get(name, "string")
            if not _accepts(kind, wanted):
                raise UserError(
                    f"data.{table.name}: column {given!r} of {file} is {kind}, and the contract wants {wanted}",
                    f"write it as {wanted}, or name another column: data.columns.{name}=...",
                )


def check_renamed(tables: Collection[TableFiles], settings: DataSettings) -> None:
    """Raises UserError for a column that data.columns names and none of the tables has that could: an optional one
    would be missed by nobody. What is for a table that is not given is not looked at."""
    for name, given in settings.columns.items():
        able = [table for table in tables if name in column_names(table.name, settings)]
        there = sorted({column for table in able for _, schema in table.schemas for column in schema.names})
        if able and given not in there:
            where = " and ".join(f"data.{table.name}" for table in able)
            raise UserError(
                f"data.columns.{name}: there is no column {given!r}{nearest(given, there)} in {where}; "
                f"there are {', '.join(there)}",
                f"mend data.columns.{name} or leave it out; or add the column, null where there is nothing",
            )


def _accepts(kind: pa.DataType, wanted: str) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    text = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)
    octets = pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind)
    if pt.is_null(kind):
        return True
    if wanted == "list<string>":
        is_list = pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)
        return is_list and _accepts(kind.value_type, "string")
    if wanted == "timestamp":
        return bool(pt.is_timestamp(kind) or pt.is_date(kind))
    if wanted == "float":
        return bool(pt.is_floating(kind) or pt.is_integer(kind))
    return bool(octets or (text and wanted == "string"))


class Reasons:
    """Why rows of a batch are refused: the first reason given to a row stays."""

    def __init__(self, rows: int) -> None:
        self._texts: list[str | None] = [None]
        self._codes = np.zeros(rows, dtype=np.int32)  # 0: the row is good

    @property
    def good(self) -> Mask:
        return np.equal(self._codes, 0)

    def add(self, bad: Mask | pa.Array | pa.ChunkedArray, reason: str) -> None:
        """bad: bool [rows]; null counts as bad."""
        if not isinstance(bad, np.ndarray):
            bad = np.asarray(bad.fill_null(True).to_numpy(zero_copy_only=False), dtype=np.bool_)
        self._texts.append(reason)
        self._codes[bad & self.good] = len(self._texts) - 1

    def add_each(self, reasons: Sequence[str | None]) -> None:
        """reasons: one for each row, None where there is nothing against it."""
        for reason in sorted({reason for reason in reasons if reason is not None}):
            self.add(np.array([given == reason for given in reasons]), reason)

    def array(self) -> pa.Array:
        """string [rows]; null where the row is good."""
        return pa.array(self._texts, pa.string()).take(pa.array(self._codes))


def conform(block: pa.Table, table: str, settings: DataSettings, reasons: Reasons) -> pa.Table:
    """The block with contract names and plain types (string, binary, timestamp[us], ...), in the contract's order.

    Text that is not UTF-8 gets a reason, and null in its place, so that later code can read every row."""
    columns = {}
    for name, given in source_names(block.schema, table, settings).items():
        column = block[given].combine_chunks()
        wanted = _WANTED.get(name, "string")
        if pt.is_dictionary(column.type):
            column = column.dictionary_decode()
        if wanted == "string":
            column, invalid = to_text(column)
            if invalid is not None:
                reasons.add(invalid, f"invalid UTF-8 in {name}")
        elif wanted == "list<string>" and not pt.is_null(column.type):
            column = _text_lists(column)
        columns[name] = column.cast(_PLAIN[wanted], safe=False)
    return pa.table(columns)


def to_text(column: pa.Array) -> tuple[pa.Array, Mask | None]:
    """The column as valid strings, and where it was not UTF-8 (null there), or None when all of it was."""
    octets = column if pt.is_null(column.type) else column.cast(pa.binary())
    try:
        return octets.cast(pa.string()), None
    except pa.ArrowInvalid:
        decoded = [None if value is None else _decode(value) for value in octets.to_pylist()]
        invalid = np.array([value is False for value in decoded])
        return pa.array([None if value is False else value for value in decoded], pa.string()), invalid


def _text_lists(column: pa.Array) -> pa.Array:
    """list<string> with null in place of what is not UTF-8; a null list becomes an empty one."""
    values, _ = to_text(column.flatten())
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


def _decode(value: bytes) -> str | bool:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return False


def blank(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """bool [rows]: null, empty or white space alone."""
    return pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0).fill_null(True)
