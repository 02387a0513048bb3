"""The frozen parts, computed once for the whole catalogue and shared by every variant: lower LM layers, an image trunk.

text cache:   texts.lance (ids, states fp16 bytes [n, d]; row 0 = the empty text), items.lance and queries.lance (column
              `text`: the row in texts.lance of an item row, of a query_id). Equal texts are computed once.
note cache:   the same of one prompt style of an MLRM, without queries; states at VISUAL and <IMG_EMB> are zeros.
image cache:  features.lance (features fp32 [w], image_id), one row per item row.
grid cache:   features.lance (grid fp16 [L * w], image_id); its metadata say L (places) and whether row 0 is [CLS].
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.datasets import open_dataset, write_dataset
from sidray.embedding.pool import Encoder, encode_rows, vector_column, write_rows
from sidray.embedding.settings import EmbeddingSettings
from sidray.models.image import load_image_encoder
from sidray.models.inference import for_inference, inference_device
from sidray.models.inputs import item_texts, pixels
from sidray.models.note_inputs import catalogue_prompts, prompter_of
from sidray.models.note_settings import PromptStyle
from sidray.models.prompts import Prompter, load_tokenizer, pad
from sidray.models.settings import ModelSettings, Precision
from sidray.models.sources import sources_of
from sidray.models.text import TextEncoder, load_lm
from sidray.models.towers import len_tokenizer
from sidray.steps import Summary, Work

TEXT_VERSION = 2
IMAGE_VERSION = 1
NOTE_VERSION = 3
GRID_VERSION = 1
ROWS_AT_ONCE = 8192
LISTS = 2**20  # in one array, whose offsets are int32
ID_BYTES = 4

Texts = dict[bytes, int]  # the ids of a text, as _key makes them -> its number


def text_cache(model: ModelSettings, settings: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, text-weights."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    tokenizer = load_tokenizer(storage.local_folder(work.inputs["text-weights"]))
    prompter = Prompter(tokenizer, model.text, model.prompts, catalogue.text_fields)
    texts: Texts = {_key([], prompter.eos): 0}
    items = _number(texts, _item_ids(catalogue, prompter), prompter.eos)
    queries = _number(texts, _query_ids(catalogue, prompter), prompter.eos)
    for name, rows in (("items", items), ("queries", queries)):
        write_dataset(work.path(f"{name}.lance"), pa.table({"text": rows}))
    tokens = sum(map(len, texts)) // ID_BYTES
    _write_states(_lists(texts), "text-cache", model, settings, work)
    return {"texts": len(texts), "tokens": tokens}


def _item_ids(catalogue: Catalogue, prompter: Prompter) -> Iterator[list[list[int]]]:
    for rows in _slices(catalogue):
        yield prompter.items(item_texts(catalogue.items(rows, ["title", *prompter.fields]), prompter))


def _slices(catalogue: Catalogue) -> Iterator[Rows]:
    """All item rows, some thousand at a time."""
    for start in range(0, catalogue.n_items, ROWS_AT_ONCE):
        yield np.arange(start, min(start + ROWS_AT_ONCE, catalogue.n_items))


def _query_ids(catalogue: Catalogue, prompter: Prompter) -> Iterator[list[list[int]]]:
    clicks = catalogue.clicks()
    _, first = np.unique(clicks["query_id"].to_numpy(), return_index=True)
    for start in range(0, len(first), ROWS_AT_ONCE):
        queries = clicks["query"].take(pa.array(first[start : start + ROWS_AT_ONCE]))
        yield prompter.queries([prompter.query_text(query) for query in queries.to_pylist()])


def _key(ids: list[int], eos: int) -> bytes:
    """ids and EOS as int32: a tenth of what a tuple takes."""
    return array("i", [*ids, eos]).tobytes()


def _number(texts: Texts, slices: Iterable[list[list[int]]], eos: int) -> Rows:
    """The number of each sequence + EOS in `texts`, which grows by the new ones."""
    return np.concatenate(
        [np.array([texts.setdefault(_key(ids, eos), len(texts)) for ids in each], np.int64) for each in slices]
    )


def _lists(texts: Texts) -> pa.ChunkedArray:
    """list<int32> [len(texts)] of the ids, in their order."""
    keys = list(texts)
    return pa.chunked_array([_flat(keys[start : start + LISTS]) for start in range(0, len(keys), LISTS)])


def _flat(keys: list[bytes]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, keys)]) // ID_BYTES
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.frombuffer(b"".join(keys), np.int32)))


def note_cache(model: ModelSettings, style: PromptStyle, settings: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, text-weights."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    prompter = prompter_of(sources_of(work.inputs, None), model, catalogue.text_fields)
    prompts: list[tuple[int, ...]] = []
    for rows in _slices(catalogue):
        prompts += map(tuple, catalogue_prompts(catalogue, prompter, rows, style))
    numbers = {text: number for number, text in enumerate(sorted(set(prompts), key=len))}  # by length: little padding
    index = pa.table({"text": pa.array([numbers[prompt] for prompt in prompts], pa.int64())})
    write_dataset(work.path("items.lance"), index)
    ids = pa.array([list(prompt) for prompt in numbers], pa.list_(pa.int32()))
    _write_states(ids, f"note-cache-{style}", model, settings, work)
    return {"prompts": len(numbers), "tokens": sum(map(len, numbers))}


def _write_states(
    ids: pa.Array | pa.ChunkedArray, name: str, model: ModelSettings, settings: EmbeddingSettings, work: Work
) -> None:
    """ids: list<int32>, one for each text."""
    write_dataset(work.path("ids.lance"), pa.table({"ids": ids}))
    make = functools.partial(
        _text_encoder, model, settings.precision, work.inputs["text-weights"], work.path("ids.lance")
    )
    write_rows(work.path("texts.lance"), encode_rows(name, len(ids), make, settings))


def _text_encoder(model: ModelSettings, precision: Precision, weights: str, ids_uri: str) -> Encoder:
    folder = storage.local_folder(weights)
    base = len_tokenizer(folder)
    text = for_inference(TextEncoder(load_lm(folder), model.text.frozen_layers, 0, with_frozen=True), precision)
    device = next(text.parameters()).device
    dataset = open_dataset(ids_uri)

    def encode(rows: Any) -> pa.Table:
        ids = dataset.take(rows, columns=["ids"])["ids"].to_pylist()
        padded, mask = (value.to(device) for value in pad(ids))
        is_text = (padded >= 0) & (padded < base) & mask
        states = text.states_among(padded, is_text, mask).float().clamp(-65504, 65504) * is_text[..., None]
        kept = states.half().cpu().numpy()  # [n, T, d]
        binary = [kept[i, : len(text)].tobytes() for i, text in enumerate(ids)]
        return pa.table({"ids": pa.array(ids, pa.list_(pa.int32())), "states": pa.array(binary, pa.large_binary())})

    return encode


def image_cache(model: ModelSettings, settings: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, image-weights."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    make = functools.partial(_image_encoder, model, work.inputs["image-weights"], catalogue, 0)
    count = write_rows(work.path("features.lance"), encode_rows("image-cache", catalogue.n_items, make, settings))
    return {"items": count}


def _image_encoder(model: ModelSettings, weights: str, catalogue: Catalogue, places: int) -> Encoder:
    """`places`: of a grid in fp16; 0: the features of the whole picture."""
    device = inference_device()
    trunk = for_inference(load_image_encoder(storage.local_folder(weights)), "fp32")
    name, shape, dtype = ("grid", places * trunk.width, np.float16) if places else ("features", trunk.width, np.float32)

    def encode(rows: Any) -> pa.Table:
        table = catalogue.items(rows, ["image", "image_id"])
        values, present = pixels(table["image"].to_pylist(), model.image.size)
        out = np.zeros((len(rows), shape), dtype)
        if present.any():
            shown = values[present].to(device)
            found = trunk.grid(shown).float().clamp(-65504, 65504).half().flatten(1) if places else trunk(shown).float()
            out[present.numpy()] = found.cpu().numpy()
        return pa.table({name: vector_column(out), "image_id": table["image_id"]})

    return encode


def grid_cache(model: ModelSettings, settings: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: catalogue, image-weights. Says how large it will be before it begins."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    weights = work.inputs["image-weights"]
    encoder = load_image_encoder(storage.local_folder(weights)).eval()
    with torch.inference_mode():
        blank = torch.zeros(1, 3, model.image.size, model.image.size, dtype=torch.uint8)
        places, width = encoder.grid(blank).shape[1:]
    gigabytes = 2 * catalogue.n_items * places * width / 2**30
    print(f"grid-cache: {catalogue.n_items:,} items x {places} places x {width} features in fp16: {gigabytes:.2f} GiB")
    make = functools.partial(_image_encoder, model, weights, catalogue, places)
    tables = encode_rows("grid-cache", catalogue.n_items, make, settings)
    metadata = {"places": str(places), "cls": str(int(encoder.has_cls))}
    named = (table.replace_schema_metadata(metadata) for table in tables)
    return {"items": write_rows(work.path("features.lance"), named), "places": places, "width": width}
