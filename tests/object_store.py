"""An S3 for tests: moto's server in a process of its own, and a proxy in front of it that fails now and then.

with moto_server() as url, FlakyProxy(url, {"slow down": 0.1, "reset": 0.05}) as proxy: ... proxy.url
"""

from __future__ import annotations

import http.client
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from sidray.cluster import free_port

START_S = 60.0
ERRORS = {"slow down": (503, "SlowDown"), "internal": (500, "InternalError"), "forbidden": (403, "InvalidAccessKeyId")}


@contextmanager
def moto_server(url: str = "") -> Iterator[str]:
    """An empty S3 at the URL, or at one of its own. A process of its own: whoever waits for it holds up nobody else."""
    port = urlsplit(url).port or free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("moto's server does not start")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def environment(url: str) -> dict[str, str]:
    """The variables with which everything of ours uses this S3."""
    return {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def make_bucket(url: str, name: str) -> str:
    """The URI of a new bucket."""
    store = pafs.S3FileSystem(
        access_key="key",
        secret_key="secret",
        region="us-east-1",
        endpoint_override=urlsplit(url).netloc,
        scheme="http",
        allow_bucket_creation=True,
    )
    store.create_dir(name)
    return f"s3://{name}"


class FlakyProxy:
    """Passes requests on; a seeded `share` of them (fault -> probability) fails: an error of ERRORS, "reset" (the
    connection is cut before an answer), "cut" (in the middle of the answer's body), "stall" (the answer comes
    `stall_s` late). `seen` counts the requests by what became of them."""

    def __init__(self, target: str, share: Mapping[str, float], stall_s: float = 5.0, seed: int = 0) -> None:
        self.share = dict(share)
        self.stall_s = stall_s
        self.seen: Counter[str] = Counter()
        self.requests: list[tuple[float, str, str, str]] = []
        self._address = urlsplit(target).netloc
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FlakyProxy:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fate(self, method: str, path: str) -> str:
        with self._lock:
            kinds = [*self.share, "passed"]
            weights = [*self.share.values(), max(0.0, 1 - sum(self.share.values()))]
            fate = self._random.choices(kinds, weights)[0]
            self.seen[fate] += 1
            self.requests.append((time.monotonic(), method, path, fate))
            return fate

    def answer(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any, bytes]:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in {"connection", "transfer-encoding", "content-length", "expect"}:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            found = connection.getresponse()
            return found.status, found.getheaders(), found.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FlakyProxy

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _reset(self) -> None:
        """RST instead of FIN: what a client sees when a load balancer dies."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _answer(self, status: int, headers: Any, body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if sent is None else body[:sent])
        self.wfile.flush()

    def _serve(self) -> None:
        body = self._body()
        fate = self.proxy.fate(self.command, self.path)
        if fate in ERRORS:
            status, code = ERRORS[fate]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{fate}</Message></Error>"
            self._answer(status, [("Content-Type", "application/xml")], text.encode())
            return
        if fate == "reset":
            self._reset()
            return
        if fate == "stall":
            time.sleep(self.proxy.stall_s)
        status, headers, answer = self.proxy.answer(self.command, self.path, body, dict(self.headers.items()))
        if fate == "cut" and len(answer) > 1:
            self._answer(status, headers, answer, len(answer) // 2)
            self._reset()
            return
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve  # noqa: N815
