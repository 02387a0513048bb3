"""kill -9 of replicas under load: a client's retries hide it, and what was acknowledged is there afterwards.

SIDRAY_KILLS=20 pytest tests/serving/test_faults.py    # `make chaos`
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import ray

from sidray.client import Client
from sidray.finished import RunFolder
from sidray.retrieval import item_table
from sidray.retrieval.collection import Collection

pytestmark = pytest.mark.ray
KILLS = int(os.environ.get("SIDRAY_KILLS", "1"))  # of each kind of replica
CLIENTS = 4


def pid_of(deployment: str) -> int:
    """The process of the deployment's one living replica; waits for it."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        actors = ray._private.state.actors().values()
        found = [each for each in actors if f"#{deployment}#" in each["Name"] and each["State"] == "ALIVE"]
        if found:
            return int(found[0]["Pid"])
        time.sleep(0.1)
    raise AssertionError(f"no replica of {deployment} came up")


def kill(deployment: str) -> None:
    """Returns when another replica has taken the place of the one that was killed."""
    before = pid_of(deployment)
    os.kill(before, signal.SIGKILL)
    while pid_of(deployment) == before:
        time.sleep(0.1)


@contextmanager
def load(url: str, work: Callable[[Client, int, int], object], clients: int = CLIENTS) -> Iterator[list[Exception]]:
    """`clients` threads that do work(client, thread, turn) over and over; yields what they could not hide."""
    stop, failed = threading.Event(), []

    def run(thread: int) -> None:
        with Client(url, timeout_s=90, retries=40) as client:
            turn = 0
            while not stop.is_set():
                try:
                    work(client, thread, turn)
                except Exception as error:
                    failed.append(error)
                    return
                turn += 1

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(run, thread) for thread in range(clients)]
        try:
            yield failed
        finally:
            stop.set()
            for each in running:
                each.result(120)


@pytest.mark.parametrize("deployment", ["Recall", "Embedder"])
def test_searches_outlive_a_killed_replica(service: str, deployment: str) -> None:
    with Client(service, timeout_s=90, retries=40) as client:
        before = client.search("cat", k=5).hits
        with load(service, lambda client, thread, turn: client.search(f"cat {thread} {turn}", k=3)) as failed:
            for _ in range(KILLS):
                kill(deployment)
                client.search("cat")
        assert failed == []
        after = client.search("cat", k=5).hits
    assert [hit.item_id for hit in after] == [hit.item_id for hit in before]


def test_no_acknowledged_write_is_lost_with_its_writer(service: str, debug_run: str) -> None:
    acknowledged: dict[str, int] = {}

    def write(client: Client, thread: int, turn: int) -> None:
        ids = [f"kill-{thread}-{turn}-{part}" for part in "ab"]
        version = client.put_items([{"item_id": each, "title": f"title of {each}"} for each in ids]).table_version
        acknowledged.update(dict.fromkeys(ids, version))

    with load(service, write) as failed:
        for _ in range(KILLS):
            until = len(acknowledged) + 20
            while len(acknowledged) < until and not failed:
                time.sleep(0.01)
            kill("Writer")
        until = len(acknowledged) + 20
        while len(acknowledged) < until and not failed:
            time.sleep(0.01)
    assert failed == []
    table = Collection.of(RunFolder.open(debug_run)).table
    rows = item_table.current(table, columns=["item_id", "title"]).to_pylist()
    found = {row["item_id"]: row["title"] for row in rows if row["item_id"].startswith("kill-")}
    assert set(acknowledged) <= set(found)
    assert all(title == f"title of {item_id}" for item_id, title in found.items())
    assert all((f"{item_id[:-1]}a" in found) and (f"{item_id[:-1]}b" in found) for item_id in found)  # none is half
    with Client(service) as client:
        for item_id, version in list(acknowledged.items())[:5]:
            hits = client.search(f"title of {item_id}", k=1000, min_table_version=version).hits
            assert item_id in {hit.item_id for hit in hits}
