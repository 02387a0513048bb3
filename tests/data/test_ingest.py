"""What goes into the catalogue, what goes into the quarantine, and what stops the job."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidray.data import checks
from sidray.data.catalogue import Catalogue
from sidray.data.checks import read_items
from sidray.data.ingest import ingest
from sidray.data.settings import DataSettings
from sidray.data.tables import open_table
from sidray.errors import UserError
from tests.data.makers import animation, bomb, click_rows, item_rows, noise, picture, settings, write

pytestmark = pytest.mark.usefixtures("without_ray")


def run(settings: DataSettings, folder: Path, **options: Any) -> tuple[Catalogue, dict[str, Any]]:
    summary = ingest(settings, str(folder / "out"), **options)
    return Catalogue.open(str(folder / "out")), summary


def quarantined(folder: Path, table: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "quarantine" / f"{table}.parquet").to_pylist()


def test_good_tables_arrive_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue, summary = run(settings(tmp_path, text_fields=["note"]), tmp_path)
    assert catalogue.items(None, ["item_id", "title", "image", "partition"]).to_pylist() == [
        {name: row[name] for name in ("item_id", "title", "image", "partition")} for row in item_rows(20)
    ]
    assert summary["clicks"] == {"test": 5, "train": 20}
    assert summary["items"] == summary["images"] == catalogue.n_items == 20
    assert summary["queries"] == 20
    assert summary["quarantined"] == summary["skipped"] == {}
    assert catalogue.manifest["partitions"] == ["a", "b"]
    assert catalogue.text_fields == ["note"]
    assert not (tmp_path / "out" / "quarantine").exists()
    assert "20 items" in capsys.readouterr().out


def test_bad_items_are_set_aside_with_their_reason_and_place(tmp_path: Path) -> None:
    bad = [
        ({"item_id": None, "title": "t"}, "null or empty item_id"),
        ({"item_id": " ", "title": "t"}, "null or empty item_id"),
        ({"item_id": "x1", "title": None}, "null or empty title"),
        ({"item_id": "x2", "title": "  "}, "null or empty title"),
        ({"item_id": "i3", "title": "again"}, "duplicate item_id"),
        ({"item_id": "x3", "title": "t", "image": b"\x00\x01"}, "image: not a JPEG, PNG or WebP picture"),
        ({"item_id": "x4", "title": "t", "image": b""}, "image: no bytes"),
        (
            {"item_id": "x5", "title": "t", "image": noise((64, 64), "JPEG")[:-600]},
            "image: damaged or truncated (OSError)",
        ),
        ({"item_id": "x6", "title": "t", "image": bomb(9_000, 9_000)}, "image: more than 50,000,000 pixels"),
        ({"item_id": "x7", "title": "t", "image": animation("WEBP")}, "image: animated"),
    ]
    rows = [*item_rows(20), *(row for row, _ in bad)]
    catalogue, summary = run(settings(tmp_path, items=rows, max_bad_fraction=0.5), tmp_path)
    assert catalogue.n_items == 20
    assert catalogue.items(None, ["title"])["title"][3].as_py() == "item 3"
    kept = [(row["row"], row["value"], row["reason"]) for row in quarantined(tmp_path, "items")]
    assert kept == [(20 + n, row["item_id"] or "", reason) for n, (row, reason) in enumerate(bad)]
    assert all(row["file"].endswith("items.parquet") for row in quarantined(tmp_path, "items"))
    assert summary["quarantined"]["items: null or empty title"] == 2
    assert sum(summary["quarantined"].values()) == len(bad)


def test_the_first_good_row_of_an_id_is_the_item(tmp_path: Path) -> None:
    rows = [{"item_id": "i0", "title": "bad", "image": b"no"}, *item_rows(20)]
    catalogue, summary = run(settings(tmp_path, items=rows), tmp_path)
    assert catalogue.items(None, ["item_id"])["item_id"].to_pylist() == [f"i{n}" for n in range(20)]
    assert summary["clicks"] == {"test": 5, "train": 20}


def test_text_that_is_not_utf8_is_set_aside(tmp_path: Path) -> None:
    ids, titles = [f"i{n}".encode() for n in range(40)], [b"t"] * 40
    titles[7] = b"caf\xe9"
    items = pa.table({"item_id": pa.array(ids), "title": pa.array(titles).view(pa.string())})
    catalogue, summary = run(settings(tmp_path, items=items), tmp_path)
    assert catalogue.n_items == 39
    assert summary["quarantined"] == {
        "clicks: item_id of a quarantined item": 1,
        "items: invalid UTF-8 in title": 1,
    }


def test_an_item_needs_no_picture_and_no_partition(tmp_path: Path) -> None:
    rows = [{"item_id": f"i{n}", "title": "t"} for n in range(20)]
    catalogue, summary = run(settings(tmp_path, items=rows), tmp_path)
    assert summary["images"] == 0
    table = catalogue.items(None, ["image", "image_id", "partition"])
    assert set(table["image"].to_pylist()) == {None}
    assert set(table["image_id"].to_pylist()) == {-1}
    assert catalogue.manifest["partitions"] == [""]


def test_equal_pictures_have_equal_numbers(tmp_path: Path) -> None:
    rows = item_rows(20)
    rows[5]["image"] = rows[2]["image"]
    rows[6]["image"] = None
    catalogue, _ = run(settings(tmp_path, items=rows), tmp_path)
    numbers = catalogue.items(None, ["image_id"])["image_id"].to_pylist()
    assert numbers[5] == numbers[2]
    assert numbers[6] == -1
    assert len(set(numbers)) == 19
    assert min(number for number in numbers if number != -1) >= 0


def test_pictures_are_read_from_their_uris(tmp_path: Path) -> None:
    (tmp_path / "art").mkdir()
    (tmp_path / "art" / "0.png").write_bytes(picture())
    uris = ["art/0.png", str(tmp_path / "art" / "0.png"), (tmp_path / "art" / "0.png").as_uri(), None]
    uris += ["art/none.png", "http://host/a.png", "s3://b/a.png?endpoint_override=127.0.0.1:9&scheme=http", "art"]
    uris += ["s3://[bad/a.png"]
    rows = [{"item_id": f"i{n}", "title": "t", "image_uri": uri} for n, uri in enumerate(uris)]
    rows += [{"item_id": f"i{n}", "title": "t", "image_uri": None} for n in range(len(uris), 20)]
    catalogue, summary = run(settings(tmp_path, items=rows, max_bad_fraction=0.5), tmp_path)
    assert catalogue.items([0, 1, 2, 3], ["image"])["image"].to_pylist() == [picture()] * 3 + [None]
    reasons = [row["reason"] for row in quarantined(tmp_path, "items")]
    assert reasons == [
        "image_uri: cannot be read (FileNotFoundError)",
        "image_uri: http:// cannot be opened",
        "image_uri: a URI with options (?...) is not opened",
        reasons[3],
        "image_uri: s3:// cannot be opened",
    ]
    assert reasons[3].startswith("image_uri: cannot be read")
    assert summary["images"] == 3


def test_pictures_of_a_block_of_uris_are_not_in_memory_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "URI_ROWS", 8)
    (tmp_path / "0.png").write_bytes(picture())
    rows = [{"item_id": f"i{n}", "title": "t", "image_uri": "0.png"} for n in range(20)]
    given = settings(tmp_path, items=rows)
    table = open_table(given.items, "items")
    blocks = [checked for block in read_items(table, 0, given) for checked in checks.check_items(block, given, table)]
    assert [block.num_rows for block in blocks] == [8, 8, 4]
    assert pa.concat_tables(blocks)["item_id"].to_pylist() == [f"i{n}" for n in range(20)]


def test_pictures_that_repeat_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """Parquet stores such a picture once: what a row group holds is not what its rows are."""
    image = noise((200, 200), "PNG")
    rows = [{"item_id": f"i{n}", "title": "t", "image": image} for n in range(600)]
    given = settings(tmp_path, items=rows)
    assert (tmp_path / "items.parquet").stat().st_size < 2 * len(image)
    table = open_table(given.items, "items")
    assert max(batch.num_rows for batch in table.read(table.units[0], ["image"])) <= 256
    blocks = list(read_items(table, 0, given))
    assert max(block.nbytes for block in blocks) < 2.1 * 2**20
    assert [row for block in blocks for row in block["_row"].to_pylist()] == list(range(600))
    assert [item for block in blocks for item in block["item_id"].to_pylist()] == [f"i{n}" for n in range(600)]


def test_bad_clicks_are_set_aside(tmp_path: Path) -> None:
    bad = [
        ({"query": None, "item_id": "i1", "split": "train"}, "null or empty query"),
        ({"query": "q", "item_id": None, "split": "train"}, "null or empty item_id"),
        ({"query": "q", "item_id": "nobody", "split": "train"}, "item_id of no item"),
        ({"query": "q", "item_id": "i1", "split": "trian"}, "unknown split"),
        ({"query": "q", "item_id": "i1", "split": None}, "unknown split"),
        ({"query": "q", "item_id": "i1", "split": "train", "partition": "moon"}, "partition that no item has"),
    ]
    good = [*click_rows(20), {"query": "q", "item_id": "i1", "split": "train", "partition": ""}]
    catalogue, _ = run(settings(tmp_path, clicks=[*good, *(row for row, _ in bad)], max_bad_fraction=0.3), tmp_path)
    assert [(row["row"], row["reason"]) for row in quarantined(tmp_path, "clicks")] == [
        (len(good) + n, reason) for n, (_, reason) in enumerate(bad)
    ]
    clicks = catalogue.clicks().to_pylist()
    assert len(clicks) == len(good)
    assert [click["partition"] for click in clicks[:20]] == ["a", "b"] * 10  # the items' own
    assert clicks[-1]["partition"] == ""  # asked for everywhere
    assert [click["item_row"] for click in clicks[:20]] == list(range(20))


def test_too_many_bad_rows_stop_the_job(tmp_path: Path) -> None:
    clicks = [*click_rows(20), *({"query": "q", "item_id": f"no{n}", "split": "train"} for n in range(5))]
    with pytest.raises(UserError, match=r"5 of 30 rows of data\.clicks are bad.*item_id of no item: 5") as caught:
        run(settings(tmp_path, clicks=clicks), tmp_path)
    assert "clicks.parquet" in caught.value.remedy
    assert len(quarantined(tmp_path, "clicks")) == 5  # the file is there, and whole


def test_bad_items_stop_the_job_too(tmp_path: Path) -> None:
    rows = item_rows(20)
    for row in rows[:2]:
        row["image"] = b"no picture"
    with pytest.raises(UserError, match=r"2 of 20 rows of data\.items are bad"):
        run(settings(tmp_path, items=rows), tmp_path)


def test_an_empty_catalogue_stops_the_job(tmp_path: Path) -> None:
    empty = pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())})
    with pytest.raises(UserError, match="holds no item"):
        run(settings(tmp_path, items=empty), tmp_path)


def test_clicks_are_needed_only_where_they_are_required(tmp_path: Path) -> None:
    alone = DataSettings(source="tables", items=write(item_rows(5), tmp_path / "items.parquet"))
    with pytest.raises(UserError, match="no clicks"):
        run(alone, tmp_path)
    catalogue, _ = run(alone, tmp_path, wanted=None)
    assert catalogue.n_items == 5
    assert not catalogue.has("clicks")
    with pytest.raises(UserError, match="has no clicks"):
        catalogue.clicks()


def test_no_train_split_stops_the_job(tmp_path: Path) -> None:
    clicks = [{"query": "q", "item_id": "i1", "split": "test"}]
    with pytest.raises(UserError, match=r"gives no clicks in the train split(.|\n)*give clicks the split 'train'"):
        run(settings(tmp_path, clicks=clicks), tmp_path)


def test_splits_come_from_time_else_from_the_item(tmp_path: Path) -> None:
    start = datetime.datetime(2024, 1, 1)
    timed = [{"query": "q", "item_id": f"i{n}", "ts": start + datetime.timedelta(days=n)} for n in range(20)]
    catalogue, summary = run(settings(tmp_path, clicks=timed, valid_fraction=0.1, test_fraction=0.2), tmp_path)
    assert summary["clicks"] == {"test": 4, "train": 14, "valid": 2}
    assert catalogue.clicks("test")["item_row"].to_pylist() == [16, 17, 18, 19]
    untimed = [{"query": f"q{k}", "item_id": f"i{n}"} for n in range(20) for k in range(3)]
    catalogue, summary = run(settings(tmp_path / "b", clicks=untimed, test_fraction=0.5), tmp_path / "b")
    split_of = {(click["item_row"], click["split"]) for click in catalogue.clicks().to_pylist()}
    assert len(split_of) == 20  # an item's clicks stay together
    assert sum(summary["clicks"].values()) == 60
    assert summary["clicks"]["test"] >= 12


def test_files_of_a_table_may_lack_optional_columns(tmp_path: Path) -> None:
    start = datetime.datetime(2024, 1, 1)
    timed = [{"query": "q", "item_id": f"i{n}", "ts": start + datetime.timedelta(days=n)} for n in range(20)]
    write([{"query": "q", "item_id": "i1"}], tmp_path / "clicks" / "0.parquet")
    clicks = write(timed, tmp_path / "clicks" / "1.parquet").rsplit("/", 1)[0]
    given = settings(tmp_path, max_bad_fraction=0.1).model_copy(update={"clicks": clicks})
    _, summary = run(given, tmp_path)
    assert summary["quarantined"] == {"clicks: null ts, which the split by time needs": 1}
    assert sum(summary["clicks"].values()) == 20


def test_hard_negatives_become_rows_and_unknown_ones_are_counted(tmp_path: Path) -> None:
    clicks = click_rows(20)
    clicks[0]["hard_negatives"] = ["i3", "nobody", "i1"]
    catalogue, summary = run(settings(tmp_path, clicks=clicks), tmp_path)
    assert catalogue.clicks()["hard_negatives"].to_pylist()[:2] == [[3, 1], []]
    assert summary["skipped"] == {"hard negatives that are no item": 1}


def test_pairs_are_resolved_and_split_by_their_items(tmp_path: Path) -> None:
    rows = [{"item_id": "i0", "related_id": f"i{n}", "score": n / 2} for n in range(1, 20)]
    rows.append({"item_id": "i0", "related_id": "i0", "score": 1.0})
    given = settings(tmp_path, max_bad_fraction=0.1, test_fraction=0.4)
    catalogue, summary = run(given.model_copy(update={"pairs": write(rows, tmp_path / "pairs.parquet")}), tmp_path)
    pairs = catalogue.pairs().to_pylist()
    assert [(pair["item_row"], pair["related_row"], pair["score"]) for pair in pairs] == [
        (0, n, n / 2) for n in range(1, 20)
    ]
    splits = {pair["split"] for pair in pairs}
    assert "mixed" in splits
    assert len(splits) == 2  # all share i0: its own split, or mixed
    assert summary["quarantined"] == {"pairs: an item paired with itself": 1}


def test_given_pair_splits_stay(tmp_path: Path) -> None:
    rows = [{"item_id": "i0", "related_id": f"i{n}", "split": split} for n, split in enumerate(("valid", "mixed"), 1)]
    given = settings(tmp_path).model_copy(update={"pairs": write(rows, tmp_path / "pairs.parquet")})
    catalogue, _ = run(given, tmp_path)
    assert catalogue.pairs().to_pylist() == [
        {"item_row": 0, "related_row": 1, "split": "valid", "score": 1.0, "pair_row": 0},
        {"item_row": 0, "related_row": 2, "split": "mixed", "score": 1.0, "pair_row": 1},
    ]
    assert catalogue.pairs("valid").num_rows == 1


def test_a_limit_keeps_the_first_items_and_what_refers_to_them(tmp_path: Path) -> None:
    catalogue, summary = run(settings(tmp_path, limit=6), tmp_path)
    assert catalogue.items(None, ["item_id"])["item_id"].to_pylist() == [f"i{n}" for n in range(6)]
    assert summary["clicks"] == {"test": 2, "train": 6}
    assert summary["quarantined"] == {}
    assert summary["skipped"] == {"clicks outside data.limit": 17}


def test_the_user_s_column_names_are_understood(tmp_path: Path) -> None:
    items = [{"sku": f"i{n}", "name": f"item {n}", "maker": "m"} for n in range(20)]
    clicks = [{"search": "q", "item_id": "i1", "split": "train"}]  # item_id by its own name here
    names = {"item_id": "sku", "title": "name", "brand": "maker", "query": "search"}
    catalogue, _ = run(settings(tmp_path, items=items, clicks=clicks, columns=names, text_fields=["brand"]), tmp_path)
    assert catalogue.items([1], ["item_id", "title", "brand"]).to_pylist() == [
        {"item_id": "i1", "title": "item 1", "brand": "m"}
    ]
    assert catalogue.clicks()["query"].to_pylist() == ["q"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"image": "pcture"},
            r"data\.columns\.image: there is no column 'pcture' \(did you mean 'picture'\?\) in data\.items;",
        ),
        (
            {"split": "fold"},
            r"data\.columns\.split: there is no column 'fold' in data\.clicks; there are .*item_id, query",
        ),
        ({"partition": "town"}, r"no column 'town' in data\.items and data\.clicks; "),
    ],
)
def test_a_renamed_column_that_no_table_has_is_told(tmp_path: Path, names: dict[str, str], message: str) -> None:
    """Pictures, splits and partitions would be lost in silence."""
    items = [row | {"picture": row.pop("image")} for row in item_rows(20)]
    with pytest.raises(UserError, match=message):
        run(settings(tmp_path, items=items, columns=names), tmp_path)
    assert not (tmp_path / "out").exists()


def test_renamed_columns_of_tables_that_are_not_given_are_not_looked_for(tmp_path: Path) -> None:
    names = {"query": "search", "related_id": "other", "ts": "when"}
    items = write(item_rows(5), tmp_path / "items.parquet")
    catalogue, _ = run(DataSettings(source="tables", items=items, columns=names), tmp_path, wanted=None)
    assert catalogue.n_items == 5
