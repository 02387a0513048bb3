"""Every error of the service as JSON {error: {type, code, message, param}}: no traceback, no plain text.

raise ApiError(Refusal(404, "unknown_partition", "no partition is called 'Mens'", "partition"))
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from sidray.serving.messages import Refusal
from sidray.serving.schemas import Error, ErrorBody

RETRY_AFTER_S = 1
_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    404: "not_found_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    429: {"Retry-After": str(RETRY_AFTER_S)},
    503: {"Retry-After": str(RETRY_AFTER_S)},
}
_MALFORMED = {"json_invalid", "missing"}  # beside every wrong type
_MESSAGES = {
    "extra_forbidden": "unknown field",
    "missing": "the body lacks this field",
    "model_attributes_type": "this must be a JSON object",
}


class ApiError(HTTPException):
    """An HTTPException, so that FastAPI lets it through wherever it is raised, also while a body is read."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.status, refusal.message)
        self.refusal = refusal


def overloaded(message: str = "the service is busy; try again") -> Refusal:
    return Refusal(503, "overloaded", message)


def response(refusal: Refusal, headers: dict[str, str] | None = None) -> Response:
    """A 429 and a 503 say when to come back, a 401 how to come in."""
    kind = _TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    error = Error(type=kind, code=refusal.code, message=refusal.message, param=refusal.param)
    return JSONResponse(
        ErrorBody(error=error).model_dump(), refusal.status, (headers or {}) | _HEADERS.get(refusal.status, {})
    )


def install(api: FastAPI) -> None:
    api.add_exception_handler(HTTPException, _on_http_error)
    api.add_exception_handler(RequestValidationError, _on_invalid)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return response(error.refusal)
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})  # 405 names what is allowed
    return response(Refusal(error.status_code, code, str(error.detail)), headers)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return response(refusal_of(error.errors()[0]))


def refusal_of(problem: dict[str, Any]) -> Refusal:
    """400 for a body that is no JSON or has a wrong type, 422 for an impossible value. Values are never echoed."""
    kind, path = str(problem["type"]), [part for part in problem["loc"] if part != "body"]
    if kind == "json_invalid":
        return Refusal(400, "invalid_json", f"the body is not JSON: {problem['ctx']['error']}")
    if not path and kind in ("model_attributes_type", "missing"):
        return Refusal(400, "invalid_body", "the body must be a JSON object, sent with Content-Type: application/json")
    malformed = kind in _MALFORMED or kind.endswith("_type")
    param = str(path[0])[:80] if path else None  # may be a key of the client's own
    message = _MESSAGES.get(kind, str(problem["msg"]))
    return Refusal(400 if malformed else 422, kind, f"{_place(path)}: {message}" if path else message, param)


def _place(path: Sequence[str | int]) -> str:
    """items, 2, title -> items[2].title; up to what names no place in the body, as the kinds that a value may be of."""
    told, entry = str(path[0])[:80], False
    for part in path[1:]:
        if isinstance(part, int):
            told, entry = f"{told}[{part}]", True
        elif entry:
            told, entry = f"{told}.{part[:80]}", False
        else:
            break
    return told
