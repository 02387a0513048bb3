"""An object store that fails now and then, that stays away, and that refuses: what is survived, what is told, how soon.

A run in an S3: everything that reads one, and a whole recipe through one that fails for a share of the requests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sidray import storage
from sidray.batch_embed import batch_embed
from sidray.client import Client
from sidray.cluster import free_port
from sidray.data.catalogue import Catalogue
from sidray.datasets import append_rows, open_dataset, write_dataset
from sidray.errors import StorageError, UserError
from sidray.export import export
from sidray.finished import RunFolder
from sidray.lease import Lease
from sidray.report_files import TABLE
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection
from sidray.retrieval.index import PartitionedIndex
from sidray.search import search
from sidray.serving.follower import Follower
from sidray.serving.run import running_service
from sidray.show import show
from sidray.steps import Step, Store, Work
from tests.object_store import FlakyProxy, environment, make_bucket, moto_server

FLAKY = {"slow down": 0.05, "internal": 0.05, "reset": 0.05, "cut": 0.05}


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    with moto_server() as url:
        make_bucket(url, "flaky")
        yield url


@pytest.fixture
def proxy(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlakyProxy]:
    with FlakyProxy(moto, {}) as proxy:
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        storage._bucket.cache_clear()
        yield proxy
    storage._bucket.cache_clear()


def test_a_fifth_of_the_requests_may_fail(proxy: FlakyProxy) -> None:
    proxy.share = FLAKY
    rows = pa.table({"a": np.arange(20_000), "b": np.random.default_rng(0).random(20_000)})
    for n in range(3):
        uri = f"s3://flaky/run/{n}"
        storage.write_json(f"{uri}/small.json", {"n": n})
        for _ in range(6):
            assert storage.read_json(f"{uri}/small.json") == {"n": n}  # shorter than the text of an error
        write_dataset(f"{uri}/rows.lance", rows, rows_per_file=5_000)
        dataset = open_dataset(f"{uri}/rows.lance")
        assert dataset.take([19_999, 3])["a"].to_pylist() == [19_999, 3]
        assert dataset.to_table().equals(rows)
    storage.copy("s3://flaky/run", "s3://flaky/copy")
    assert storage.size_of("s3://flaky/copy") == storage.size_of("s3://flaky/run")
    storage.delete("s3://flaky/copy")
    assert storage.list_names("s3://flaky/copy") == []
    assert all(proxy.seen[fault] for fault in FLAKY)


def test_a_slow_answer_is_waited_for(proxy: FlakyProxy) -> None:
    """pyarrow's own limit is 3 s."""
    storage.write_bytes("s3://flaky/slow", b"abc")
    proxy.share, proxy.stall_s = {"stall": 1.0}, 4.0
    assert storage.exists("s3://flaky/slow")
    assert proxy.seen["stall"] == 1


def test_one_that_stays_broken_is_told_after_all_attempts(proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 3)
    monkeypatch.setattr(storage, "REPEAT_S", 0.0)
    monkeypatch.setattr(storage, "RETRY_S", 0)
    write_dataset("s3://flaky/there.lance", pa.table({"a": [1]}))
    dataset = open_dataset("s3://flaky/there.lance")
    proxy.share = {"slow down": 1.0}
    before = len(proxy.requests)
    with pytest.raises(StorageError, match=r"cannot write s3://flaky/x: the storage does not answer.*\n.*wait until"):
        storage.write_bytes("s3://flaky/x", b"1")
    assert len(proxy.requests) - before == 3
    with pytest.raises(StorageError, match="cannot read s3://flaky/x: the storage does not answer"):
        storage.read_bytes("s3://flaky/x")
    before = len(proxy.requests)
    with pytest.raises(StorageError, match=r"there\.lance"):
        open_dataset("s3://flaky/there.lance")
    assert len(proxy.requests) - before <= 12  # Lance's own patience: 66
    with pytest.raises(StorageError, match=r"cannot write s3://flaky/there\.lance"):
        append_rows(dataset, pa.table({"a": [2]}).to_reader())


