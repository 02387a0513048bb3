"""One service for all tests of this folder that need a whole one: starting it takes longer than they do, and what comes
after them needs its CPUs."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from sidray.cluster import free_port
from sidray.serving.run import running_service


@pytest.fixture(scope="package")
def service(debug_run: str) -> Iterator[str]:
    """The URL of `sidray serve` over the debug run."""
    port = free_port()
    with running_service(debug_run, "", "127.0.0.1", port) as url:
        yield url
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), 1)
