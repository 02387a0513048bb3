"""Searching a finished run in this process: `sidray search RUN "query" [--image F] [--partition P]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidray.data.images import check_image
from sidray.embedding.encoded import ServedModel, load_model
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.retrieval.exact import unit
from sidray.retrieval.index import PartitionedIndex


@dataclass(frozen=True)
class Hit:
    item_id: str
    title: str
    partition: str
    score: float


def query_vector(model: ServedModel, query: str, image: bytes | None) -> Any:
    """[1, dimension] of a query, a picture, or the sum of both. UserError when there is neither."""
    if not query and image is None:
        raise UserError("there is nothing to search for", "give a query, a picture, or both")
    parts = [model.queries([query])] if query else []
    parts += [model.pictures([image])] if image is not None else []
    return unit(np.sum(parts, axis=0))


def read_picture(path: str, max_pixels: int) -> bytes:
    """A picture file, checked. UserError names what is wrong with it."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read picture {path}: {error.strerror}", "give a JPEG, PNG or WebP file") from error
    reason = check_image(data, max_pixels)
    if reason is not None:
        raise UserError(f"picture {path}: {reason}", "give a JPEG, PNG or WebP file")
    return data


def search(run: RunFolder, query: str, image: str | None, partitions: Sequence[str], k: int) -> list[Hit]:
    """The k best items. Loads model and index, so a service is the better choice for many searches."""
    index = PartitionedIndex.load(run.output("index"), threads=1)
    model = load_model(run)
    picture = read_picture(image, run.recipe.data.max_image_pixels) if image else None
    scores, rows = index.search(query_vector(model, query, picture), k, list(partitions) or None)
    found = [(float(s), int(r)) for s, r in zip(scores[0], rows[0], strict=True) if r >= 0]
    fields = index.fields([row for _, row in found])
    return [
        Hit(item["item_id"], item["title"], item["partition"], score)
        for (score, _), item in zip(found, fields, strict=True)
    ]