def test_refusals_are_told_at_once(proxy: FlakyProxy) -> None:
    storage.exists("s3://flaky/x")
    proxy.share = {"forbidden": 1.0}
    started = time.monotonic()
    for call in (
        lambda: storage.exists("s3://flaky/x"),
        lambda: storage.list_names("s3://flaky/x"),
        lambda: storage.write_bytes("s3://flaky/x", b"1"),
        lambda: open_dataset("s3://flaky/x.lance"),
        lambda: write_dataset("s3://flaky/x.lance", pa.table({"a": [1]})),
    ):
        before = len(proxy.requests)
        with pytest.raises(StorageError, match=r"access is denied(.|\n)*AWS_ACCESS_KEY_ID"):
            call()
        assert len(proxy.requests) - before <= 6  # to list a folder Lance asks six times
    proxy.share = {}
    with pytest.raises(UserError, match="cannot open s3://nowhere: the bucket does not exist"):
        storage.exists("s3://nowhere/x")
    assert time.monotonic() - started < 5


def test_an_address_where_nobody_listens_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    storage._bucket.cache_clear()
    started = time.monotonic()
    with pytest.raises(
        StorageError, match=r"cannot open s3://flaky: the storage cannot be reached\n.*AWS_ENDPOINT_URL"
    ):
        Store("s3://flaky/runs")
    assert time.monotonic() - started < 12
    storage._bucket.cache_clear()


def test_a_step_names_itself_and_continues(proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 2)
    monkeypatch.setattr(storage, "REPEAT_S", 0.0)
    away = [True]

    def run(work: Work) -> dict[str, object]:
        proxy.share = {"slow down": 1.0} if away.pop() else {}
        storage.write_bytes(work.path("out"), b"whole")
        return {}

    store, step = Store("s3://flaky/steps", say=lambda line: None), Step("a", run, {}, 1)
    with pytest.raises(StorageError, match=r"step a: cannot write s3://flaky/steps/.*\n.*the same command again"):
        store.ensure(step)
    proxy.share = {}
    away.append(False)
    assert storage.read_bytes(f"{store.ensure(step)}/out") == b"whole"


