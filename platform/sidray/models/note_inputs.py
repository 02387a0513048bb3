"""Notes for an MLRM: prompts with their visual places opened up, and feature grids. Runs in Ray Data tasks; picklable.

fetch = NoteFetch(sources, model, "pairs", frozenset({"note"}));  fetch(pair_rows)["note.ids"]  # [2b, T]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.datasets import open_dataset
from sidray.models.inputs import Segment, StateCache, batch_of, of_groups, padded_rows, pixels
from sidray.models.mlrm import VISUAL, NoteInput
from sidray.models.note_prompts import NotePrompter
from sidray.models.note_settings import NoteInputs, PromptStyle
from sidray.models.prompts import load_tokenizer
from sidray.models.settings import ModelSettings
from sidray.models.sources import Sources
from sidray.models.towers import ImageInput, TextInput, len_tokenizer

NOTE_COLUMNS: Mapping[str, NoteInputs] = {"note": "multimodal", "note_text": "text", "note_image": "image"}


def open_visual(segment: Segment, places: int) -> Segment:
    """The segment with its VISUAL repeated `places` (L_c) times."""
    counts = np.where(segment.ids == VISUAL, places, 1)
    states = None if segment.states is None else np.repeat(segment.states, counts, axis=0)
    return Segment(np.repeat(segment.ids, counts), states)


def prompter_of(sources: Sources, model: ModelSettings, fields: list[str]) -> NotePrompter:
    """The prompter of a model's tokenizer."""
    assert model.note is not None
    folder = storage.local_folder(sources.text_weights)
    return NotePrompter(load_tokenizer(folder), model.text, model.note, fields, len_tokenizer(folder))


def catalogue_prompts(catalogue: Catalogue, prompter: NotePrompter, rows: Rows, style: PromptStyle) -> list[list[int]]:
    """The prompts of item rows."""
    table = catalogue.items(rows, ["title", *prompter.fields, "image_id"])
    return prompter.notes(table.to_pylist(), (table["image_id"].to_numpy() >= 0).tolist(), style)


def note_input(batch: Mapping[str, Tensor], column: str) -> NoteInput:
    """The notes of a batch as `column` shows them."""
    text = image = None
    if f"{column}.ids" in batch:
        text = TextInput.of_batch(batch, column)
    if NOTE_COLUMNS[column] != "text" and "image" in batch:
        image = ImageInput.of_batch(batch)
    return NoteInput(text, image)


@dataclass(frozen=True)
class NoteFetch:
    """positions [b] -> tensors. `rows`: positions are pair rows (the batch holds 2b notes: items, then their related
    items) or item rows (b notes). `columns`: of NOTE_COLUMNS, and "related" (train's related items of each note)."""

    sources: Sources
    model: ModelSettings
    rows: Literal["pairs", "items"]
    columns: frozenset[str]

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue.open(self.sources.catalogue, self.sources.shuffle_pairs)

    @cached_property
    def prompter(self) -> NotePrompter:
        return prompter_of(self.sources, self.model, self.catalogue.text_fields)

    @cached_property
    def _caches(self) -> dict[str, tuple[StateCache, Rows]]:
        opened = {style: StateCache(uri) for style, uri in self.sources.note_caches.items()}
        return {style: (cache, cache.index("items")) for style, cache in opened.items()}

    @cached_property
    def _related(self) -> tuple[Rows, Rows]:
        return self.catalogue.train_related()

    @cached_property
    def _features(self) -> Any:
        return open_dataset(storage.join(str(self.sources.image_cache), "features.lance"))

    def __call__(self, positions: Rows) -> dict[str, Tensor]:
        rows = positions
        if self.rows == "pairs":
            pairs = self.catalogue.pairs().take(positions)
            rows = np.concatenate([pairs["item_row"].to_numpy(), pairs["related_row"].to_numpy()]).astype(np.int64)
        out = {"item_row": torch.from_numpy(rows.copy())}
        for column in sorted(self.columns - {"related"}):
            out |= self._note(rows, column)
        if any(NOTE_COLUMNS.get(column) in ("multimodal", "image") for column in self.columns):
            out |= self._images(rows)
        if "related" in self.columns:
            out["related"] = padded_rows(of_groups(*self._related, rows))
        return out

    def _note(self, rows: Rows, column: str) -> dict[str, Tensor]:
        note = self.model.note
        assert note is not None
        if not note.reads_text:
            return {}
        places = note.connector.queries
        segments = self.segments(rows, note.prompt(note.shown(NOTE_COLUMNS[column])))
        return batch_of([[open_visual(segment, places)] for segment in segments], column)

    def segments(self, rows: Rows, style: PromptStyle) -> list[Segment]:
        """The prompts of item rows, with one VISUAL each where there is a picture to be shown."""
        if style in self._caches:
            cache, index = self._caches[style]
            return cache.take(index[rows])
        return [
            Segment(np.array(ids, np.int64)) for ids in catalogue_prompts(self.catalogue, self.prompter, rows, style)
        ]

    @cached_property
    def _shuffled(self) -> Rows:
        """Which item's picture each item shows: the control `shuffled-images` permutes those that there are."""
        source = np.arange(self.catalogue.n_items)
        if self.sources.shuffle is not None:
            pictured = np.flatnonzero(self.catalogue.items(None, ["image_id"])["image_id"].to_numpy() >= 0)
            source[pictured] = np.random.default_rng(self.sources.shuffle).permutation(pictured)
        return source

    def _images(self, rows: Rows) -> dict[str, Tensor]:
        """image: pixels uint8 [b, 3, S, S] or feature grids fp16 [b, L, w]; image.present [b] bool."""
        note = self.model.note
        assert note is not None
        if not note.looks:
            return {}
        rows = self._shuffled[rows]
        if self.sources.image_cache is None:
            table = self.catalogue.items(rows, ["image"])
            values, present = pixels(table["image"].to_pylist(), self.model.image.size)
            return {"image": values, "image.present": present}
        distinct, back = np.unique(rows, return_inverse=True)
        table = self._features.take(distinct, columns=["grid", "image_id"])
        metadata = self._features.schema.metadata
        flat = table["grid"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        grid = flat.reshape(len(distinct), int(metadata[b"places"]), -1)
        if not note.early:  # nothing but the whole picture is read: see Mlrm.whole_of
            whole = grid[:, :1] if int(metadata[b"cls"]) else grid.mean(1, dtype=np.float32, keepdims=True)
            grid = whole.astype(np.float16)
        present = table["image_id"].to_numpy()[back] >= 0
        return {"image": torch.from_numpy(grid[back]), "image.present": torch.from_numpy(present)}
