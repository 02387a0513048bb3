"""The weights steps: initial weights into the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.models.note_prompts import note_text
from sidray.models.prompts import item_prompt, query_prompt
from sidray.models.settings import ModelSettings
from sidray.models.weights import prepare_image, prepare_text
from sidray.steps import Summary, Work

BATCH = 8192


def text_weights(model: ModelSettings, work: Work) -> Summary:
    """Inputs: catalogue, when random weights need a tokenizer trained on its train split."""
    texts: Iterator[str] = iter(())
    if "catalogue" in work.inputs:
        texts = training_texts(Catalogue.open(work.inputs["catalogue"]), model)
    with tempfile.TemporaryDirectory() as folder:
        summary = prepare_text(model.text, texts, Path(folder), model.seed)
        storage.upload(folder, work.output)
    return summary


def training_texts(catalogue: Catalogue, model: ModelSettings) -> Iterator[str]:
    """What the model will read of the train split: the prompts of items and queries, or notes."""
    note, fields = model.note, catalogue.text_fields
    if note is not None:
        for row in _items(catalogue, catalogue.paired_items("train")):
            yield f"{note.opening}{{'image': , {note_text(row, note, fields)}}}{note.instruction}"
        return
    for row in _items(catalogue, catalogue.train_items):
        yield item_prompt(row, model.prompts, fields)
    for query in catalogue.clicks("train")["query"]:
        yield query_prompt(query.as_py(), model.prompts)


def _items(catalogue: Catalogue, rows: Rows) -> Iterator[dict[str, Any]]:
    for start in range(0, len(rows), BATCH):
        yield from catalogue.items(rows[start : start + BATCH], ["title", *catalogue.text_fields]).to_pylist()


def image_weights(model: ModelSettings, work: Work) -> Summary:
    with tempfile.TemporaryDirectory() as folder:
        summary = prepare_image(model.image, Path(folder), model.seed)
        storage.upload(folder, work.output)
    return summary
