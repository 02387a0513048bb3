"""A page of pictures: what each variant finds for some queries, with the clicked item marked (SMGR figure 3).

    chosen = choose(test_clicks, count=12)
    queries = [GalleryQuery("red dress", clicked=7), ...]
    write_gallery(Path("report/gallery.html"), queries, {"smgr": [[7, 3], ...]}, lambda row: (title, image_bytes))

The page is one file: pictures are data URLs, drawn again as small JPEGs, so that nothing of the original bytes reaches
the browser; texts are escaped, and its content policy forbids scripts and every outside resource.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from sidray import storage
from sidray.data.images import decode_rgb

_SIZE = 160  # pixels

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Retrieval gallery</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1c1c1c }
section { border-top: 1px solid #ccc; padding: 1rem 0 }
h2 { font-size: 1.15rem; margin: 0 0 .6rem }
h2 small { font-weight: normal; color: #666 }
.line { display: flex; flex-wrap: wrap; gap: .6rem; margin: .4rem 0 1rem }
.name { width: 7rem; font-weight: 600; overflow-wrap: anywhere }
figure { margin: 0; width: 8.4rem; border: 3px solid transparent; border-radius: .5rem; padding: .2rem }
figure.clicked { border-color: #12833b; background: #e9f7ee }
img, .none { width: 100%; aspect-ratio: 1; object-fit: contain; display: block; background: #fff; border-radius: .3rem }
.none { display: grid; place-items: center; background: #eee; color: #777 }
figcaption { font-size: .8rem; overflow-wrap: anywhere }
figcaption b { color: #12833b }
</style></head><body>
<h1>What each variant finds</h1>
<p>The first results for each query, best first. The item that was clicked has a green frame.</p>
"""


class GalleryQuery(NamedTuple):
    text: str
    clicked: int  # item row
    partition: str = ""


Items = Callable[[int], tuple[str, bytes | None]]  # row -> title, encoded picture


def choose(clicks: pa.Table, count: int, seed: int = 0) -> list[int]:
    """Positions of `count` clicks of distinct queries, drawn with the seed, in the order of the table."""
    _, first = np.unique(clicks["query_id"].to_numpy(), return_index=True)
    drawn = np.random.default_rng(seed).permutation(first)[:count]
    return [int(position) for position in np.sort(drawn)]


def write_gallery(
    path: Path, queries: Sequence[GalleryQuery], variants: Mapping[str, Sequence[Sequence[int]]], items: Items
) -> None:
    """Writes the page. variants: name -> for each query the item rows found, best first (-1 is skipped)."""

    @cache
    def picture(row: int) -> tuple[str, str]:
        title, data = items(row)
        return _picture(data), escape(title)

    def figure(row: int, clicked: bool, rank: str) -> str:
        image, title = picture(row)
        mark, word = (' class="clicked"', "<b>clicked</b> ") if clicked else ("", "")
        return f"<figure{mark}>{image}<figcaption>{rank}{word}{title}</figcaption></figure>"

    parts = [_HEAD]
    for number, query in enumerate(queries):
        scope = f" <small>in {escape(query.partition)}</small>" if query.partition else ""
        parts.append(f"<section><h2>{escape(query.text)}{scope}</h2>")
        parts.append(_line("", [figure(query.clicked, True, "")]))
        for name, found in variants.items():
            rows = [int(row) for row in found[number] if row >= 0]
            parts.append(_line(name, [figure(row, row == query.clicked, f"{n}. ") for n, row in enumerate(rows, 1)]))
        parts.append("</section>")
    storage.write_bytes(str(path), ("\n".join(parts) + "\n</body></html>\n").encode())


def _line(name: str, figures: Sequence[str]) -> str:
    return f'<div class="line"><div class="name">{escape(name)}</div>{"".join(figures)}</div>'


def _picture(data: bytes | None) -> str:
    """An <img> with the picture inside it, or a grey square that says why there is none."""
    if data is None:
        return '<div class="none">no picture</div>'
    try:
        pixels = decode_rgb(data, _SIZE)  # uint8 [3, size, size]
    except ValueError:
        return '<div class="none">unreadable</div>'
    sink = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, 2)).save(sink, "JPEG", quality=85)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}">'
