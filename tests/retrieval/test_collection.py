"""Generations of a collection: folding, going back, and what is cleaned up."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path

import pytest

from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.lease import Lease
from sidray.retrieval import collection as module
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.index import PartitionedIndex
from tests.serving.runs import tiny_run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return tiny_run(tmp_path, 6)


def ids(collection: Collection) -> set[str]:
    return set(item_table.current(collection.table, columns=["item_id"])["item_id"].to_pylist())


def indexed(collection: Collection) -> set[str]:
    index = PartitionedIndex.load(collection.index_folder(collection.pointer().current), threads=1)
    return {item["item_id"] for item in index.fields(range(index.manifest.count))}


def test_the_runs_own_steps_stay_as_they_are(run: RunFolder) -> None:
    collection = Collection.of(run)
    own = f"{run.output('table')}/items.lance"
    item_table.append(collection.table, item_table.tombstones(["i000"]))
    assert item_table.current(own).num_rows == 6
    assert item_table.current(collection.table).num_rows == 5
    assert Collection.of(run).pointer() == collection.pointer()  # opened, not made anew
    assert item_table.current(Collection.of(run).table).num_rows == 5


def test_half_a_copy_is_made_anew(run: RunFolder) -> None:
    collection = Collection.of(run)
    item_table.append(collection.table, item_table.tombstones(["i000"]))
    (Path(collection.uri) / "current.json").unlink()  # as if the first call had been killed before its last step
    assert item_table.current(Collection.of(run).table).num_rows == 6


def test_folding_and_going_back(run: RunFolder) -> None:
    collection = Collection.of(run)
    first = collection.pointer().current
    assert collection.fold() == first  # nothing was written
    item_table.append(collection.table, item_table.tombstones(["i000"]))
    second = collection.fold()
    item_table.append(collection.table, item_table.tombstones(["i001", "i002"]))
    third = collection.fold()
    assert collection.fold() == third
    assert [each.name for each in collection.pointer().generations] == [first.name, second.name, third.name]
    assert indexed(collection) == ids(collection) == {"i003", "i004", "i005"}
    with pytest.raises(UserError, match=r"no generation 'generation-9'"):
        collection.rollback("generation-9")
    assert collection.rollback() == second
    assert indexed(collection) == ids(collection) == {"i001", "i002", "i003", "i004", "i005"}
    assert collection.rollback(first.name) == first
    assert indexed(collection) == ids(collection) == {f"i00{n}" for n in range(6)}
    assert collection.pointer().epoch == 2
    with pytest.raises(UserError, match="no generation before the current one"):
        collection.rollback()
    item_table.append(collection.table, item_table.tombstones(["i005"]))
    collection.fold()
    assert indexed(collection) == ids(collection) == {f"i00{n}" for n in range(5)}


def test_a_pointer_names_only_what_is_not_cleaned_up(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_VERSIONS_FOR", datetime.timedelta(0))

    def dies(*_: object) -> None:
        raise SystemError("killed")

    for step in (item_table, "tag"), (Collection, "_point"):
        with monkeypatch.context() as patched:
            patched.setattr(*step, dies)
            with pytest.raises(SystemError):
                Collection.of(run)
    collection = Collection.of(run)
    first = collection.pointer().current
    item_table.append(collection.table, item_table.tombstones(["i000"]))
    collection.tidy(int(item_table.open_version(collection.table).version))
    assert item_table.open_version(collection.table, first.table_version).count_rows() == 6


@pytest.mark.parametrize("gone", ["version", "index"])
def test_a_generation_that_is_damaged_cannot_be_gone_back_to(run: RunFolder, gone: str) -> None:
    collection = Collection.of(run)
    for number in range(2):
        item_table.append(collection.table, item_table.tombstones([f"i00{number}"]))
        collection.fold()
    before = collection.pointer()
    first, second, _ = before.generations
    if gone == "version":
        item_table.untag_others(collection.table, [first.name])
        item_table.clean(collection.table, datetime.timedelta(0))
    else:
        (Path(collection.index_folder(second)) / "manifest.json").unlink()
    with pytest.raises(UserError, match=rf"{second.name} cannot be gone back to: (.|\n)*rollback RUN GENERATION"):
        collection.rollback()
    assert collection.pointer() == before
    assert collection.rollback(first.name) == first
    assert indexed(collection) == ids(collection) == {f"i00{n}" for n in range(6)}


def test_going_back_keeps_the_number_of_shards(run: RunFolder) -> None:
    collection = Collection.of(run)
    for number, shards in enumerate((2, 1, 2)):
        item_table.append(collection.table, item_table.tombstones([f"i00{number}"]))
        collection.fold(shards)
    first, second, _, _ = before = collection.pointer().generations
    with pytest.raises(UserError, match=r"has 1 shards, the current one 2(.|\n)*sidray reindex RUN --shards 1, deploy"):
        collection.rollback(first.name)
    assert collection.pointer().generations == before
    assert collection.rollback() == second
    assert collection.pointer().newest(2) == second
    assert ids(collection) == {f"i00{n}" for n in range(1, 6)}
    with pytest.raises(UserError, match="no generation before the current one that has 2 shards too"):
        collection.rollback()
    collection.fold(shards=1)  # as the remedy says
    assert collection.rollback(first.name) == first
    assert ids(collection) == {f"i00{n}" for n in range(6)}


def test_old_generations_go_and_those_kept_can_be_gone_back_to(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP", 2)
    monkeypatch.setattr(module, "KEEP_VERSIONS_FOR", datetime.timedelta(0))
    collection = Collection.of(run)
    names = [collection.pointer().current.name]
    for number in range(4):
        item_table.append(collection.table, item_table.tombstones([f"i00{number}"]))
        names.append(collection.fold(shards=2 if number < 2 else 1).name)
    kept = names[-3:]  # the last two, and the newest of two shards: a service that has as many goes on with it
    assert [(each.name, each.shards) for each in collection.pointer().generations] == list(
        zip(kept, (2, 1, 1), strict=True)
    )
    assert sorted(path.name for path in (Path(collection.uri) / "generations").iterdir()) == sorted(kept)
    assert PartitionedIndex.load(run.output("index"), threads=1).manifest.count == 6  # the run's own
    versions = [each["version"] for each in item_table.open_version(collection.table).versions()]
    assert len(versions) <= 4
    collection.rollback()
    assert indexed(collection) == ids(collection) == {"i003", "i004", "i005"}


def test_a_partition_whose_items_are_gone_stays_known(run: RunFolder) -> None:
    collection = Collection.of(run)
    item_table.append(collection.table, item_table.tombstones(["i000", "i003"]))  # all of food
    for _ in range(2):
        index = PartitionedIndex.load(collection.index_folder(collection.fold()), threads=1)
        rows = index.search(index.vectors[:1], 3, ["food"])[1]
        assert (rows.tolist(), index.partitions) == ([[-1] * 3], ["", "food", "toys"])
        assert sorted(index.search(index.vectors[:1], 9)[1][0].tolist())[-index.manifest.count :] == list(
            range(index.manifest.count)
        )
        item_table.append(collection.table, item_table.tombstones(["i001"]))


def test_an_index_that_cannot_be_read_is_built_again(run: RunFolder) -> None:
    collection = Collection.of(run)
    collection.check()
    manifest = Path(collection.index_folder(collection.pointer().current)) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 3', '"format": 2'))
    with pytest.raises(UserError, match=r"has format 2(.|\n)*sidray reindex RUN"):
        collection.check()
    first = collection.fold()  # though nothing was written
    collection.check()
    assert indexed(collection) == ids(collection)
    assert collection.fold() == first


def test_a_fold_that_fails_leaves_nothing_for_ever(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = Collection.of(run)

    def fails(*_: object, **__: object) -> None:
        (Path(collection.uri) / "generations" / "half").mkdir(parents=True, exist_ok=True)
        raise SystemError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(module.index_module, "build", fails)
        for number in range(3):
            item_table.append(collection.table, item_table.tombstones([f"i00{number}"]))
            with pytest.raises(SystemError):
                collection.fold()
    collection.fold()
    names = [each.name for each in collection.pointer().generations]
    assert sorted(item_table.open_version(collection.table).tags.list()) == sorted(names)
    assert [path.name for path in (Path(collection.uri) / "generations").iterdir()] == names[1:]


def test_a_run_that_was_computed_anew_does_not_go_on_with_the_old_vectors(run: RunFolder) -> None:
    Collection.of(run)
    anew = dataclasses.replace(run, steps={**run.steps, "embed": "embed-9999"})
    collection = Collection.of(anew)
    for work in (collection.check, collection.fold):
        with pytest.raises(
            UserError, match=r"holds vectors of model tiny-0123, the run is of tiny-9999\n  remedy: .*delete"
        ):
            work()


def test_tidying_joins_small_files_and_drops_old_versions(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEP_VERSIONS_FOR", datetime.timedelta(0))
    collection = Collection.of(run)
    monkeypatch.setattr(module, "TIDY_ROWS", 6)  # the run's own rows fill a file, and are not written again
    first = item_table.open_version(collection.table).get_fragments()[0].fragment_id
    for number in range(3):
        item_table.append(collection.table, item_table.tombstones([f"i00{number}"]))
    collection.tidy(int(item_table.open_version(collection.table).version))
    fragments = item_table.open_version(collection.table).get_fragments()
    assert [each.count_rows() for each in fragments] == [6, 3]
    assert fragments[0].fragment_id == first
    versions = [each["version"] for each in item_table.open_version(collection.table).versions()]
    assert len(versions) == 2
    assert versions[0] == collection.pointer().current.table_version  # tagged
    collection.fold()
    assert indexed(collection) == ids(collection) == {"i003", "i004", "i005"}


def test_a_version_from_before_a_rollback_is_not_brought_back(run: RunFolder) -> None:
    collection = Collection.of(run)
    item_table.append(collection.table, item_table.tombstones(["i000"]))
    collection.fold()
    for number in (1, 2):
        item_table.append(collection.table, item_table.tombstones([f"i00{number}"]))
    seen = int(item_table.open_version(collection.table).version)
    collection.rollback(collection.pointer().generations[0].name)
    with pytest.raises((OSError, RuntimeError)):
        collection.tidy(seen)
    assert ids(collection) == {f"i00{n}" for n in range(6)}


def test_one_at_a_time(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    collection = Collection.of(run)
    item_table.append(collection.table, item_table.tombstones(["i000"]))
    with Lease(collection.uri):
        for work in (collection.fold, collection.rollback, lambda: collection.tidy(1)):
            with pytest.raises(UserError, match="wait for it"):
                work()
    collection.fold()
