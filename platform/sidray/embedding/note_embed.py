"""Vectors of the whole catalogue by an MLRM, cluster-wide: items.lance, by item row.

embed:      vector [dimension], of unit length; `shown` says what of the notes the model is given (table 3)
zero_shot:  text [d] (the mean of the untrained LM's last states over the note's prompt) and image [w] (the vision
            encoder's whole), as they are; zeros where there is no picture
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import torch.nn.functional as F
from torch import Tensor

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.embedding.pool import Encoder, encode_rows, vector_column, write_rows
from sidray.models.inference import for_inference
from sidray.models.lengths import read
from sidray.models.mlrm import Mlrm, NoteInput
from sidray.models.note_inputs import NOTE_COLUMNS, NoteFetch, note_input
from sidray.models.note_settings import NoteInputs
from sidray.models.settings import ModelSettings, Precision
from sidray.models.sources import Sources, sources_of
from sidray.models.text import pool_mean
from sidray.models.trained import load_trained
from sidray.steps import Summary, Work

if TYPE_CHECKING:
    from sidray.recipe import Recipe

VERSION = 3
COLUMN_OF = {shown: column for column, shown in NOTE_COLUMNS.items()}
Columns = Callable[[Mlrm, NoteInput], dict[str, Tensor]]


@dataclass(frozen=True)
class NoteJob:
    """`trained`: URI of a stage's weights, None for the initial ones; `precision`: see EmbeddingSettings."""

    sources: Sources
    model: ModelSettings
    shown: NoteInputs
    trained: str | None
    precision: Precision

    def load(self) -> Mlrm:
        """The model without the parts whose outputs are cached."""
        model = cast(Mlrm, self.sources.model(self.model, 0))
        if self.trained is not None:
            load_trained(model, storage.local_folder(self.trained))
        return for_inference(model, self.precision)


def embed_notes(shown: NoteInputs, recipe: Recipe, work: Work) -> Summary:
    """Inputs: catalogue, weights, caches, towers (the trained weights)."""
    trained = storage.join(work.inputs["towers"], "towers.safetensors")
    job = NoteJob(_sources(recipe, work), recipe.model, shown, trained, recipe.embedding.precision)
    return _write(job, _vectors, recipe, work)


def zero_shot(recipe: Recipe, work: Work) -> Summary:
    """Inputs: catalogue, weights, caches."""
    job = NoteJob(_sources(recipe, work), recipe.model, "multimodal", None, recipe.embedding.precision)
    return _write(job, _untrained, recipe, work)


def _sources(recipe: Recipe, work: Work) -> Sources:
    return sources_of(work.inputs, recipe.controls.shuffle_images)


def _write(job: NoteJob, columns: Columns, recipe: Recipe, work: Work) -> Summary:
    count = Catalogue.open(job.sources.catalogue).n_items
    make = functools.partial(_encoder, job, columns)
    write_rows(work.path("items.lance"), encode_rows("embed", count, make, recipe.embedding))
    return {"items": count}


def _encoder(job: NoteJob, columns: Columns) -> Encoder:
    model = job.load()
    device = next(model.parameters()).device
    column = COLUMN_OF[job.shown]
    fetch = NoteFetch(job.sources, job.model, "items", frozenset({column}))

    def encode(rows: Any) -> pa.Table:
        batch = {name: value.to(device) for name, value in fetch(rows).items()}
        found = columns(model, note_input(batch, column))
        return pa.table({name: vector_column(value.float().cpu().numpy()) for name, value in found.items()})

    return encode


def _vectors(model: Mlrm, notes: NoteInput) -> dict[str, Tensor]:
    return {"vector": F.normalize(read(lambda each: model(each)[1], notes), dim=-1)}


def _untrained(model: Mlrm, notes: NoteInput) -> dict[str, Tensor]:
    out = {}
    if notes.text is not None:
        is_text = notes.text.mask & (notes.text.ids >= 0) & (notes.text.ids < model.base)
        out["text"] = pool_mean(model.hidden(notes.text, None), is_text)
    if notes.image is not None:
        out["image"] = model.whole_of(model.grid(notes.image)) * notes.image.present[:, None]
    return out
