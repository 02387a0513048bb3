"""A second run beside the first on Serve: shares, writes to both, promotion without a failed request."""

from __future__ import annotations

import shutil

import pytest
from ray import serve

from sidray.client import Client
from sidray.finished import RunFolder
from sidray.serving.promote import promote
from sidray.serving.run import NAME
from tests.serving.test_faults import load

SMALL = ["embedder.cpus=0.1", "recall.cpus=0.1", "writer.cpus=0.1"]  # two runs fit the CPUs of the test session
pytestmark = pytest.mark.ray


@pytest.fixture
def twin(debug_run: str) -> str:
    """Another run of the same steps, which has a table of its own."""
    folder = f"{debug_run}-twin"
    shutil.copytree(debug_run, folder)
    return folder


def test_a_test_at_half_and_then_a_promotion(service: str, debug_run: str, twin: str) -> None:
    old, new = RunFolder.open(debug_run).name, RunFolder.open(twin).name
    seen: list[str] = []
    with load(service, lambda client, thread, turn: seen.append(client.search(f"cat {turn}").index.run)) as failed:
        assert promote(twin, "", 0.5, False, SMALL).weights == {old: 0.5, new: 0.5}
        with Client(service) as client:
            shared = len(seen)
            while len(seen) < shared + 60 and not failed:
                client.search("cat")
            assert set(seen[shared:]) == {old, new}
            assert {model.run for model in client.models().data} == {old, new}
            item = {"item_id": "both", "title": "in both tables", "partition": "both"}
            version = client.put_items([item]).table_version
            hits = client.search("table", partition="both", min_table_version=version).hits
            assert [hit.item_id for hit in hits] == ["both"]
        assert promote(twin, "", 1.0, False).weights == {new: 1.0}
        until = len(seen) + 20
        with Client(service) as client:
            while len(seen) < until and not failed:
                client.search("cat")
    assert failed == []
    assert seen[0] == old
    assert set(seen[-10:]) == {new}
    assert set(serve.status().applications) == {NAME, new}
    with Client(service) as client:
        assert client.item("both").title == "in both tables"  # the new run's own table has it
        assert client.index().run == new
    promote(debug_run, "", 1.0, False, SMALL)  # as the other tests expect it
    with Client(service) as client:
        client.delete_item("both")
