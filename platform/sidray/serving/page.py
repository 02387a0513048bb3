"""The search page at /: one static page, its two scripts and its style, read once from the package's web/.

api.include_router(page.router)

It is plain text with a policy under which a browser runs and loads nothing but this origin's files.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from fastapi import APIRouter, Request, Response

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser keeps the file and asks each time whether it is still this one
}
router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class _File:
    body: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, name: str, media_type: str) -> _File:
        body = files("sidray.serving").joinpath("web", name).read_bytes()
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


_FILES = {
    "/": _File.read("index.html", "text/html"),
    "/page.js": _File.read("page.js", "text/javascript"),
    "/service.js": _File.read("service.js", "text/javascript"),
    "/page.css": _File.read("page.css", "text/css"),
}
PATHS = tuple(_FILES)


async def page(request: Request) -> Response:
    """304 for a browser that has this very file."""
    file = _FILES[request.scope["route"].path]
    headers = {**_HEADERS, "ETag": file.etag}
    if _has(request, file.etag):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def _has(request: Request, etag: str) -> bool:
    """A proxy that compresses may have weakened the tag."""
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    return etag in known or "*" in known


for _path in PATHS:
    router.add_api_route(_path, page, methods=["GET", "HEAD"])
