"""Random access keeps the order asked for, and the grouped views equal what a loop over the clicks finds."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidray.data.catalogue import Catalogue
from sidray.data.ingest import ingest
from sidray.data.plan import one_click_per_item
from sidray.errors import UserError
from tests.data.makers import item_rows, settings, write

CLICKS = [  # (query, item, split)
    ("red", 4, "train"), ("red", 2, "train"), ("red", 4, "train"), ("blue", 4, "test"), ("green", 7, "valid"),
    ("old", 2, "train"), ("blue", 9, "train"), ("red", 0, "test"),
]  # fmt: skip


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch:
        from tests.data.conftest import blocks_in_this_process

        patch.setattr("sidray.data.items._checked_blocks", blocks_in_this_process)
        rows = [{"query": query, "item_id": f"i{item}", "split": split} for query, item, split in CLICKS]
        ingest(settings(folder, clicks=rows), str(folder / "out"))
    return Catalogue.open(str(folder / "out"))


@given(st.lists(st.integers(0, 19), max_size=40))
def test_items_come_in_the_order_asked_for(catalogue: Catalogue, rows: list[int]) -> None:
    table = catalogue.items(np.array(rows, dtype=np.int64), ["image", "item_id"])
    wanted = item_rows(20)
    assert table["item_id"].to_pylist() == [wanted[row]["item_id"] for row in rows]
    assert table["image"].to_pylist() == [wanted[row]["image"] for row in rows]


def test_rows_outside_are_an_error(catalogue: Catalogue) -> None:
    for row in (-1, 20):
        with pytest.raises(IndexError, match="of a catalogue of 20"):
            catalogue.items(np.array([0, row]), ["item_id"])


def test_clicks_know_their_own_rows(catalogue: Catalogue) -> None:
    table = catalogue.clicks()
    assert table["click_row"].to_pylist() == list(range(len(CLICKS)))
    found = zip(*(table[name].to_pylist() for name in ("query", "item_row", "split")), strict=True)
    assert list(found) == CLICKS
    assert catalogue.clicks("train")["click_row"].to_pylist() == [0, 1, 2, 5, 6]
    assert catalogue.clicks() is table  # read once
    numbers = dict(zip(table["query"].to_pylist(), table["query_id"].to_pylist(), strict=True))
    assert sorted(numbers.values()) == [0, 1, 2, 3]
    assert catalogue.n_queries == 4


def test_the_views_equal_a_loop(catalogue: Catalogue) -> None:
    items_of, clicks_of = defaultdict(set), defaultdict(list)
    for position, (query, item, split) in enumerate(CLICKS):
        if split == "train":
            items_of[query].add(item)
            clicks_of[item].append(position)
    assert catalogue.train_items.tolist() == sorted(clicks_of)
    assert catalogue.clicked_items.tolist() == sorted({item for _, item, _ in CLICKS})
    offsets, rows = catalogue.train_clicks_of_query()
    table = catalogue.clicks().to_pylist()
    for click in table:
        number = click["query_id"]
        assert rows[offsets[number] : offsets[number + 1]].tolist() == sorted(items_of[click["query"]])
    offsets, rows = catalogue.train_clicks_of_item()
    for position, item in enumerate(catalogue.train_items):
        assert rows[offsets[position] : offsets[position + 1]].tolist() == clicks_of[item]
    chosen = one_click_per_item(np.arange(3), np.zeros(3, np.int64), offsets, rows, seed=0)
    assert [table[click]["item_row"] for click in chosen] == catalogue.train_items.tolist()


def test_it_travels_as_its_address(catalogue: Catalogue) -> None:
    catalogue.clicks()
    catalogue.items(None, ["image"])
    data = pickle.dumps(catalogue)
    assert len(data) < 2_000
    again = pickle.loads(data)
    assert again.items(np.array([3]), ["title"])["title"].to_pylist() == ["item 3"]
    assert again.train_items.tolist() == catalogue.train_items.tolist()


def test_another_folder_is_not_a_catalogue(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a catalogue"):
        Catalogue.open(str(tmp_path))


def test_shuffled_pairs_keep_their_sides_and_the_other_splits(tmp_path: Path, without_ray: None) -> None:
    splits = ["train"] * 8 + ["valid", "test"]
    rows = [{"item_id": f"i{n}", "related_id": f"i{n + 9}", "split": split} for n, split in enumerate(splits)]
    ingest(settings(tmp_path, pairs=write(rows, tmp_path / "pairs.parquet")), str(tmp_path / "out"), "pairs")
    plain, shuffled = (Catalogue.open(str(tmp_path / "out"), seed) for seed in (None, 1))
    for split in ("train", "valid", "test"):
        own, other = plain.pairs(split), shuffled.pairs(split)
        assert own.drop_columns(["related_row"]).equals(other.drop_columns(["related_row"]))
        assert sorted(own["related_row"].to_pylist()) == sorted(other["related_row"].to_pylist())
        assert own.equals(other) == (split != "train")
    again = pickle.loads(pickle.dumps(shuffled))
    assert again.pairs().equals(shuffled.pairs())
    offsets, related = shuffled.train_related()
    first = shuffled.pairs("train").to_pylist()[0]
    start, end = offsets[first["item_row"]], offsets[first["item_row"] + 1]
    assert first["related_row"] in related[start:end]


def test_items_are_held_out_when_no_train_click_has_them_and_they_are_enough(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Catalogue.open(catalogue.uri)
    assert fresh.held_out_items.tolist() == []  # one is none
    monkeypatch.setattr("sidray.data.catalogue.MIN_HELD_OUT", 1)
    assert Catalogue.open(catalogue.uri).held_out_items.tolist() == [7]
    monkeypatch.setattr(Catalogue, "train_items", np.array([2, 7]))
    assert Catalogue.open(catalogue.uri).held_out_items.tolist() == []
