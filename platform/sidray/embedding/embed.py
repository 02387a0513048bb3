"""Vectors of the whole catalogue and of all queries in the clicks, by the towers of a stage, cluster-wide.

items.lance, by item row:   vector [dimension] and, of pretraining towers, text [d], image [d], picture [dimension] (the
                            item's vector from its picture alone), present
queries.lance, by query_id: vector [dimension], text [d]
pictures.lance, of final towers: a sample of test items searched by their own picture: vector [dimension]
                            (rows of picture_sample)
All vectors have unit length (zero where a modality is missing).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.embedding.pool import Cut, Encoder, encode_rows, vector_column, write_rows
from sidray.embedding.settings import EmbeddingSettings
from sidray.models.fetch import Fetch
from sidray.models.inference import for_inference
from sidray.models.lengths import read
from sidray.models.settings import ModelSettings, Precision
from sidray.models.sources import Sources
from sidray.models.towers import ImageInput, TextInput, Towers
from sidray.models.trained import load_trained
from sidray.steps import Summary, Work

VERSION = 4
PICTURES = 1000


@dataclass(frozen=True)
class EmbedJob:
    """`item`: what item vectors are made of. `random_images`: seed of the control that replaces h_image by noise;
    `without_images`: the one without pictures. `own_pictures`: whether SIDs of a picture alone are embedded, too."""

    sources: Sources
    model: ModelSettings
    sid_count: int
    towers: str
    item: Literal["fused", "text", "sids"]
    random_images: int | None
    without_images: bool
    own_pictures: bool
    precision: Precision

    def columns(self) -> frozenset[str]:
        return {"fused": frozenset({"text", "image"}), "text": frozenset({"text"}), "sids": frozenset({"item"})}[
            self.item
        ]


def embed(job: EmbedJob, settings: EmbeddingSettings, work: Work) -> Summary:
    """One actor pool encodes items, then queries, then pictures, and the stream is cut into the three tables."""
    catalogue = Catalogue.open(job.sources.catalogue)
    pictures = picture_sample(catalogue) if job.item == "sids" and job.own_pictures else np.zeros(0, np.int64)
    sizes = {"items": catalogue.n_items, "queries": catalogue.n_queries, "pictures": len(pictures)}
    make = functools.partial(_encoder, job, list(sizes.values()), pictures)
    tables = Cut(encode_rows("embed", sum(sizes.values()), make, settings))
    for name, size in sizes.items():
        if size:
            write_rows(work.path(f"{name}.lance"), tables.take(size))
    return dict(sizes)


def picture_sample(catalogue: Catalogue) -> Rows:
    """At most PICTURES item rows with a test click and a picture, seeded."""
    rows = np.unique(catalogue.clicks("test")["item_row"].to_numpy().astype(np.int64))
    rows = rows[catalogue.items(rows, ["image_id"])["image_id"].to_numpy() >= 0]
    return np.sort(np.random.default_rng(0).permutation(rows)[:PICTURES])


def load_stage_towers(job: EmbedJob) -> Towers:
    """The towers of a stage, without the parts whose outputs are cached."""
    towers = cast(Towers, job.sources.model(job.model, job.sid_count))
    load_trained(towers, storage.local_folder(job.towers))
    return for_inference(towers, job.precision)


def _encoder(job: EmbedJob, sizes: list[int], pictures: Rows) -> Encoder:
    encoder = _RowEncoder(job, load_stage_towers(job), pictures)
    starts = np.cumsum([0, *sizes])

    def encode(rows: Any) -> pa.Table:
        sections = (encoder.items, encoder.queries, encoder.pictures)
        cut = [rows[(rows >= starts[i]) & (rows < starts[i + 1])] - starts[i] for i in range(len(sections))]
        return pa.concat_tables([section(own) for section, own in zip(sections, cut, strict=True) if len(own)])

    return encode


class _RowEncoder:
    """Encodes item rows and query_ids of a catalogue into one schema."""

    def __init__(self, job: EmbedJob, towers: Towers, pictures: Rows) -> None:
        self.job = job
        self.towers = towers
        self.picture_rows = pictures
        self.device = next(towers.parameters()).device
        self.fetch_items = Fetch(job.sources, job.model, "items", job.columns())
        self.fetch_pictures = Fetch(job.sources, job.model, "items", job.columns(), drop_text=1.0)
        self.fetch_queries = Fetch(job.sources, job.model, "clicks", frozenset({"query"}))
        clicks = self.fetch_queries.catalogue.clicks()
        _, self.first_click = np.unique(clicks["query_id"].to_numpy(), return_index=True)

    def items(self, rows: Any) -> pa.Table:
        batch = self._here(self.fetch_items(rows))
        towers, kind = self.towers, self.job.item
        if kind == "sids":
            vector = towers.item(read(towers.encode_text, TextInput.of_batch(batch, "item")))
            return self._table(vector, len(rows))
        h_text = read(towers.encode_text, TextInput.of_batch(batch, "text"))
        if kind == "text":
            return self._table(towers.item(h_text), len(rows), h_text)
        image = ImageInput.of_batch(batch)
        if self.job.without_images:
            image = ImageInput(image.values, torch.zeros_like(image.present))
        h_image = towers.encode_image(image)
        if self.job.random_images is not None:
            noise = _noise(rows, h_image.shape[1], self.job.random_images).to(self.device)
            h_image = noise * image.present[:, None]
        picture = towers.item(None, h_image) * image.present[:, None]
        return self._table(towers.item(h_text, h_image), len(rows), h_text, h_image, picture, image.present)

    def queries(self, query_ids: Any) -> pa.Table:
        batch = self._here(self.fetch_queries(self.first_click[query_ids]))
        h_q = read(self.towers.encode_text, TextInput.of_batch(batch, "query"))
        return self._table(self.towers.query(h_q), len(query_ids), h_q)

    def pictures(self, numbers: Any) -> pa.Table:
        """Items of the sample with their text left empty: the SIDs of the picture alone."""
        batch = self._here(self.fetch_pictures(self.picture_rows[numbers]))
        vector = self.towers.item(read(self.towers.encode_text, TextInput.of_batch(batch, "item")))
        return self._table(vector, len(numbers))

    def _here(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """On the device of the towers."""
        return {name: value.to(self.device) for name, value in batch.items()}

    def _table(
        self,
        vector: Tensor,
        rows: int,
        text: Tensor | None = None,
        image: Tensor | None = None,
        picture: Tensor | None = None,
        present: Tensor | None = None,
    ) -> pa.Table:
        d, dimension = self.towers.text.width, self.towers.dimension
        columns = {"vector": (vector, dimension), "text": (text, d)}
        if self.job.item == "fused":
            columns |= {"image": (image, d), "picture": (picture, dimension)}
        out = {name: vector_column(_unit(value, rows, width)) for name, (value, width) in columns.items()}
        if self.job.item == "fused":
            out["present"] = pa.array(np.zeros(rows, bool) if present is None else present.cpu().numpy())
        return pa.table(out)


def _unit(value: Tensor | None, rows: int, width: int) -> Any:
    """Rows of unit length as float32; zeros stay zeros, and a missing value is zeros."""
    if value is None:
        return np.zeros((rows, width), np.float32)
    return F.normalize(value.float(), dim=-1).cpu().numpy()


def _noise(rows: Any, width: int, seed: int) -> Tensor:
    """A normal vector of its own per item row, the same whatever batch the row is in."""
    return torch.from_numpy(
        np.stack([np.random.default_rng([seed, int(row)]).standard_normal(width, np.float32) for row in rows])
    )
