"""Two services on one machine do not meet, wherever their temporary files go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, os
from sidray.serving.environment import serve_environment
serve_environment()
print(json.dumps(dict(os.environ)))
"""
NODE = "/" + 56 * "0"  # a folder that Ray makes beside the socket
MAX_SOCKET_PATH = 97  # HAProxy's


def environment_of(folder: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}
    inherited["TMPDIR"] = str(folder)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=inherited, capture_output=True, text=True, check=True)
    made: dict[str, str] = json.loads(done.stdout)
    return {name: value for name, value in made.items() if name.startswith("RAY_SERVE_")}


def test_two_services_share_no_file_and_no_port(tmp_path: Path) -> None:
    one, other = environment_of(tmp_path), environment_of(tmp_path)
    own = [name for name in one if name.endswith("_PORT") or "/" in one[name]]
    assert len(own) == 7
    assert "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT" in own
    assert not {one[name] for name in own} & {other[name] for name in own}


def test_the_path_of_the_socket_is_short_enough(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    path = environment_of(folder)["RAY_SERVE_HAPROXY_SOCKET_PATH"]
    assert len(path) + len(NODE) <= MAX_SOCKET_PATH
