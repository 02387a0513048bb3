"""When a call is tried again, and how long one attempt may take. Plain logic: no I/O, the same for both clients.

    attempts = Attempts("GET http://host/v1/index", timeout_s=30, retries=4)
    while True:
        try: return exchange(timeouts=attempts.timeouts())
        except FAILURES as error: sleep(attempts.pause_after(error))     # raises the error that ends the call

500, 502, 503, 504 and lost connections are retried after an exponential backoff with full jitter, and not before the
answer's Retry-After. `timeout_s` (of a write the client's write_timeout_s) bounds all attempts and pauses together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from random import uniform
from time import monotonic

import httpx

from sidray.client.errors import ApiError, ConnectionFailed

FAILURES = (ApiError, httpx.HTTPError, TimeoutError)  # what an attempt may raise
RETRIED = frozenset({500, 502, 503, 504})
_LOST = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError, TimeoutError)
BACKOFF_S = 0.25  # doubles with each attempt
MAX_BACKOFF_S = 8.0
CONNECT_S = 5.0  # for one connection to be made
POLL_S = 0.25
POLL_SILENCE_S = 5.0
_SHORTEST_S = 0.001  # a socket takes no timeout of 0


class Attempts:
    """The attempts of one call, `what` in errors. While retries are left a silent server is given up after half of
    `timeout_s`: the connection may be dead."""

    def __init__(self, what: str, timeout_s: float, retries: int) -> None:
        self._what = what
        self._retries = retries
        self._began = monotonic()
        self._timeout_s = timeout_s
        self._failed = 0
        self._silence_s = timeout_s / 2 if retries else timeout_s

    def left_s(self) -> float:
        return self._began + self._timeout_s - monotonic()

    def timeouts(self) -> Mapping[str, float]:
        """httpx's request extension "timeout", whose values are those of the moment when they are read."""
        return _Timeouts(self)

    def timeout(self, phase: str) -> float:
        """Seconds that this phase (connect, write, read, pool) may be silent from now on."""
        longest = min(self._silence_s, CONNECT_S) if phase == "connect" else self._silence_s
        return max(min(longest, self.left_s()), _SHORTEST_S)

    def in_time(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The chunks until the deadline, so that a connection that is slow, but never silent, ends too.

        Raises TimeoutError.
        """
        for chunk in chunks:
            if self.left_s() <= 0:
                raise TimeoutError("the time was over")
            yield chunk

    def pause_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt. Raises ApiError or ConnectionFailed if there is none."""
        self._failed += 1
        pause = self._pause(error)
        if pause is not None and pause < self.left_s():
            return pause
        if isinstance(error, ApiError):
            raise error
        raise self._failure(error) from error

    def _pause(self, error: Exception) -> float | None:
        """None: not again."""
        api_error = error if isinstance(error, ApiError) else None
        retried = api_error.status in RETRIED if api_error else isinstance(error, _LOST)
        if not retried or self._failed > self._retries:
            return None
        least = (api_error.retry_after_s if api_error else None) or 0.0
        return least + uniform(0.0, min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** (self._failed - 1)))

    def _failure(self, error: Exception) -> ConnectionFailed:
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            reason = "no answer in time"
        times = "1 attempt" if self._failed == 1 else f"{self._failed} attempts"
        return ConnectionFailed(f"{self._what}: {reason} ({times}, {monotonic() - self._began:.1f} s)")


class Polling(Attempts):
    """Asks until the answer is the route's: whatever else comes is a service that is not ready yet."""

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(what, timeout_s, 0)
        self._silence_s = min(POLL_SILENCE_S, timeout_s)

    def _pause(self, error: Exception) -> float | None:
        return POLL_S

    def pause_after(self, error: Exception) -> float:
        """Seconds to wait. Raises ConnectionFailed with the last reason when the time is over."""
        try:
            return super().pause_after(error)
        except ApiError:
            raise self._failure(error) from error


class _Timeouts(Mapping[str, float]):
    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts

    def __getitem__(self, phase: str) -> float:
        return self._attempts.timeout(phase)

    def __iter__(self) -> Iterator[str]:
        return iter(("connect", "write", "read", "pool"))

    def __len__(self) -> int:
        return 4
