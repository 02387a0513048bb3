"""Errors, retries and deadlines against a server that fails as the test says."""

from __future__ import annotations

import json
import logging
import pickle
import re
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sidray.client import ApiError, ClientError, ConnectionFailed
from sidray.client.retries import RETRIED, Attempts
from sidray.serving.settings import GatewaySettings
from tests.client.conftest import Clock, Connect
from tests.client.servers import Fault, Scripted, raw_server

ANSWER = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 15\r\n\r\n{"status":"ok"}'
BUSY = Fault(503, headers={"retry-after": "1"})
KEY = "geheim-0123456789"


def lost(connection: socket.socket) -> None:
    """Closed without an answer."""
    connection.recv(65536)


def reset(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def cut(connection: socket.socket) -> None:
    """Closed within the answer."""
    connection.recv(65536)
    connection.sendall(ANSWER[:-3])


def garbage(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"no HTTP\r\n\r\n")


def answers(connection: socket.socket) -> None:
    while connection.recv(65536):
        connection.sendall(INDEX)


def silent(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def trickling(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n")
    for _ in range(400):
        connection.sendall(b" ")
        time.sleep(0.01)


def slow_reader(connection: socket.socket) -> None:
    for _ in range(400):
        connection.recv(2**16)
        time.sleep(0.01)


_BODY = json.dumps({"object": "list", "data": []}).encode()
INDEX = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)


def test_a_busy_service_is_asked_again_when_it_says(client: Any, server: Scripted, clock: Clock) -> None:
    server.script.extend([BUSY, Fault(503, headers={"retry-after": "2.5"})])
    assert client.search("soup").hits[0].title == "soup"
    assert clock.pauses == [1.25, 3.0]  # Retry-After and, beyond it, the backoff
    assert len(server.seen) == 3
    assert {seen.body for seen in server.seen} == {server.seen[0].body}


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_retried_statuses_back_off(connect: Connect, server: Scripted, clock: Clock, status: int) -> None:
    server.script.extend([Fault(status)] * 7)
    connect(timeout_s=60, retries=7).put_items([{"item_id": "a", "title": "A"}])
    assert clock.pauses == [0.25, 0.5, 1, 2, 4, 8, 8]


@pytest.mark.parametrize("value", ["Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf", ""])
def test_a_retry_after_without_seconds_is_ignored(client: Any, server: Scripted, clock: Clock, value: str) -> None:
    server.script.append(Fault(503, headers={"retry-after": value}))
    client.index()
    assert clock.pauses == [0.25]


def test_jitter_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidray.client.retries.uniform", lambda low, high: low)
    assert Attempts("GET /", 30, 4).pause_after(ApiError(500, "t", "c", "m")) == 0
    assert Attempts("GET /", 30, 4).pause_after(ApiError(503, "t", "c", "m", retry_after_s=2)) == 2


@pytest.mark.parametrize("status", [307, 400, 401, 404, 408, 409, 413, 415, 422, 429, 501])
def test_other_statuses_are_not_retried(client: Any, server: Scripted, clock: Clock, status: int) -> None:
    server.script.append(Fault(status, headers={"retry-after": "3"}))
    with pytest.raises(ApiError, match=f"^{status} c: m$") as caught:
        client.search("soup")
    assert (len(server.seen), clock.pauses, caught.value.retry_after_s) == (1, [], 3)


def test_the_page_says_what_is_repeated() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "serving-api.md").read_text()
    said = re.search(r"Repeat ([\d, ]+) and lost connections", page)
    not_said = re.search(r"; (\d+), a key's rate limit, it does not repeat", page)
    assert said is not None
    assert not_said is not None
    assert {int(status) for status in said[1].split(", ")} == RETRIED
    assert int(not_said[1]) == 429
    assert 429 not in RETRIED
    assert "what the service says may be retried" not in page


def test_an_error_says_what_the_service_said(client: Any, server: Scripted) -> None:
    error = {"type": "invalid_request_error", "code": "less_than_equal", "message": "k: too large", "param": "k"}
    server.script.append(Fault(422, json.dumps({"error": error}).encode()))
    with pytest.raises(ApiError) as caught:
        client.search("soup", k=1001)
    raised = caught.value
    assert {name: getattr(raised, name) for name in error} == error
    copy = pickle.loads(pickle.dumps(raised))
    assert (str(copy), copy.status, copy.param) == ("422 less_than_equal: k: too large", 422, "k")


def test_retries_end(connect: Connect, server: Scripted, clock: Clock) -> None:
    server.script.extend([Fault(500)] * 9)
    with pytest.raises(ApiError, match="500 c: m"):
        connect(retries=2).index()
    assert (len(server.seen), len(clock.pauses)) == (3, 2)
    with pytest.raises(ApiError):
        connect(retries=0).index()
    assert len(server.seen) == 4


def test_no_pause_goes_beyond_the_deadline(connect: Connect, server: Scripted, clock: Clock) -> None:
    server.script.extend([Fault(503, headers={"retry-after": "2"})] * 9)
    with pytest.raises(ApiError, match="503"):
        connect(timeout_s=6, retries=8).index()
    assert clock.pauses == [2.25, 2.5]  # 4.75 s; the next 3 s would end at 7.75 s


def test_a_proxys_answer_is_reported(client: Any, server: Scripted, clock: Clock) -> None:
    page = b"<html>\n<h1>502  Bad Gateway</h1>" + b"\xff" * 5000
    server.script.extend([Fault(502, page, {"content-type": "text/html"})] * 5)
    with pytest.raises(ApiError) as caught:
        client.search("soup")
    assert str(caught.value).startswith(
        "502 bad_gateway: the answer is not the service's (text/html): '<html> <h1>502 Bad Gateway</h1>"
    )
    assert len(str(caught.value)) < 400
    assert (caught.value.status, caught.value.type, len(server.seen)) == (502, "unexpected_answer", 5)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"detail": "Not Found"}', b'{"error": "no"}', b'{"error": null}'])
