"""What an item shows: a hash of it, and a small picture of it.

content_hash("red shoe", ["shoes"], "munich", jpeg);  thumbnail(jpeg)
"""

from __future__ import annotations

import hashlib
import io

THUMBNAIL = 160  # pixels of the longer side


def content_hash(title: str, fields: list[str], partition: str, image: bytes | None) -> str:
    """What tells an unchanged item from a changed one: everything that enters its vector and its place."""
    digest = hashlib.sha256()
    for part in (title.encode(), partition.encode(), *(f.encode() for f in fields), image or b""):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


def thumbnail(image: bytes | None) -> bytes | None:
    """A small JPEG for result pages. The picture was checked at ingest."""
    if image is None:
        return None
    from PIL import Image

    from sidray.data.images import decode_rgb

    picture = Image.fromarray(decode_rgb(image, THUMBNAIL).transpose(1, 2, 0))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=85)
    return out.getvalue()
