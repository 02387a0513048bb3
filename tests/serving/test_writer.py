"""The writer over a real table, with an embedder that counts what it is asked."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sidray.data.content import content_hash
from sidray.errors import StorageError, UserError
from sidray.finished import RunFolder
from sidray.lease import Lease
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.serving import writer as module
from sidray.serving.messages import EncodedItems, NewItem, Refusal
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.settings import WriterSettings
from sidray.serving.writer import Writer
from tests.data.makers import picture
from tests.serving.runs import DIMENSION, MODEL_KEY, tiny_run


class Encoder:
    """Every vector points up; `fails` is raised once."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fails: Exception | None = None
        self.value = 1.0

    async def __call__(self, items: list[NewItem]) -> EncodedItems:
        self.asked.append([item.item_id for item in items])
        await asyncio.sleep(0)
        if self.fails:
            error, self.fails = self.fails, None
            raise error
        vectors = np.full((len(items), DIMENSION), self.value, np.float32)
        return EncodedItems(vectors, [[7]] * len(items), MODEL_KEY)


class Folds:
    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, run: RunFolder) -> None:
        self.count += 1
        Collection.of(run).fold()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return tiny_run(tmp_path, 6)


def item(item_id: str, title: str = "Soup", image: bytes | None = None, shop: str | None = "Bar") -> NewItem:
    return NewItem(item_id, title, "food", image, {"shop": shop})


def writer_of(run: RunFolder, encoder: Encoder, folds: Folds | None = None, **settings: Any) -> Writer:
    return Writer(run, WriterSettings(**{"commit_ms": 1, **settings}), encoder, folds or Folds())


def titles(run: RunFolder, version: int | None = None) -> dict[str, str]:
    found = item_table.current(Collection.of(run).table, version, ["item_id", "title"]).to_pylist()
    return {row["item_id"]: row["title"] for row in found}


async def test_what_is_acknowledged_is_in_that_version_of_the_table(run: RunFolder) -> None:
    writer = writer_of(run, Encoder())
    version = await writer.put([item("a1", image=picture()), item("i000", "Broth")])
    assert isinstance(version, int)
    assert titles(run, version)["a1"] == "Soup"
    assert titles(run, version)["i000"] == "Broth"
    assert titles(run, version - 1)["i000"] == "title 0"
    row = next(
        row for row in item_table.current(Collection.of(run).table, version).to_pylist() if row["item_id"] == "a1"
    )
    assert row["content_hash"] == content_hash("Soup", ["Bar"], "food", picture())
    assert (row["shop"], row["sids"], row["model_key"], row["partition"]) == ("Bar", [7], MODEL_KEY, "food")
    assert row["thumbnail"][:3] == b"\xff\xd8\xff"
    np.testing.assert_array_equal(row["vector"], np.ones(DIMENSION))


async def test_only_what_changed_is_embedded(run: RunFolder) -> None:
    encoder = Encoder()
    writer = writer_of(run, encoder)
    first = await writer.put([item("a1"), item("a2")])
    again = await writer.put([item("a1"), item("a2", "Stew"), item("a3", shop=None)])
    assert encoder.asked == [["a1", "a2"], ["a2", "a3"]]
    assert isinstance(first, int)
    assert isinstance(again, int)
    assert again > first
    assert await writer.put([item("a1"), item("a2", "Stew")]) == again
    assert len(encoder.asked) == 2
    later = writer_of(run, encoder)  # a writer that starts anew knows what the table holds
    assert await later.put([item("a1"), item("a2", "Stew"), item("a3", shop=None)]) == again
    assert len(encoder.asked) == 2
    for change in (item("a1", "Soup!"), item("a1", image=picture()), item("a1", shop="Inn")):
        assert isinstance(await writer.put([change]), int)
    assert encoder.asked[2:] == [["a1"]] * 3


async def test_a_deleted_item_is_gone_and_comes_back_with_a_write(run: RunFolder) -> None:
    encoder = Encoder()
    writer = writer_of(run, encoder)
    await writer.put([item("a1")])
    version = await writer.delete("a1")
    assert isinstance(version, int)
    assert "a1" not in titles(run, version)
    again = await writer.delete("a1")
    assert isinstance(again, Refusal)
    assert (again.status, again.code) == (404, "unknown_item")
    assert isinstance(await writer.put([item("a1")]), int)  # equal content, but it is not there
    assert titles(run)["a1"] == "Soup"
    assert encoder.asked == [["a1"], ["a1"]]


async def test_what_others_wrote_is_known(run: RunFolder) -> None:
    """A batch job deletes an item: the same content is no longer unchanged."""
    encoder = Encoder()
    writer = writer_of(run, encoder)
    await writer.put([item("a1")])
    item_table.append(Collection.of(run).table, item_table.tombstones(["a1"]))
    await writer.put([item("a1")])
    assert titles(run)["a1"] == "Soup"
    assert len(encoder.asked) == 2


