"""Who may join a cluster that sidray starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidray.cluster import _auth_mode

JOIN = "import ray; ray.init(log_to_driver=False, configure_logging=False)"
START = f"""
import os, subprocess, sys
from sidray.cluster import ray_cluster
with ray_cluster():
    import ray
    address = ray.get_runtime_context().gcs_address
    for mode in ("token", "disabled"):
        environment = {{**os.environ, "RAY_ADDRESS": address, "RAY_AUTH_MODE": mode}}
        joined = subprocess.run([sys.executable, "-c", {JOIN!r}], env=environment, capture_output=True)
        print("joined" if joined.returncode == 0 else "refused")
"""


@pytest.mark.ray
def test_a_cluster_takes_nobody_without_its_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environment["HOME"] = str(tmp_path)  # where no token is yet
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["joined", "refused"]


@pytest.mark.parametrize(
    ("variables", "token", "mode"),
    [
        ({}, False, "token"),  # a cluster of its own: Ray makes the token
        ({"RAY_ADDRESS": "auto"}, True, "token"),
        ({"RAY_ADDRESS": "auto"}, False, "disabled"),
        ({"RAY_ADDRESS": "auto", "RAY_AUTH_TOKEN": "t"}, False, "token"),
    ],
)
def test_the_mode(
    variables: dict[str, str], token: bool, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("t")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _auth_mode() == mode
