"""What both clients share around httpx: where the service is, what every request carries, how an answer is read.

endpoint = Endpoint("http://127.0.0.1:8000", api_key, timeout_s=30, retries=4, write_timeout_s=130)
answer = endpoint.read(call, response.status_code, response.headers, body)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from math import isfinite
from typing import Any, TypeVar

import httpx
from pydantic import SecretStr, ValidationError

from sidray.client.calls import Call
from sidray.client.errors import ApiError
from sidray.client.retries import Attempts, Polling
from sidray.serving.schemas import ErrorBody

T = TypeVar("T")
_SNIPPET = 200  # characters of a body that is quoted in an error
_SLICE = 2**16
_certificates = functools.cache(httpx.create_ssl_context)  # loading them takes longer than a call
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100)


class Endpoint:
    """A service and how it is called. The key leaves it in the Authorization header alone."""

    def __init__(
        self, base_url: str, api_key: str | None, timeout_s: float, retries: int, write_timeout_s: float
    ) -> None:
        """Raises ValueError for a base_url that is no http(s) URL or has more than host, port and path; for a key that
        no header can carry; for a timeout or a number of retries that is impossible."""
        self.base_url = _checked_url(base_url)
        for name, seconds in (("timeout_s", timeout_s), ("write_timeout_s", write_timeout_s)):
            if not (seconds > 0 and isfinite(seconds)):
                raise ValueError(f"{name}={seconds} must be positive and finite")
        if retries < 0:
            raise ValueError(f"retries={retries} must not be negative")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key):
            raise ValueError("the API key has spaces around it, or characters that an HTTP header does not take")
        self._key = SecretStr(api_key or "")
        self.timeout_s = timeout_s
        self.write_timeout_s = write_timeout_s
        self.retries = retries

    def httpx_options(self) -> dict[str, Any]:
        """For httpx.Client and httpx.AsyncClient. A redirect is an error: the key goes to no other place."""
        headers = {"User-Agent": "sidray-client", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return {"headers": headers, "limits": _LIMITS, "verify": _certificates(), "follow_redirects": False}

    def url(self, call: Call[Any]) -> str:
        return self.base_url + call.path

    def attempts(self, call: Call[Any], retries: int | None = None) -> Attempts:
        timeout_s = self.write_timeout_s if call.is_write else self.timeout_s
        return Attempts(self._what(call), timeout_s, self.retries if retries is None else retries)

    def polling(self, call: Call[Any], timeout_s: float) -> Polling:
        return Polling(self._what(call), timeout_s)

    def read(self, call: Call[T], status: int, headers: Mapping[str, str], body: bytes) -> T:
        """The answer of the route. ApiError for any other."""
        if not 200 <= status < 300:
            raise self._refusal(status, headers, body)
        try:
            return call.read(body)
        except ValueError as error:
            problem = f"{call.method} {call.path} was not answered as the contract says: {_first_line(error)}"
            raise self._unexpected(status, "invalid_answer", problem, headers, body) from None

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> ApiError:
        try:
            error = ErrorBody.model_validate_json(body).error
        except ValidationError:
            return self._unexpected(status, _code(status), "the answer is not the service's", headers, body)
        message = self._hidden(error.message)
        return ApiError(status, error.type, error.code, message, error.param, _retry_after_s(headers))

    def _unexpected(self, status: int, code: str, problem: str, headers: Mapping[str, str], body: bytes) -> ApiError:
        text = " ".join(self._hidden(body.decode(errors="replace")).split())
        kind = headers.get("content-type", "no content type")
        place = f", to {headers['location']}" if "location" in headers else ""
        message = self._hidden(f"{problem} ({kind}{place}): {text[:_SNIPPET]!r}")
        return ApiError(status, "unexpected_answer", code, message, None, _retry_after_s(headers))

    def _hidden(self, text: str) -> str:
        """An answer may quote what it was sent."""
        key = self._key.get_secret_value()
        return text.replace(key, "**********") if key else text

    def _what(self, call: Call[Any]) -> str:
        return f"{call.method} {self.url(call)}"


def slices(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _SLICE):
        yield body[start : start + _SLICE]


def body_headers(call: Call[Any]) -> dict[str, str]:
    if call.body is None:
        return {}
    return {"Content-Type": "application/json", "Content-Length": str(len(call.body))}


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url is no URL: {error}") from None
    if url.userinfo or url.query or url.fragment:  # not quoted: may hold a secret
        raise ValueError("base_url has a user, a query or a fragment; give scheme, host, port and path alone")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url={base_url!r} must begin with http:// or https:// and a host")
    return str(url).rstrip("/")


def _code(status: int) -> str:
    """bad_gateway of 502."""
    try:
        return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
    except ValueError:
        return "unknown_status"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """None for an absent header, and for the form with a date."""
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return seconds if isfinite(seconds) and seconds >= 0 else None


def _first_line(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}"
    return str(error)
