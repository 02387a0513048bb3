"""Who may join a cluster that sidray starts, and which ones it joins."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sidray.cluster import ray_cluster
from sidray.errors import UserError

JOIN = """
from sidray.cluster import on_cluster, ray_cluster
def seven():
    return 7
with ray_cluster():
    print(on_cluster(seven))
"""
START = f"""
import os, subprocess, sys
from sidray.cluster import ray_cluster
with ray_cluster():
    import ray
    address = ray.get_runtime_context().gcs_address
    for mode in sys.argv[1:]:
        environment = {{**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": mode, "RAY_NUM_REDIS_GET_RETRIES": "2"}}
        if not mode:
            del environment["RAY_AUTH_MODE"]
        joined = subprocess.run([sys.executable, "-c", {JOIN!r}], env=environment, capture_output=True, text=True)
        print("7" if joined.stdout == "7\\n" else joined.stderr.splitlines()[-1])
"""


def joined(home: Path, own: str, *others: str) -> list[str]:
    """What processes of these modes get from a cluster of mode `own`; "": RAY_AUTH_MODE is not set.

    On this machine a cluster of `ray start` was killed: its address still stands in Ray's files."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:  # short: sockets lie in it
        environment |= {"HOME": str(home), "RAY_TMPDIR": scratch} | ({"RAY_AUTH_MODE": own} if own else {})
        (Path(scratch) / "ray").mkdir()
        (Path(scratch) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        command = [sys.executable, "-c", START, *others]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.ray
def test_a_cluster_takes_nobody_without_its_token(tmp_path: Path) -> None:
    own, *refused = joined(tmp_path, "", "token", "disabled")
    assert own == "7"
    assert len(refused) == 1
    assert "RAY_AUTH_MODE must be that of the cluster" in refused[0]


@pytest.mark.ray
@pytest.mark.slow  # the test before it joins a cluster that asks for one
def test_a_token_that_lies_about_is_not_shown_to_a_cluster_that_asks_for_none(tmp_path: Path) -> None:
    """Its tasks would not run."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)
    assert joined(tmp_path, "disabled", "") == ["7"]


def test_a_cluster_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def away(**options: object) -> None:
        raise ConnectionError

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", away)
    with pytest.raises(UserError, match=r"RAY_ADDRESS=10.0.0.1:6379(.|\n)*RAY_AUTH_MODE"), ray_cluster():
        pass