async def test_a_rollback_is_known(run: RunFolder) -> None:
    collection, encoder = Collection.of(run), Encoder()
    writer = writer_of(run, encoder)
    await writer.put([item("a1")])
    collection.fold()
    await writer.put([item("a2")])
    collection.fold()
    await writer.put([item("a2")])  # unchanged: the writer knows of it
    collection.rollback()
    assert titles(run).keys() >= {"a1"}
    assert "a2" not in titles(run)
    version = await writer.put([item("a1"), item("a2")])
    assert encoder.asked == [["a1"], ["a2"], ["a2"]]
    assert isinstance(version, int)
    assert titles(run, version)["a2"] == "Soup"


@pytest.mark.parametrize("step", ["ItemLog", "KnownItems.of", "LogReader"])
async def test_a_storage_that_is_away_behind_a_rollback_hides_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    collection, writer = Collection.of(run), writer_of(run, Encoder())
    await writer.put([item("a1")])
    await writer.put([item("a1")])  # unchanged: the writer knows of it
    collection.fold()
    collection.rollback(collection.pointer().generations[0].name)

    def away(*_: object) -> None:
        raise StorageError("the storage is away")

    with monkeypatch.context() as patched:
        place = "sidray.retrieval.item_table" if step == "ItemLog" else "sidray.serving.table_log"
        patched.setattr(f"{place}.{step}", away)
        answer = await writer.put([item("a1")])
        assert isinstance(answer, Refusal)
        assert answer.status == 503
    version = await writer.put([item("a1")])
    assert isinstance(version, int)
    assert titles(run, version)["a1"] == "Soup"


async def test_what_a_rollback_takes_while_others_are_embedded_is_written_again(run: RunFolder) -> None:
    collection, encoder = Collection.of(run), Encoder()
    writer = writer_of(run, encoder)
    await writer.put([item("a1")])
    collection.fold()

    async def encode(items: list[NewItem]) -> EncodedItems:
        if not encoder.asked[1:]:
            collection.rollback(collection.pointer().generations[0].name)
        return await encoder(items)

    writer._encode = encode
    version = await writer.put([item("a1"), item("a2")])
    assert isinstance(version, int)
    assert titles(run, version).keys() >= {"a1", "a2"}
    assert encoder.asked == [["a1"], ["a2"], ["a1"]]


async def test_concurrent_writes_share_commits(run: RunFolder) -> None:
    writer = writer_of(run, Encoder(), commit_ms=20)
    versions = await asyncio.gather(*(writer.put([item(f"a{n}")]) for n in range(40)))
    assert len(set(versions)) <= 3
    assert titles(run).keys() >= {f"a{n}" for n in range(40)}


async def test_a_row_that_does_not_fit_fails_alone(run: RunFolder) -> None:
    encoder = Encoder()
    writer = writer_of(run, encoder, commit_ms=20)

    async def broken() -> int | Refusal:
        encoder.value = np.nan
        return await writer.put([item("bad")])

    async def sound() -> int | Refusal:
        while not encoder.asked:
            await asyncio.sleep(0)
        await asyncio.sleep(0.002)
        encoder.value = 1.0
        return await writer.put([item("good")])

    bad, good = await asyncio.gather(broken(), sound(), return_exceptions=True)
    assert isinstance(bad, UserError)  # a 500: that would not pass by itself, as a 503 says
    assert "item 'bad'" in str(bad)
    assert isinstance(good, int)
    assert "bad" not in titles(run)
    assert titles(run)["good"] == "Soup"


async def test_a_full_embedder_is_told_and_nothing_is_written(run: RunFolder) -> None:
    encoder = Encoder()
    writer = writer_of(run, encoder)
    encoder.fails = ApiError(overloaded())
    answer = await writer.put([item("a1")])
    assert isinstance(answer, Refusal)
    assert answer.status == 503
    assert "a1" not in titles(run)
    assert isinstance(await writer.put([item("a1")]), int)


async def test_without_its_storage_writes_are_503_and_come_back(run: RunFolder, tmp_path: Path) -> None:
    writer = writer_of(run, Encoder())
    folder, away = Path(Collection.of(run).uri), tmp_path / "away"
    folder.rename(away)
    for answer in (await writer.put([item("a1")]), await writer.delete("i000")):
        assert isinstance(answer, Refusal)
        assert (answer.status, answer.code) == (503, "storage_unavailable")
    away.rename(folder)
    version = await writer.put([item("a1")])
    assert isinstance(version, int)
    assert titles(run, version)["a1"] == "Soup"


