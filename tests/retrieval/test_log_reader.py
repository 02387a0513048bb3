"""What a reader of the log is told, and what it is spared."""

from __future__ import annotations

import datetime
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from sidray.retrieval import item_table
from sidray.retrieval.log_reader import LogReader


@pytest.fixture
def table(tmp_path: Path) -> str:
    """Three fragments of one row: a0, a1, a2."""
    uri = str(tmp_path / "items.lance")
    item_table.create(uri, [], 2)
    append(uri, "a0", "a1", "a2")
    return uri


def append(uri: str, *item_ids: str) -> None:
    for item_id in item_ids:
        vector = pa.array([[0.6, 0.8]], pa.list_(pa.float32(), 2))
        item_table.append(uri, pa.table({"item_id": [item_id], "vector": vector, "model_key": ["m"]}))


def follow(uri: str) -> LogReader:
    return LogReader(uri, int(item_table.open_version(uri).version), ["item_id"])


def read(reader: LogReader) -> list[str] | None:
    with reader.read() as rows:
        return None if rows is None else rows["item_id"].to_pylist()


def compact(uri: str) -> int:
    return item_table.compact(uri, int(item_table.open_version(uri).version))


def test_each_row_is_read_once(table: str) -> None:
    reader = follow(table)
    assert read(reader) is None
    append(table, "b0", "b1")
    assert read(reader) == ["b0", "b1"]
    assert read(reader) is None


def test_rows_that_could_not_be_taken_come_again(table: str) -> None:
    reader = follow(table)
    before = reader.version
    append(table, "b0")
    with pytest.raises(MemoryError), reader.read():
        raise MemoryError
    assert reader.version == before
    assert read(reader) == ["b0"]
    assert reader.version == before + 1


def test_a_compaction_of_known_rows_is_no_news(table: str) -> None:
    reader = follow(table)
    version = compact(table)
    append(table, "b0")
    assert len(lance.dataset(table).get_fragments()) == 2
    assert read(reader) == ["b0"]
    assert reader.version == version + 1
    compact(table)
    append(table, "c0")
    compact(table)
    assert read(reader) == ["c0"]  # it was joined with known ones before it was read
    assert read(reader) is None


def test_what_the_known_version_had_is_read_from_no_later_file(table: str) -> None:
    """As by a replica that starts long after its generation was built: its version alone is kept."""
    known = int(item_table.open_version(table).version)
    item_table.tag(table, "generation", known)
    for item_id in ("b0", "a1", "b1"):
        append(table, item_id)
        compact(table)
        item_table.clean(table, datetime.timedelta(0))
    assert len(lance.dataset(table).get_fragments()) == 1
    reader = LogReader(table, known, ["item_id", "vector"])
    assert read(reader) == ["b0", "a1", "b1"]
    assert read(LogReader(table, reader.version, ["item_id"])) is None


def test_rows_that_are_all_known_are_no_news(table: str) -> None:
    known = int(item_table.open_version(table).version)
    item_table.tag(table, "generation", known)
    item_table.restore(table, compact(table))  # a version that adds nothing
    item_table.clean(table, datetime.timedelta(0))  # and takes what was rewritten out of sight
    reader = LogReader(table, known, ["item_id"])
    assert read(reader) is None
    assert reader.version == item_table.open_version(table).version


def test_rows_come_again_when_nobody_can_tell_what_was_rewritten(table: str) -> None:
    reader = follow(table)
    compact(table)
    append(table, "b0")
    item_table.clean(table, datetime.timedelta(0))
    assert sorted(read(reader) or []) == ["a0", "a1", "a2", "b0"]


def test_what_came_after_the_compacted_version_stays_apart(table: str) -> None:
    append(table, "b0")
    reader = follow(table)
    append(table, "c0", "c1")
    item_table.compact(table, reader.version)
    assert len(lance.dataset(table).get_fragments()) == 3
    assert read(reader) == ["c0", "c1"]  # and not the rows that were known
