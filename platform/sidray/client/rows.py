"""Python values to JSON, and long lists to the requests that the service takes.

for body, count in bodies("items", map(item_row, items), MAX_ITEMS, {}): put(body)
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from sidray.serving.embedding_schemas import TextOrImage
from sidray.serving.item_schemas import Event, Item

Picture = bytes | Path | str  # an encoded JPEG, PNG or WebP, a file with one, or base64 or a data URL of one
MAX_BODY_BYTES = 30 * 2**20  # the service takes 32 MiB


def encode(value: object) -> bytes:
    """JSON. Raises ValueError for NaN and infinities, TypeError for what JSON does not have.

    Text is escaped only where UTF-8 cannot carry it (half a surrogate pair, which the service refuses by name).
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def picture(image: Picture | None) -> str | None:
    """Base64 of bytes and of a file's content; a str is taken as base64 already. Raises OSError for the file."""
    if isinstance(image, Path):
        image = image.read_bytes()
    return base64.b64encode(image).decode() if isinstance(image, bytes | bytearray | memoryview) else image


def item_row(item: Item | Mapping[str, Any]) -> dict[str, Any]:
    row = item.model_dump(exclude_none=True) if isinstance(item, Item) else dict(item)
    return _with_picture(row)


def event_row(event: Event | Mapping[str, Any]) -> dict[str, Any]:
    """A `ts` that is a datetime becomes ISO 8601."""
    row = event.model_dump(exclude_none=True) if isinstance(event, Event) else dict(event)
    ts = row.get("ts")
    return {**row, "ts": ts.isoformat()} if isinstance(ts, datetime) else row


def input_row(given: str | TextOrImage | Mapping[str, Any]) -> str | dict[str, Any]:
    if isinstance(given, str):
        return given
    row = given.model_dump(exclude_none=True) if isinstance(given, TextOrImage) else dict(given)
    return _with_picture(row)


def listed(names: str | Sequence[str]) -> list[str]:
    """A single name is a list of one, not of its letters."""
    return [names] if isinstance(names, str) else list(names)


def bodies(
    name: str, rows: Iterable[Any], most: int, others: Mapping[str, Any], key: str = ""
) -> Iterator[tuple[bytes, int]]:
    """Request bodies {**others, name: [row, ...]} and their numbers of rows, in order: at most `most` rows each, and
    MAX_BODY_BYTES unless one row alone is larger; with `key`, no two rows of a body share its value. Takes rows as it
    goes."""
    head = encode(dict(others))[:-1] + (b"," if others else b"") + encode(name) + b":["
    kept: list[bytes] = []
    size, seen = len(head), set[object]()
    for row in rows:
        data = encode(row)
        value = repr(row.get(key)) if key else None
        if kept and (len(kept) == most or size + len(data) + 2 > MAX_BODY_BYTES or (key and value in seen)):
            yield head + b",".join(kept) + b"]}", len(kept)
            kept, size, seen = [], len(head), set()
        kept.append(data)
        size += len(data) + 1
        seen.add(value)
    if kept:
        yield head + b",".join(kept) + b"]}", len(kept)


def _with_picture(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "image": picture(row["image"])} if row.get("image") is not None else row