async def test_during_a_rollback_nothing_is_written(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    collection, writer = Collection.of(run), writer_of(run, Encoder())
    await writer.put([item("a1")])
    collection.fold()
    seen: list[object] = []

    def restore(uri: str, version: int) -> None:
        raise UserError("killed here", "")

    monkeypatch.setattr(item_table, "restore", restore)
    with pytest.raises(UserError, match="killed here"):
        collection.rollback()
    monkeypatch.undo()
    seen.append(await writer.put([item("a2")]))
    with pytest.raises(UserError, match=r"rollback of .* was interrupted"):
        collection.fold()
    assert all(isinstance(answer, Refusal) and answer.status == 503 for answer in seen)
    collection.rollback()
    assert isinstance(await writer.put([item("a2")]), int)
    assert titles(run).keys() >= {"a2", "i000"}
    assert "a1" not in titles(run)


@pytest.mark.parametrize("step", ["contents", "append"])
async def test_a_kill_between_steps_leaves_all_or_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The writer dies before or behind a step; the one that takes its place answers from the table alone."""
    for behind in (False, True):
        writer = writer_of(run, Encoder())
        original = getattr(writer._log, step)

        def dies(*args: Any, behind: bool = behind, original: Any = original) -> Any:
            if behind:
                original(*args)
            raise SystemError("killed")

        monkeypatch.setattr(writer._log, step, dies)
        if step == "append":
            writer._commits._append = dies
        with pytest.raises(SystemError):
            await writer.put([item("a1"), item("a2")])
        there = titles(run).keys() & {"a1", "a2"}
        assert there == ({"a1", "a2"} if behind and step == "append" else set())
    version = await writer_of(run, Encoder()).put([item("a1"), item("a2")])
    assert isinstance(version, int)
    assert titles(run, version).keys() >= {"a1", "a2"}


async def upkeep(writer: Writer) -> None:
    """As Serve has it done every few seconds."""
    await writer.check_health()
    assert writer._upkeep is not None
    await writer._upkeep


async def test_much_was_written_or_some_long_ago_starts_one_fold(run: RunFolder) -> None:
    folds = Folds()
    writer = writer_of(run, Encoder(), folds, fold_rows=3, fold_s=1000)
    await writer.put([item("a1"), item("a2")])
    await upkeep(writer)
    assert folds.count == 0
    await writer.put([item("a3")])
    for _ in range(3):
        await upkeep(writer)
    assert folds.count == 1
    soon = writer_of(run, Encoder(), folds, fold_rows=100, fold_s=1e-9)
    await upkeep(soon)  # nothing was written
    await soon.put([item("a4")])
    await upkeep(soon)
    assert folds.count == 2


@pytest.mark.parametrize("settings", [{"fold_rows": 2, "fold_s": 1000}, {"fold_rows": 100, "fold_s": 1e-9}])
async def test_what_others_wrote_or_an_earlier_writer_is_folded(run: RunFolder, settings: dict[str, float]) -> None:
    table, folds = Collection.of(run).table, Folds()
    await writer_of(run, Encoder()).put([item("a1")])
    later = writer_of(run, Encoder(), folds, **settings)
    item_table.append(table, item_table.tombstones(["i000"]))  # as a batch job does
    await upkeep(later)
    assert folds.count == 1
    await upkeep(later)
    assert folds.count == 1


async def test_a_storage_that_is_away_is_looked_at_again(run: RunFolder, tmp_path: Path) -> None:
    folder, away, folds = Path(Collection.of(run).uri), tmp_path / "away", Folds()
    writer = writer_of(run, Encoder(), folds, fold_rows=1)
    await writer.put([item("a1")])
    folder.rename(away)
    await upkeep(writer)
    assert folds.count == 0
    away.rename(folder)
    await upkeep(writer)
    assert folds.count == 1


async def test_a_fold_that_fails_is_tried_again_later(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = 0

    async def fails(run: RunFolder) -> None:
        nonlocal folds
        folds += 1
        raise OSError("the disk is full")

    writer = Writer(run, WriterSettings(commit_ms=1, fold_rows=1), Encoder(), fails)
    await writer.put([item("a1")])
    for _ in range(5):
        await upkeep(writer)
    assert folds == 1
    monkeypatch.setattr(writer, "_fold_from", 0.0)
    await upkeep(writer)
    assert folds == 2


async def test_many_commits_are_tidied(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIDY_COMMITS", 5)
    writer = writer_of(run, Encoder())

    async def fragments() -> int:
        await upkeep(writer)
        return len(item_table.open_version(Collection.of(run).table).get_fragments())

    for number in range(6):
        await writer.put([item(f"a{number}")])
    assert await fragments() == 7  # replicas may not have seen them
    assert await fragments() == 1
    await writer.put([item("a9")])
    assert await fragments() == await fragments() == 2
    with Lease(Collection.of(run).uri):  # a generation is being built
        for number in range(6):
            await writer.put([item(f"b{number}")])
        assert await fragments() == await fragments() == 8
    assert titles(run).keys() >= {"a0", "a5", "a9", "b5"}


async def test_events_are_appended_as_the_contract_has_them(run: RunFolder) -> None:
    writer = writer_of(run, Encoder())
    zone = datetime.timezone(datetime.timedelta(hours=2))
    ts = datetime.datetime(2026, 1, 31, 12, tzinfo=zone)
    row = {"user_id": "u1", "item_id": "a1", "action": "click", "ts": ts, "query": None}
    assert await writer.append_events([row]) == 1
    assert await writer.append_events([row, {**row, "query": "soup"}]) == 2
    assert await writer.append_events([row]) == 1  # a client that lost the answer sends it again
    table = pq.read_table(Collection.of(run).events)
    assert table.column_names == ["user_id", "item_id", "action", "ts", "query"]
    assert table["ts"][0].as_py() == ts
    assert sorted(table["query"].to_pylist(), key=str) == [None, None, "soup"]
