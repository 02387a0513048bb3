"""The weights steps: initial weights into the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from sidray import storage
from sidray.data.catalogue import Catalogue
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
    """The prompts of train items and train queries."""
    for start in range(0, len(catalogue.train_items), BATCH):
        rows = catalogue.train_items[start : start + BATCH]
        for row in catalogue.items(rows, ["title", *catalogue.text_fields]).to_pylist():
            yield item_prompt(row, model.prompts, catalogue.text_fields)
    for query in catalogue.clicks("train")["query"]:
        yield query_prompt(query.as_py(), model.prompts)


def image_weights(model: ModelSettings, work: Work) -> Summary:
    with tempfile.TemporaryDirectory() as folder:
        summary = prepare_image(model.image, Path(folder), model.seed)
        storage.upload(folder, work.output)
    return summary