def test_errors_of_another_shape_are_reported(client: Any, server: Scripted, body: bytes) -> None:
    server.script.append(Fault(404, body))
    with pytest.raises(ApiError) as caught:
        client.item("a")
    assert (caught.value.status, caught.value.code) == (404, "not_found")
    assert repr(body.decode()) in caught.value.message


@pytest.mark.parametrize("body", [b"<html>please log in</html>", b"", b"{}", b'{"hits": 1}'])
def test_a_200_of_another_shape_is_an_error_and_not_retried(client: Any, server: Scripted, body: bytes) -> None:
    server.script.append(Fault(200, body, {"content-type": "text/html"}))
    with pytest.raises(ApiError, match="POST /v1/search was not answered as the contract says") as caught:
        client.search("soup")
    assert (caught.value.status, caught.value.code, len(server.seen)) == (200, "invalid_answer", 1)


@pytest.mark.parametrize("fault", [lost, reset, cut, garbage])
def test_a_lost_connection_is_made_anew(connect: Connect, clock: Clock, fault: Any) -> None:
    with raw_server(fault, fault, answers) as url:
        assert connect(url).models().data == []
    assert clock.pauses == [0.25, 0.5]


@pytest.mark.parametrize("fault", [lost, reset, cut, garbage])
def test_lost_connections_are_reported(connect: Connect, clock: Clock, fault: Any) -> None:
    with raw_server(fault) as url, pytest.raises(ConnectionFailed) as caught:
        connect(url, retries=1).item("a b")
    assert str(caught.value).startswith(f"GET {url}/v1/items/a%20b: ")
    assert "(2 attempts, 0.2 s)" in str(caught.value)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), ConnectionFailed)


def test_nobody_listens(connect: Connect, clock: Clock) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = connect(f"http://127.0.0.1:{port}", retries=2)
    with pytest.raises(ConnectionFailed, match=r"(refused|failed).* \(3 attempts"):
        client.index()
    assert not client.healthy()
    assert len(clock.pauses) == 2  # whether it is healthy is asked once


def test_a_slow_answer_is_asked_for_again(connect: Connect, server: Scripted) -> None:
    server.script.append(Fault(500, delay_s=1.5))
    assert connect(timeout_s=1.2, retries=1).index().items == 7  # given up after 0.6 s
    assert len(server.seen) == 2


@pytest.mark.parametrize(("serve", "retries"), [(silent, 0), (silent, 3), (trickling, 0), (slow_reader, 0)])
def test_the_deadline_ends_every_kind_of_slowness(connect: Connect, serve: Any, retries: int) -> None:
    picture = bytes(12 * 2**20) if serve is slow_reader else b"x"
    with raw_server(serve) as url:
        client = connect(url, timeout_s=0.3, retries=retries)
        began = time.monotonic()
        with pytest.raises(ConnectionFailed, match="no answer in time"):
            client.search(image=picture)
        assert 0.1 < time.monotonic() - began < 2  # the server would take 4


WRITES: dict[str, Any] = {
    "put_items": ([{"item_id": "a", "title": "A"}],),
    "delete_item": ("a",),
    "events": ([{"user_id": "u", "item_id": "a", "action": "click", "ts": "2026-01-31T12:00:00Z"}],),
    "embed": (["7"], "m-1"),
}


