"""The frozen parts, computed once for the whole catalogue and shared by every variant: lower LM layers, an image trunk.

text cache:   texts.lance (ids, states fp16 bytes [n, d]; row 0 = the empty text), items.lance and queries.lance (column
              `text`: the row in texts.lance of an item row, of a query_id). Equal texts are computed once.
image cache:  features.lance (features fp32 [w], image_id), one row per item row.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.embedding.pool import Encoder, encode_rows, vector_column, write_rows
from sidray.embedding.settings import EmbeddingSettings
from sidray.models.image import load_image_encoder
from sidray.models.inputs import item_texts, pixels
from sidray.models.prompts import Prompter, load_tokenizer, pad
from sidray.models.settings import ModelSettings
from sidray.models.towers import build_towers
from sidray.steps import Summary, Work

TEXT_VERSION = 1
IMAGE_VERSION = 1
ROWS_AT_ONCE = 8192


def text_cache(model: ModelSettings, settings: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, text-weights."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    tokenizer = load_tokenizer(storage.local_folder(work.inputs["text-weights"]))
    prompter = Prompter(tokenizer, model.text, model.prompts, catalogue.text_fields)
    texts: dict[tuple[int, ...], int] = {(prompter.eos,): 0}
    items = _number(texts, _item_ids(catalogue, prompter))
    queries = _number(texts, _query_ids(catalogue, prompter))
    for name, rows in (("items", items), ("queries", queries)):
        lance.write_dataset(pa.table({"text": rows}), storage.absolute(work.path(f"{name}.lance")))
    ids = pa.table({"ids": pa.array([list(text) for text in texts], pa.list_(pa.int32()))})
    lance.write_dataset(ids, storage.absolute(work.path("ids.lance")))
    make = functools.partial(_text_encoder, model, work.inputs["text-weights"], work.path("ids.lance"))
    write_rows(work.path("texts.lance"), encode_rows("text-cache", len(texts), make, settings))
    return {"texts": len(texts), "tokens": sum(map(len, texts))}


def _item_ids(catalogue: Catalogue, prompter: Prompter) -> list[list[int]]:
    out: list[list[int]] = []
    for start in range(0, catalogue.n_items, ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, catalogue.n_items))
        out += prompter.items(item_texts(catalogue.items(rows, ["title", *prompter.fields]), prompter))
    return out


def _query_ids(catalogue: Catalogue, prompter: Prompter) -> list[list[int]]:
    clicks = catalogue.clicks()
    _, first = np.unique(clicks["query_id"].to_numpy(), return_index=True)
    return prompter.queries([prompter.query_text(q) for q in clicks["query"].take(pa.array(first)).to_pylist()])


def _number(texts: dict[tuple[int, ...], int], sequences: Sequence[Sequence[int]]) -> Rows:
    """The number of each sequence + EOS in `texts`, which grows by the new ones."""
    eos = next(iter(texts))[0]
    return np.array([texts.setdefault((*ids, eos), len(texts)) for ids in sequences], np.int64)


def _text_encoder(model: ModelSettings, weights: str, ids_uri: str) -> Encoder:
    towers = build_towers(storage.local_folder(weights), None, model, 0, with_frozen=True).eval()
    device = _device(towers)
    dataset = lance.dataset(ids_uri)

    def encode(rows: Any) -> pa.Table:
        ids = dataset.take(rows, columns=["ids"])["ids"].to_pylist()
        padded, mask = pad(ids)
        states = towers.text.states(padded.to(device), mask.to(device)).float().clamp(-65504, 65504)
        kept = states.half().cpu().numpy()  # [n, T, d]
        binary = [kept[i, : len(text)].tobytes() for i, text in enumerate(ids)]
        return pa.table({"ids": pa.array(ids, pa.list_(pa.int32())), "states": pa.array(binary, pa.large_binary())})

    return encode


def image_cache(model: ModelSettings, settings: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, image-weights."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    make = functools.partial(_image_encoder, model, work.inputs["image-weights"], catalogue)
    count = write_rows(work.path("features.lance"), encode_rows("image-cache", catalogue.n_items, make, settings))
    return {"items": count}


def _image_encoder(model: ModelSettings, weights: str, catalogue: Catalogue) -> Encoder:
    trunk = load_image_encoder(storage.local_folder(weights)).eval()
    device = _device(trunk)

    def encode(rows: Any) -> pa.Table:
        table = catalogue.items(rows, ["image", "image_id"])
        values, present = pixels(table["image"].to_pylist(), model.image.size)
        features = np.zeros((len(rows), trunk.width), np.float32)
        if present.any():
            features[present.numpy()] = trunk(values[present].to(device)).float().cpu().numpy()
        return pa.table({"features": vector_column(features), "image_id": table["image_id"]})

    return encode


def _device(module: torch.nn.Module) -> torch.device:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module.to(device)
    return device
