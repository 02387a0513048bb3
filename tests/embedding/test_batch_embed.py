"""`sidray embed` twice, stopped half way, on items that cannot be encoded, and into the item table."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidray import storage
from sidray.batch_embed import batch_embed, embed_into_table, with_pool
from sidray.data.catalogue import Catalogue
from sidray.embedding import attempt as attempt_module
from sidray.embedding import new_items
from sidray.embedding.encoded import load_model
from sidray.embedding.parts import Parts
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection

pytestmark = pytest.mark.ray

KILLS = int(os.environ.get("SIDRAY_KILLS", "1"))


@pytest.fixture
def run(debug_run: str) -> RunFolder:
    return with_pool(RunFolder.open(debug_run), ["embedding.shard_rows=16", "embedding.batch_size=8"])


@pytest.fixture
def collection(run: RunFolder) -> Iterator[Collection]:
    """Of the run that all tests share: as it was, when the test has ended."""
    collection = Collection.of(run)
    name = collection.fold().name
    yield collection
    collection.rollback(name)


def items_of(run: RunFolder, count: int) -> pa.Table:
    catalogue = Catalogue.open(run.output("catalogue"))
    return catalogue.items(np.arange(count), ["item_id", "title", "partition", "image", *catalogue.text_fields])


def retitled(table: pa.Table, titles: dict[int, str]) -> pa.Table:
    column = [titles.get(row, title) for row, title in enumerate(table["title"].to_pylist())]
    return table.set_column(table.column_names.index("title"), "title", [pa.array(column)])


def written(out: Path) -> dict[str, list[float]]:
    table = pq.read_table(out / "items.parquet")
    ids = table["item_id"].to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, table["vector"].to_pylist(), strict=True))


def test_a_later_call_embeds_what_is_new_or_changed(run: RunFolder, tmp_path: Path) -> None:
    first, out = items_of(run, 40), tmp_path / "out"
    pq.write_table(first, tmp_path / "items.parquet")
    before = batch_embed(run, str(tmp_path / "items.parquet"), str(out))
    assert (before["items"], before["kept"]) == (40, 0)
    vectors = written(out)
    changed = retitled(first, {3: "another title", 20: "one more"}).slice(1)  # item 0 is gone
    more = pa.concat_tables([items_of(run, 45).slice(40), changed])  # five new ones, before all others
    pq.write_table(more, tmp_path / "items.parquet")
    after = batch_embed(run, str(tmp_path / "items.parquet"), str(out))
    assert (after["items"], after["kept"]) == (44, 37)
    found = written(out)
    assert list(found) == more["item_id"].to_pylist()
    ids = first["item_id"].to_pylist()
    for row in (1, 2, 19, 39):
        assert found[ids[row]] == vectors[ids[row]]
    assert found[ids[3]] != vectors[ids[3]]
    manifest = storage.read_json(str(out / "manifest.json"))
    assert manifest["parts"] == sorted(path.name for path in (out / "items.parquet").iterdir())
    assert sorted(path.name for path in out.iterdir()) == ["items.parquet", "manifest.json"]
    alone = load_model(run).items(more.to_pylist()).vectors
    np.testing.assert_allclose([found[item_id] for item_id in more["item_id"].to_pylist()], alone, atol=1e-5)


def test_a_stopped_call_goes_on_at_the_first_part_that_is_missing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, out = str(tmp_path / "items.parquet"), tmp_path / "out"
    pq.write_table(items_of(run, 40), uri)
    write = Parts.write

    def stopping(parts: Parts, shard: int, *given: Any) -> None:
        if shard == 1:
            raise RuntimeError("stopped")
        write(parts, shard, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            batch_embed(run, uri, str(out))
    (part,) = (out / "items.parquet").iterdir()
    at = part.stat().st_mtime_ns

    def read_again(*given: Any, **named: Any) -> None:
        raise AssertionError("the catalogue was there")

    monkeypatch.setattr(attempt_module, "ingest", read_again)
    assert batch_embed(run, uri, str(out))["items"] == 40
    assert part.stat().st_mtime_ns == at
    assert len(written(out)) == 40


def test_parts_of_another_size_belong_to_another_attempt(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "ingest", interrupted)  # as soon as the attempt is noted
    pq.write_table(items_of(run, 3), tmp_path / "items.parquet")
    notes = []
    for size in (16, 16, 10):
        sized = with_pool(run, [f"embedding.shard_rows={size}"])
        with pytest.raises(KeyboardInterrupt):
            batch_embed(sized, str(tmp_path / "items.parquet"), str(tmp_path / "out"))
        notes.append(storage.read_json(str(tmp_path / "out" / "attempt.json")))
    assert notes[0] == notes[1] != notes[2]


def interrupted(*given: Any, **named: Any) -> None:
    raise KeyboardInterrupt


def test_items_that_cannot_be_encoded_are_set_aside(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on which the encoder raises; the deaths of processes are in test_suspects.py."""

    class Failing(new_items._NewItems):
        def _encode(self, items: list[Any]) -> pa.Table:
            if any(item["title"] == "poison" for item in items):
                raise ValueError("a picture of no kind")
            return super()._encode(items)

    monkeypatch.setattr(new_items, "_NewItems", Failing)
    uri, out = str(tmp_path / "items.parquet"), tmp_path / "out"
    table = retitled(items_of(run, 40), {9: "poison", 30: " "})
    pq.write_table(table, uri)
    reason = "cannot be encoded: ValueError: a picture of no kind"
    done = batch_embed(run, uri, str(out))
    assert done["items"] == 38
    assert done["quarantined"] == {"items: null or empty title": 1, f"embed: {reason}": 1}
    aside = pq.read_table(out / "quarantine" / "embed.parquet").to_pylist()
    poison = table["item_id"][9].as_py()
    assert [(row["value"], row["reason"]) for row in aside] == [(poison, reason)]
    assert poison not in written(out)
    pq.write_table(retitled(items_of(run, 40), {9: "poison", 10: "poison"}), uri)
    with pytest.raises(UserError, match=r"2 of 40 items could not be encoded(.|\n)*a picture of no kind"):
        batch_embed(run, uri, str(out), max_bad_fraction=0.02)