@pytest.mark.parametrize("method", WRITES)
def test_a_write_has_a_budget_of_its_own(connect: Connect, server: Scripted, method: str) -> None:
    """The gateway gives it 60 s: given up after 15, its work would be done twice and never answered."""
    answer = json.dumps({"error": {"type": "t", "code": "late", "message": "m", "param": None}}).encode()
    server.script.append(Fault(400, answer, delay_s=0.15))
    with pytest.raises(ApiError, match="400 late"):
        getattr(connect(timeout_s=0.2, write_timeout_s=10, retries=1), method)(*WRITES[method])
    assert len(server.seen) == 1
    server.script.append(Fault(400, delay_s=1))
    began = time.monotonic()
    with pytest.raises(ConnectionFailed, match="no answer in time"):
        getattr(connect(timeout_s=10, write_timeout_s=0.05, retries=0), method)(*WRITES[method])
    assert time.monotonic() - began < 1


def test_the_budgets_of_the_defaults_are_more_than_twice_the_gateways(connect: Connect) -> None:
    inner = connect()
    endpoint = getattr(inner, "inner", inner)._endpoint
    assert endpoint.timeout_s > 2 * GatewaySettings().timeout_s
    assert endpoint.write_timeout_s > 2 * GatewaySettings().write_timeout_s


def test_a_connection_that_was_given_up_is_closed(connect: Connect) -> None:
    closed = threading.Event()

    def noticing(connection: socket.socket) -> None:
        try:
            trickling(connection)
        except OSError:
            closed.set()

    with raw_server(noticing) as url:
        client = connect(url, timeout_s=0.1, retries=0)
        with pytest.raises(ConnectionFailed) as caught:
            client.index()
        assert closed.wait(2), caught.value  # whoever holds the error does not hold the connection


def test_timeouts_shrink_while_an_attempt_lasts(clock: Clock) -> None:
    attempts = Attempts("GET /", timeout_s=30, retries=4)
    timeouts = attempts.timeouts()
    assert dict(timeouts) == {"connect": 5, "write": 15, "read": 15, "pool": 15}
    clock.sleep(20)
    assert (timeouts["connect"], timeouts["read"]) == (5, 10)
    clock.sleep(9.5)
    assert (timeouts["connect"], timeouts["read"]) == (0.5, 0.5)
    clock.sleep(9)
    assert timeouts["read"] == 0.001
    assert Attempts("GET /", timeout_s=30, retries=0).timeouts()["read"] == 30


def test_waiting_for_a_service_that_starts(connect: Connect, server: Scripted, clock: Clock) -> None:
    not_there = Fault(404, b"Path '/readyz' not found.", {"content-type": "text/plain"})
    server.script.extend([not_there, BUSY, Fault(500)])
    connect().wait_until_ready(10)
    assert [seen.raw_path for seen in server.seen] == [b"/readyz"] * 4
    with raw_server(lost, answers) as url:  # answers, but not as a service does
        with pytest.raises(ConnectionFailed, match=r"/readyz: 200 invalid_answer: .* \(4 attempts, 0.8 s\)"):
            connect(url).wait_until_ready(1)
        with pytest.raises(ConnectionFailed):
            connect(url).wait_until_ready(0)


def test_health_is_asked_once(client: Any, server: Scripted, clock: Clock) -> None:
    server.script.append(Fault(500))
    assert not client.healthy()
    assert (len(server.seen), clock.pauses) == (1, [])


def test_a_redirect_is_an_error_and_gets_no_key(connect: Connect, server: Scripted) -> None:
    place = f"{server.url}/elsewhere"
    server.script.append(Fault(307, b"", {"location": place}))
    with pytest.raises(ApiError, match=f"307 temporary_redirect: .*, to {place}"):
        connect(api_key=KEY).search("soup")
    assert len(server.seen) == 1


def test_the_key_is_sent_and_shown_nowhere(connect: Connect, server: Scripted, clock: Clock) -> None:
    lines: list[str] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        client = connect(api_key=KEY)
        server.script.append(Fault(502, f"you sent {KEY}".encode(), {"content-type": "text/plain"}))
        client.search("soup")
        shown = [repr(client)]
        error = {"type": "t", "code": "c", "message": f"the key {KEY} is unknown", "param": None}
        cut = b"x" * 190 + KEY.encode() * 2  # the error quotes 200 characters
        for body in (json.dumps({"error": error}).encode(), f"you sent {KEY}".encode(), cut):
            server.script.append(Fault(401, body))
            with pytest.raises(ClientError) as caught:
                client.index()
            shown += [str(caught.value), repr(caught.value)]
        with raw_server(lost) as url, pytest.raises(ConnectionFailed) as failed:
            connect(url, api_key=KEY).index()
        shown += [str(failed.value), repr(failed.value)]
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
    assert {seen.headers["authorization"] for seen in server.seen} == {f"Bearer {KEY}"}
    assert lines
    assert not [line for line in shown + lines if "geheim" in line]
