"""Tables that break the contract stop with the file, the column and a remedy; any way to store text is read alike."""

from __future__ import annotations

import datetime
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from sidray.data.contract import Reasons, blank, check_schema, conform
from sidray.data.settings import DataSettings
from sidray.data.tables import open_table
from sidray.errors import UserError
from tests.data.makers import item_rows, write

SETTINGS = DataSettings(source="tables", items="unused")


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.clicks: .*nowhere\.parquet does not exist"):
        open_table(str(tmp_path / "nowhere.parquet"), "clicks")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no \*\.parquet file"):
        open_table(str(tmp_path / "empty"), "items")
    (tmp_path / "text.parquet").write_text("item_id,title\n1,a\n")
    with pytest.raises(UserError, match=r"text\.parquet cannot be read as Parquet"):
        open_table(str(tmp_path / "text.parquet"), "items")
    with pytest.raises(UserError, match="cannot open"):
        open_table("gopher://host/items", "items")


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    uri = write([{"item_id": "a", "titel": "b"}], tmp_path / "items.parquet")
    with pytest.raises(UserError, match=r"items\.parquet has no column 'title' \(did you mean 'titel'\?\)") as caught:
        check_schema(open_table(uri, "items"), SETTINGS)
    assert "data.columns.title=" in caught.value.remedy
    check_schema(open_table(uri, "items"), SETTINGS.model_copy(update={"columns": {"title": "titel"}}))
    wanted = SETTINGS.model_copy(update={"columns": {"title": "titel"}, "text_fields": ["brand"]})
    with pytest.raises(UserError, match="no column 'brand'"):
        check_schema(open_table(uri, "items"), wanted)


def test_the_second_file_of_a_folder_is_checked_too(tmp_path: Path) -> None:
    write([{"item_id": "a", "title": "b"}], tmp_path / "items" / "0.parquet")
    write([{"item_id": "a"}], tmp_path / "items" / "1.parquet")
    with pytest.raises(UserError, match=r"1\.parquet has no column 'title'"):
        check_schema(open_table(str(tmp_path / "items"), "items"), SETTINGS)


@pytest.mark.parametrize(
    ("table", "column", "values", "message"),
    [
        ("items", "item_id", pa.array([1]), "'item_id' of .* is int64, and the contract wants string"),
        ("items", "image", pa.array(["path.png"]), "'image' of .* is string, and the contract wants binary"),
        ("clicks", "ts", pa.array([5]), "'ts' of .* is int64, and the contract wants timestamp"),
        ("clicks", "hard_negatives", pa.array([[1]]), r"is list<.*int64> and .*|wants list<string>"),
        ("pairs", "score", pa.array(["high"]), "wants float"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, table: str, column: str, values: pa.Array, message: str) -> None:
    columns = {name: pa.array(["a"]) for name in ("item_id", "title", "query", "related_id")} | {column: values}
    uri = write(pa.table(columns), tmp_path / "table.parquet")
    with pytest.raises(UserError, match=message):
        check_schema(open_table(uri, table), SETTINGS)


def test_a_column_that_nothing_uses_is_not_read(tmp_path: Path) -> None:
    """As the user of a click, of any type."""
    clicks = pa.table({"query": ["a"], "item_id": ["b"], "user_id": pa.array([7])})
    check_schema(open_table(write(clicks, tmp_path / "clicks.parquet"), "clicks"), SETTINGS)
    assert conform(clicks, "clicks", SETTINGS, Reasons(1)).column_names == ["query", "item_id"]


TEXT_TYPES = [
    pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.int32(), pa.large_string()), pa.dictionary(pa.int32(), pa.binary()),
]  # fmt: skip


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_every_way_to_store_text_is_accepted(tmp_path: Path, kind: pa.DataType) -> None:
    plain = pa.array(["añ", None, "b"])
    value_type = kind.value_type if pa.types.is_dictionary(kind) else kind
    stored = plain.cast(pa.binary()).cast(value_type) if "binary" in str(value_type) else plain.cast(value_type)
    stored = stored.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else stored
    uri = write(pa.table({"item_id": stored, "title": plain}), tmp_path / "items.parquet")
    check_schema(open_table(uri, "items"), SETTINGS)
    reasons = Reasons(3)
    block = conform(pa.table({"item_id": stored, "title": plain}), "items", SETTINGS, reasons)
    assert block["item_id"].type == pa.string()
    assert block["item_id"].to_pylist() == ["añ", None, "b"]
    assert reasons.good.all()


@pytest.mark.parametrize("kind", [pa.binary(), pa.string(), pa.large_string()], ids=str)
def test_text_that_is_not_utf8_gets_a_reason_and_harms_no_neighbour(kind: pa.DataType) -> None:
    octets = pa.array([b"good", b"\xff\xfe", None])
    octets = octets.cast(pa.large_binary()) if "large" in str(kind) else octets
    reasons = Reasons(3)
    block = conform(pa.table({"item_id": octets.view(kind)}), "items", SETTINGS, reasons)
    assert block["item_id"].to_pylist() == ["good", None, None]
    assert reasons.array().to_pylist() == [None, "invalid UTF-8 in item_id", None]


def test_lists_of_text_keep_their_rows_when_sliced() -> None:
    column = pa.array([["x"], ["a", "b"], None, []]).slice(1)
    block = conform(pa.table({"hard_negatives": column}), "clicks", SETTINGS, Reasons(3))
    assert block["hard_negatives"].to_pylist() == [["a", "b"], [], []]
    octets = pa.array([[b"a", b"\xff"]], pa.list_(pa.binary()))
    block = conform(pa.table({"hard_negatives": octets}), "clicks", SETTINGS, Reasons(1))
    assert block["hard_negatives"].to_pylist() == [["a", None]]


@pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32()], ids=str)
def test_every_timestamp_is_accepted(kind: pa.DataType) -> None:
    day = datetime.datetime(2020, 1, 2)
    block = conform(pa.table({"ts": pa.array([day]).cast(kind)}), "clicks", SETTINGS, Reasons(1))
    assert block["ts"].to_pylist() == [day]
    assert block["ts"].type == pa.timestamp("us")


