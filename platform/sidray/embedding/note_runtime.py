"""A finished run of an MLRM as a model: raw notes, texts and pictures to vectors, with no cache and no catalogue.

A text is the note that has this title alone, a picture the note that has no text: what table 3 of NoteLLM-2 shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from sidray import storage
from sidray.embedding.encoded import Encoded, Item, Vectors, unit
from sidray.errors import UserError
from sidray.finished import RunFolder
from sidray.models.inference import for_inference
from sidray.models.inputs import Segment, batch_of, pixels
from sidray.models.lengths import read
from sidray.models.mlrm import Mlrm, NoteInput
from sidray.models.note_inputs import open_visual, prompter_of
from sidray.models.sources import sources_of
from sidray.models.towers import ImageInput, TextInput
from sidray.models.trained import load_trained


class NoteModel:
    """The model of a run on pairs, a ServedModel."""

    def __init__(self, run: RunFolder) -> None:
        self.recipe = run.recipe
        self.model_key = run.model_key
        sources = sources_of(run.sources(), None)
        self.model = cast(Mlrm, sources.model(run.recipe.model, 0, with_frozen=True))
        load_trained(self.model, storage.local_folder(storage.join(run.output(run.trained_role), "towers.safetensors")))
        for_inference(self.model, run.recipe.embedding.precision)
        self.device = next(self.model.parameters()).device
        self.note = self.model.note
        self.prompter = prompter_of(sources, run.recipe.model, run.recipe.data.text_fields)
        self.reads_text = self.note.inputs != "image"
        self.reads_pictures = self.note.looks and (self.note.early or self.note.inputs == "image")

    @property
    def tokenizer(self) -> Any:
        return self.prompter.tokenizer

    @property
    def dimension(self) -> int:
        return self.model.dimension

    def queries(self, texts: Sequence[str]) -> Vectors:
        """[n, dimension]. Raises UserError when the model reads pictures alone."""
        return self.encoded_queries(self.tokenised_queries(texts))

    def tokenised_queries(self, texts: Sequence[str]) -> list[list[int]]:
        if not self.reads_text:
            raise UserError("this model reads no text", "search with a picture, or choose a variant that reads text")
        return self.prompter.notes([{"title": text} for text in texts], [False] * len(texts), "text")

    def encoded_queries(self, ids: Sequence[Sequence[int]]) -> Vectors:
        """`ids` as `tokenised_queries` gives them."""
        with torch.inference_mode():
            return unit(self.model(NoteInput(self._text(ids), None))[1])

    def pictures(self, images: Sequence[bytes]) -> Vectors:
        """[n, dimension]. Raises UserError when no picture enters what makes the vector of a picture alone."""
        if not self.reads_pictures:
            raise UserError("this model reads no picture without its text", "search with a text")
        return self._encode([{}] * len(images), list(images))

    def items(self, items: Sequence[Item]) -> Encoded:
        """New or changed notes, each encoded as if it were alone."""
        return Encoded(self._encode(items, [item.get("image") for item in items]), [[] for _ in items])

    def _encode(self, notes: Sequence[Mapping[str, Any]], images: list[bytes | None]) -> Vectors:
        text: TextInput | None = None
        image: ImageInput | None = None
        if self.note.reads_text:
            style = self.note.prompt(self.note.inputs)
            text = self._text(self.prompter.notes(notes, [data is not None for data in images], style))
        if self.note.looks:
            values, present = pixels(images, self.recipe.model.image.size)
            image = ImageInput(values.to(self.device), present.to(self.device))
        with torch.inference_mode():
            return unit(read(lambda notes: self.model(notes)[1], NoteInput(text, image)))

    def _text(self, prompts: Sequence[Sequence[int]]) -> TextInput:
        segments = [Segment(np.array(ids, np.int64)) for ids in prompts]
        batch = batch_of([[open_visual(segment, self.note.connector.queries)] for segment in segments], "note")
        return TextInput(batch["note.ids"].to(self.device), batch["note.mask"].to(self.device))