def test_new_items_go_into_the_table_that_is_served(run: RunFolder, collection: Collection, tmp_path: Path) -> None:
    generation = collection.pointer().current
    all_of_them = items_of(run, 40)
    ids = all_of_them["item_id"].to_pylist()
    new = pa.table({"item_id": ["new"], "title": ["a new one"], "partition": ["objects"], "image": [None]})
    table = pa.concat_tables([retitled(all_of_them, {7: "renamed"}), new], promote_options="permissive")
    pq.write_table(table, tmp_path / "items.parquet")
    done = embed_into_table(run, str(tmp_path / "items.parquet"))
    assert (done["items"], done["kept"]) == (41, 39)
    current = item_table.current(collection.table, columns=["item_id", "title", "vector"])
    assert current.num_rows == Catalogue.open(run.output("catalogue")).n_items + 1
    titles = dict(zip(current["item_id"].to_pylist(), current["title"].to_pylist(), strict=True))
    assert (titles["new"], titles[ids[7]]) == ("a new one", "renamed")
    assert collection.pointer().current.name in done["out"]
    assert collection.pointer().current != generation
    again = embed_into_table(run, str(tmp_path / "items.parquet"))
    assert (again["items"], again["kept"]) == (41, 41)


def test_a_pool_that_would_give_other_vectors_is_refused(run: RunFolder) -> None:
    assert with_pool(run, ["embedding.actors=3"]).recipe.embedding.actors == 3
    with pytest.raises(UserError, match=r"embedding\.precision=bf16 would give other vectors"):
        with_pool(run, ["embedding.precision=bf16"])
    with pytest.raises(UserError, match=r"embedding\.actor: unknown key \(did you mean 'actors'\?\)"):
        with_pool(run, ["embedding.actor=3"])


@pytest.mark.slow
@pytest.mark.parametrize("into_table", [False, True])
@pytest.mark.parametrize("trial", range(KILLS))
def test_no_item_is_lost_or_doubled_when_it_is_killed(
    run: RunFolder, collection: Collection, tmp_path: Path, trial: int, into_table: bool
) -> None:
    """SIGKILL to the whole process group of `sidray embed` at a random moment, until one call has come to its end."""
    table, random = items_of(run, 300), np.random.default_rng(trial)
    titles = {row: f"{title} of trial {trial}" for row, title in enumerate(table["title"].to_pylist())}
    pq.write_table(retitled(table, titles), tmp_path / "items.parquet")
    where = ["--into-table"] if into_table else ["--out", str(tmp_path / "out")]
    pool = ["embedding.shard_rows=16", "embedding.batch_size=8"]
    command = [sys.executable, "-m", "sidray.cli", "embed", run.uri, *pool, "--items", str(tmp_path / "items.parquet")]
    kills = 0
    while True:
        process = subprocess.Popen([*command, *where], stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            code = process.wait(None if kills == 3 else float(random.uniform(8, 30)))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    assert code == 0
    if into_table:
        log = item_table.open_version(collection.table).to_table(columns=["item_id", "title"])
        mine = [title for title in log["title"].to_pylist() if title.endswith(f" of trial {trial}")]
        assert sorted(mine) == sorted(titles.values())
        return
    assert list(written(tmp_path / "out")) == table["item_id"].to_pylist()