def test_the_first_reason_stays_and_null_counts_as_bad() -> None:
    reasons = Reasons(3)
    reasons.add(pa.array([True, None, False]), "first")
    reasons.add_each(["second", None, "third"])
    assert reasons.array().to_pylist() == ["first", "first", "third"]
    assert blank(pa.array(["a", " \t", "", None, "\u3000"])).to_pylist() == [False, True, True, True, True]


def test_files_and_rows_keep_their_order(tmp_path: Path) -> None:
    rows = item_rows(25)
    for part, start in enumerate(range(0, 25, 10)):
        write(rows[start : start + 10], tmp_path / "items" / f"{part}.parquet", row_group_size=4)
    write([{"item_id": "no", "title": "no"}], tmp_path / "items" / "_note.parquet")
    table = open_table(str(tmp_path / "items"), "items")
    batches = [(unit, batch) for unit in table.units for batch in table.read(unit, ["item_id", "absent"])]
    assert [item for _, batch in batches for item in batch["item_id"].to_pylist()] == [row["item_id"] for row in rows]
    assert [unit.first_row for unit, _ in batches] == [0, 4, 8, 0, 4, 8, 0, 4]


def test_a_lance_dataset_is_a_table_too(tmp_path: Path) -> None:
    rows = pa.Table.from_pylist(item_rows(10))
    for start in (0, 5):
        lance.write_dataset(rows.slice(start, 5), str(tmp_path / "items"), mode="append" if start else "create")
    table = open_table(str(tmp_path / "items"), "items")
    check_schema(table, SETTINGS)
    read = [
        item for unit in table.units for batch in table.read(unit, ["item_id"]) for item in batch["item_id"].to_pylist()
    ]
    assert read == [f"i{n}" for n in range(10)]


def test_a_lance_dataset_is_read_as_it_was_when_it_was_opened(tmp_path: Path) -> None:
    """Compaction gives its fragments other numbers."""
    uri = str(tmp_path / "items")
    for start in (0, 5):
        rows = pa.Table.from_pylist(item_rows(10)).slice(start, 5)
        lance.write_dataset(rows, uri, mode="append" if start else "create")
    table = open_table(uri, "items")
    lance.dataset(uri).optimize.compact_files()

    def read() -> list[str]:
        batches = [batch for unit in table.units for batch in table.read(unit, ["item_id"])]
        return [item for batch in batches for item in batch["item_id"].to_pylist()]

    assert read() == [f"i{n}" for n in range(10)]
    lance.dataset(uri).cleanup_old_versions(datetime.timedelta(0))
    with pytest.raises(UserError, match=r"data\.items: version 2 of .*items was removed while it was read"):
        read()
