"""A client's picture: base64 or a data URL to checked bytes. A link is refused: the service fetches nothing."""

from __future__ import annotations

import base64
import binascii
import re

from sidray.data.images import check_image
from sidray.serving.messages import Refusal
from sidray.serving.problems import ApiError

_DATA_URL = re.compile(r"data:[^,]{0,200};base64,")


def decode_base64(text: str) -> bytes:
    """ApiError 400 for what is not base64, 422 for a link."""
    header = _DATA_URL.match(text)
    if header is None and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text):
        message = (
            "image must hold the picture itself, as base64 or a data: URL with base64; the service fetches no links"
        )
        raise ApiError(Refusal(422, "url_not_allowed", message, "image"))
    payload = text[header.end() :] if header else text
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(Refusal(400, "invalid_base64", f"image is not base64: {error}", "image")) from error


def checked_picture(text: str, max_pixels: int) -> bytes:
    """The bytes of a picture that decodes whole. ApiError 413 for too many pixels, 415 for anything else amiss."""
    data = decode_base64(text)
    reason = check_image(data, max_pixels)
    if reason is None:
        return data
    if "pixels" in reason:
        raise ApiError(Refusal(413, "too_many_pixels", reason, "image"))
    raise ApiError(Refusal(415, "not_an_image", reason, "image"))
