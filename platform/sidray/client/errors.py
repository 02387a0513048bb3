"""What the client raises. Both kinds are ClientErrors, and survive pickling between processes.

try: client.item("a1")
except ApiError as error: print(error.status, error.code)     # 404 unknown_item
"""

from __future__ import annotations


class ClientError(Exception):
    """Base of both."""


class ApiError(ClientError):
    """The service, or a proxy before it, answered with something else than the route's answer.

    `type`, `code`, `message` and `param` are the contract's; `type` is "unexpected_answer" where the answer does not
    follow the contract. `retry_after_s` is the answer's Retry-After.
    """

    def __init__(
        self,
        status: int,
        type: str,
        code: str,
        message: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(status, type, code, message, param, retry_after_s)
        self.status = status
        self.type = type
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"


class ConnectionFailed(ClientError):  # noqa: N818 - says what happened
    """No answer came: the service cannot be reached, the connection was lost, or the time was over."""
