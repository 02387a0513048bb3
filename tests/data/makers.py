"""Small tables and pictures for the tests of the data layer."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from sidray.data.settings import DataSettings


def picture(
    colour: str | tuple[int, int, int] = "crimson", size: tuple[int, int] = (24, 16), kind: str = "PNG"
) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, kind)
    return out.getvalue()


def noise(size: tuple[int, int], kind: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:])
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes whose header claims width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def item_rows(count: int) -> list[dict[str, Any]]:
    return [
        {
            "item_id": f"i{n}",
            "title": f"item {n}",
            "image": picture((n % 256, 0, 0)),
            "partition": "ab"[n % 2],
            "note": "",
        }
        for n in range(count)
    ]


def click_rows(count: int) -> list[dict[str, Any]]:
    """One train click for each item, and a test click for every fourth."""
    train = [{"query": f"query {n}", "item_id": f"i{n}", "split": "train"} for n in range(count)]
    return train + [{"query": f"query {n % 3}", "item_id": f"i{n}", "split": "test"} for n in range(0, count, 4)]


def write(rows: list[dict[str, Any]] | pa.Table, path: Path, **options: Any) -> str:
    if isinstance(rows, pa.Table):
        table = rows
    else:
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return str(path)


def settings(folder: Path, items: Any = None, clicks: Any = None, **more: Any) -> DataSettings:
    """Settings over tables written to `folder`; by default 20 good items and their clicks."""
    item_uri = write(item_rows(20) if items is None else items, folder / "items.parquet")
    click_uri = write(click_rows(20) if clicks is None else clicks, folder / "clicks.parquet")
    return DataSettings(source="tables", items=item_uri, clicks=click_uri, **more)
