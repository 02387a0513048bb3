"""The tokenizer steps: fit on the train items' vectors, assign to the whole catalogue cluster-wide.

fit:    tokenizers/<modality>/, vocabulary.json, health.json, health.png
assign: sids.lance, by item row: sids (3 token numbers of each of the recipe's modalities), picture_sids (of its picture
        alone: image and item tokens; empty without one), quantised (the item vector that its codes decode to)
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.datasets import open_dataset
from sidray.embedding.pool import Encoder, encode_rows, read_vectors, vector_column, write_rows
from sidray.embedding.settings import EmbeddingSettings
from sidray.errors import UserError
from sidray.steps import Summary, Work
from sidray.tokenizers.base import SemanticTokenizer, Vectors
from sidray.tokenizers.choose import KIND, ValidationRecall, choose
from sidray.tokenizers.fit import fit_modalities, load_all, save_all
from sidray.tokenizers.health import check, health, plot_health
from sidray.tokenizers.settings import MODALITIES, Modality, TokenizerSettings
from sidray.tokenizers.vocabulary import SidVocabulary

FIT_VERSION = 3
ASSIGN_VERSION = 1
MAX_ROWS = 1_000_000  # vectors that a codebook is fitted on: a seeded sample of more


def _sample(rows: Rows, seed: int) -> Rows:
    if len(rows) <= MAX_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, MAX_ROWS, replace=False))


def fit(settings: TokenizerSettings, work: Work) -> Summary:
    """Inputs: catalogue, embed. Only train items enter; held-out items choose the epoch and the codebooks' sizes."""
    catalogue = Catalogue.open(work.inputs["catalogue"])
    items = storage.join(work.inputs["embed"], "items.lance")
    train = _sample(catalogue.train_items, settings.seed)
    held_out = _sample(catalogue.held_out_items, 0)
    vectors: dict[str, Vectors] = {modality: _vectors(items, modality, train) for modality in MODALITIES}
    if not len(vectors["image"]):
        raise UserError(
            "no item with a train click has a picture, so there is nothing to fit image SIDs on",
            "fill the column image or image_uri of those items",
        )
    valid: dict[str, Vectors] = {m: v for m in MODALITIES if len(held_out) and len(v := _vectors(items, m, held_out))}
    candidates = _fit_sizes(vectors, valid, settings)
    tokenizers, recalls = choose(candidates, ValidationRecall(catalogue, work.inputs["embed"]))
    report = health(tokenizers, vectors)
    for modality, found in recalls.items():
        report[modality]["valid_recall@10_by_entries"] = {str(size): value for size, value in found.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_all(tokenizers, folder / "tokenizers")
        plot_health(report, folder / "health.png")
        storage.upload(folder, work.output)
    entries = {modality: tokenizers[modality].entries for modality in MODALITIES}
    vocabulary = SidVocabulary(levels=settings.levels, entries=entries)
    vocabulary.save(work.path("vocabulary.json"))
    storage.write_json(work.path("health.json"), report)
    check(report, settings)
    return {"tokens": len(vocabulary), "health": report}


def _fit_sizes(
    vectors: dict[str, Vectors], valid: dict[str, Vectors], settings: TokenizerSettings
) -> dict[str, list[SemanticTokenizer]]:
    """Tokenizers of every size that a modality chooses from, ascending; those of all modalities run side by side."""
    sizes = {modality: settings.sizes_of(modality) for modality in vectors}
    fitted: dict[str, list[SemanticTokenizer]] = {modality: [] for modality in vectors}
    for turn in range(max(map(len, sizes.values()))):
        now = {modality: options[turn] for modality, options in sizes.items() if turn < len(options)}
        one_size = settings.model_copy(update={"entries": now})
        found = fit_modalities({modality: vectors[modality] for modality in now}, valid, one_size)
        for modality, tokenizer in found.items():
            fitted[modality].append(tokenizer)
    return fitted


def _vectors(items: str, modality: str, rows: Rows) -> Vectors:
    """Vectors of these items; of the image modality those with a picture."""
    vectors: Vectors = read_vectors(items, KIND[modality], rows)
    return vectors[np.abs(vectors).sum(1) > 0] if modality == "image" else vectors


def sid_count(tokenizers: str | None) -> int:
    """Number of SID tokens of a tokenizers step; 0 before there are any."""
    return 0 if tokenizers is None else len(SidVocabulary.load(storage.join(tokenizers, "vocabulary.json")))


def assign(modalities: Sequence[Modality], shuffle: int | None, embedding: EmbeddingSettings, work: Work) -> Summary:
    """Inputs: tokenizers, embed. `shuffle`: seed of the control that gives every item another one's SIDs."""
    items = storage.join(work.inputs["embed"], "items.lance")
    total = open_dataset(items).count_rows()
    make = functools.partial(_assigner, work.inputs["tokenizers"], modalities, items, shuffled(total, shuffle))
    count = write_rows(work.path("sids.lance"), encode_rows("sids", total, make, embedding))
    return {"items": count}


def shuffled(total: int, seed: int | None) -> Rows:
    """Whose SIDs each of the items has: its own, or those of one fixed permutation."""
    return np.arange(total) if seed is None else np.random.default_rng(seed).permutation(total)


class Assigner:
    """Unit vectors of each modality -> SID token numbers; a new item is encoded alone with the same result."""

    def __init__(self, tokenizers: str, modalities: Sequence[Modality]) -> None:
        self.tokenizers = load_all(storage.local_folder(tokenizers) / "tokenizers")
        self.vocabulary = SidVocabulary.load(storage.join(tokenizers, "vocabulary.json"))
        self.modalities = modalities

    def _slots(self, modalities: Sequence[str]) -> list[int]:
        """Positions of those of the modalities that are in use, among all 9."""
        used = set(modalities) & set(self.modalities)
        return [place for place, (modality, _) in enumerate(self.vocabulary.slots) if modality in used]

    def sids(self, text: Vectors, image: Vectors, item: Vectors) -> Any:
        """[n, 3 * modalities] int32; a row of zeros in `image` [n, d] is an item without a picture."""
        present = np.abs(image).sum(1) > 0
        vectors = {"text": text, "image": image, "item": item}
        codes = {modality: self.tokenizers[modality].encode(rows) for modality, rows in vectors.items()}
        return self.vocabulary.token_ids(codes, present)[:, self._slots(MODALITIES)]

    def picture_sids(self, image: Vectors, picture: Vectors) -> list[list[int]]:
        """The image and item tokens of a picture alone, [] where there is none."""
        present = np.abs(image).sum(1) > 0
        codes = {"image": self.tokenizers["image"].encode(image), "item": self.tokenizers["item"].encode(picture)}
        codes["text"] = np.zeros_like(codes["image"])
        ids = self.vocabulary.token_ids(codes, present)[:, self._slots(("image", "item"))]
        return [row.tolist() if ok else [] for row, ok in zip(ids, present, strict=True)]


def _assigner(tokenizers: str, modalities: Sequence[Modality], items: str, source: Rows) -> Encoder:
    assigner = Assigner(tokenizers, modalities)

    def encode(rows: Any) -> pa.Table:
        distinct, back = np.unique(source[rows], return_inverse=True)
        text, image, item, picture = (
            read_vectors(items, name, distinct)[back] for name in ("text", "image", "vector", "picture")
        )
        columns = {
            "sids": pa.array(assigner.sids(text, image, item).tolist(), pa.list_(pa.int32())),
            "picture_sids": pa.array(assigner.picture_sids(image, picture), pa.list_(pa.int32())),
            "quantised": vector_column(assigner.tokenizers["item"].quantise(item).astype(np.float32)),
        }
        return pa.table(columns)

    return encode