def test_a_lease_survives_failed_heartbeats_and_notices_its_loss(
    proxy: FlakyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sidray import lease as module

    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.setattr(storage, "REPEAT_S", 0.0)
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(module, "RETRY_S", 0.1)
    folder = "s3://flaky/leased"
    with Lease(folder) as lease:
        proxy.share = {"internal": 1.0}
        time.sleep(0.5)
        assert proxy.seen["internal"] > 1
        monkeypatch.setattr(module, "HEARTBEAT_S", 600.0)  # one more heartbeat
        proxy.share = {}
        beat = storage.read_json(lease.uri)["heartbeat"]
        until = time.monotonic() + 10
        while storage.read_json(lease.uri)["heartbeat"] == beat and time.monotonic() < until:
            time.sleep(0.05)
        assert storage.read_json(lease.uri)["heartbeat"] > beat
        lease.confirm()
        storage.write_json(lease.uri, {**storage.read_json(lease.uri), "lease": "b", "owner": "driver b"})
        with pytest.raises(UserError, match="driver b took over"):
            lease.confirm()
    assert storage.read_json(lease.uri)["lease"] == "b"  # it is no longer ours to remove


def test_a_step_that_was_taken_over_does_not_finish(tmp_path: object) -> None:
    """Its output may be another driver's by then, who is rewriting it."""

    def run(work: Work) -> dict[str, object]:
        lease = storage.join(work.output.rsplit("/", 1)[0], "lease.json")
        storage.write_json(lease, {**storage.read_json(lease), "lease": "b", "owner": "driver b"})
        return {}

    store, step = Store(str(tmp_path), say=lambda line: None), Step("a", run, {}, 1)
    with pytest.raises(UserError, match="driver b took over"):
        store.ensure(step)
    assert store.manifest(step) is None


def test_lance_and_we_find_the_same_folder_under_every_name(proxy: FlakyProxy) -> None:
    """Labels of variants are folders of a collection."""
    letters = "".join(chr(code) for code in range(32, 127) if chr(code) != "/")
    for name in ("basic method", "Grün", letters, storage._ODD.sub("", letters)):
        uri = f"s3://flaky/{storage.plain(name)}/rows.lance"
        write_dataset(uri, pa.table({"a": [1]}))
        assert storage.exists(uri)
        storage.copy(uri, f"{uri}-copy")
        assert open_dataset(f"{uri}-copy").count_rows() == 1
    with pytest.raises(UserError, match="' ' cannot be in the name"):
        write_dataset("s3://flaky/basic method", pa.table({"a": [1]}))
    with pytest.raises(UserError, match="'ü' cannot be in the name"):
        Store("s3://flaky/Grün")


@pytest.fixture(scope="module")
def run(debug_run: str, bucket: str) -> RunFolder:
    """The session's finished run, moved to a bucket with all its steps."""
    root = f"{bucket}/moved"
    storage.copy(debug_run.rsplit("/", 2)[0], root)
    return RunFolder.open(f"{root}/runs/{debug_run.rsplit('/', 1)[1]}")


@pytest.mark.ray
def test_a_run_in_a_bucket_is_read_as_one_on_a_disk(run: RunFolder, debug_run: str) -> None:
    assert show(run.uri).replace(run.uri, debug_run).split() == show(debug_run).split()
    hits = [search(each, "cat", None, [], 5) for each in (run, RunFolder.open(debug_run))]
    assert [hit.item_id for hit in hits[0]] == [hit.item_id for hit in hits[1]]
    where = f"{run.root}/exported"
    assert export(run, where) == ["image", "pretrained", "sidray.json", "text", "tokenizers", "towers.safetensors"]
    assert set(storage.list_names(where)) == set(export(run, f"{where}-again"))
    with pytest.raises(UserError, match="is not empty"):
        export(run, where)


@pytest.mark.ray
def test_a_table_in_a_bucket_is_embedded_into_another_folder(run: RunFolder) -> None:
    items = Catalogue.open(run.output("catalogue")).items(np.arange(20), ["item_id", "title", "image", "partition"])
    out = pa.BufferOutputStream()
    pq.write_table(items, out)
    storage.write_bytes(f"{run.root}/in/items.parquet", out.getvalue().to_pybytes())
    summary = batch_embed(run, f"{run.root}/in/items.parquet", f"{run.root}/embedded", max_bad_fraction=0.0)
    filesystem, folder = storage.open_uri(summary["out"])
    got = pq.read_table(folder, filesystem=filesystem)
    assert got["item_id"].to_pylist() == items["item_id"].to_pylist()
    assert set(got["model_key"].to_pylist()) == {run.model_key}


@pytest.mark.ray
def test_a_collection_in_a_bucket_is_written_folded_and_taken_back(run: RunFolder) -> None:
    collection = Collection.of(run)
    first = collection.fold()  # of what others wrote to the run that is shared
    follower = Follower(collection, poll_s=60.0)
    count = follower.view.count
    gone = item_table.current(collection.table, columns=["item_id"])["item_id"][0].as_py()
    version = item_table.append(collection.table, item_table.tombstones([gone]))
    follower.refresh()
    assert (follower.view.table_version, follower.view.count) == (version, count - 1)
    second = collection.fold()
    index = PartitionedIndex.load(collection.index_folder(second), threads=1)
    assert index.manifest.count == count - 1
    follower.refresh()
    assert (follower.view.generation, follower.view.count) == (second.name, count - 1)
    collection.tidy(version)
    assert collection.rollback() == first
    follower.refresh()
    assert (follower.view.generation, follower.view.count) == (first.name, count)


@pytest.mark.slow
@pytest.mark.ray
def test_a_whole_recipe_through_an_object_store_that_fails_now_and_then(
    debug_run: str, proxy: FlakyProxy, moto: str
) -> None:
    """Every step, in a cluster of its own, with the numbers of a run on a disk."""
    make_bucket(moto, "whole")
    proxy.share = dict.fromkeys(FLAKY, 0.01)
    command = [sys.executable, "-m", "sidray.cli", "run", "smgr-debug", "runs.root=s3://whole/runs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(proxy.seen[fault] for fault in FLAKY)
    proxy.share = {}
    runs = "s3://whole/runs/runs"
    folders = [debug_run, f"{runs}/{storage.list_names(runs)[0]}"]
    tables = [storage.read_bytes(f"{folder}/report/{TABLE}").decode() for folder in folders]
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_in_a_bucket_is_served(run: RunFolder) -> None:
    """Over HTTP: its items are found, and one that is written is found by the words and by its neighbours."""
    with running_service(run.uri, "", "127.0.0.1", free_port()) as url, Client(url) as client:
        found = client.search("cat", k=5)
        assert len(found.hits) == 5
        item = {"item_id": "served-1", "title": "a purple submarine", "partition": "served"}
        written = client.put_items([item])
        again = client.search("submarine", partition="served", min_table_version=written.table_version)
        assert [hit.item_id for hit in again.hits] == ["served-1"]
        near = client.similar(["served-1"], k=3)
        assert len(near.hits) == 3
        assert client.item_image(found.hits[0].item_id)
