"""A machine dies under writes: the service, started again on the same folder, answers the same and has every write."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sidray.client import ApiError, Client, ClientError
from sidray.cluster import free_port
from sidray.finished import RunFolder
from sidray.retrieval.index import PartitionedIndex
from sidray.serving.schemas import Hit

pytestmark = pytest.mark.ray
QUERIES = ["cat", "happy face", "purple submarine", "rain"]
START_S = 180.0
WRITTEN = 20


@contextmanager
def machine(run: str) -> Iterator[str]:
    """`sidray serve` with a Ray cluster and a temporary folder of its own; yields its URL. kill -9 of everything at the
    end of the block."""
    command = [sys.executable, "-m", "sidray.cli", "serve", run, "--port", str(port := free_port())]
    with tempfile.TemporaryDirectory(prefix="machine-") as folder:
        environment = {**os.environ, "TMPDIR": folder}
        environment.pop("RAY_ADDRESS", None)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            with Client(url := f"http://127.0.0.1:{port}") as client:
                client.wait_until_ready(START_S)
            yield url
        finally:
            kill_session(process.pid)
            process.wait()


def kill_session(session: int) -> None:
    """Ray's workers have process groups of their own, but share the session."""
    while living := living_in(session):
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def living_in(session: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, own = stat.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found


def write_until_it_fails(url: str, acknowledged: dict[str, int]) -> None:
    """Puts `late-0`, `late-1`, ... and keeps the table version of each that was acknowledged."""
    with Client(url, retries=0) as client, suppress(ClientError):
        for n in itertools.count():
            item = {"item_id": f"late-{n}", "title": f"title of late-{n}", "partition": "late"}
            acknowledged[f"late-{n}"] = client.put_items([item]).table_version


def answers(client: Client, scopes: list[list[str]], table_version: int) -> list[list[Hit]]:
    return [
        client.search(query, k=10, partition=scope, with_fields=["sids"], min_table_version=table_version).hits
        for query in QUERIES
        for scope in scopes
    ]


@pytest.mark.slow  # test_faults.py kills the writer and the replicas one by one
def test_a_machine_that_died_under_writes_answers_the_same_when_it_is_back(debug_run: str) -> None:
    run = f"{debug_run}-restart"
    shutil.copytree(debug_run, run)  # with a collection of its own
    partitions = PartitionedIndex.load(RunFolder.open(run).output("index"), threads=1).partitions
    scopes = [["new"], [*partitions, "new"]]  # without those that are written until the end
    acknowledged: dict[str, int] = {}
    with ThreadPoolExecutor(1) as pool, machine(run) as url, Client(url) as client:
        gone = client.search("cat", k=1).hits[0].item_id
        items = [{"item_id": f"new-{n}", "title": f"purple submarine {n}", "partition": "new"} for n in range(3)]
        client.put_items(items)
        client.delete_item("new-1")
        before = answers(client, scopes, client.delete_item(gone).table_version)
        writing = pool.submit(write_until_it_fails, url, acknowledged)
        until = time.monotonic() + 30
        while len(acknowledged) < WRITTEN and time.monotonic() < until and not writing.done():
            time.sleep(0.01)
    assert len(acknowledged) >= WRITTEN
    assert {hit.item_id for hit in before[0]} == {"new-0", "new-2"}
    assert all(len(hits) == 10 and gone not in {hit.item_id for hit in hits} for hits in before[1::2])
    with machine(run) as url, Client(url) as client:
        assert answers(client, scopes, max(acknowledged.values())) == before
        for item_id in acknowledged:
            assert client.item(item_id).title == f"title of {item_id}"
        for item_id in ("new-1", gone):
            with pytest.raises(ApiError) as caught:
                client.item(item_id)
            assert (caught.value.status, caught.value.code) == (404, "unknown_item")
