"""From catalogue rows to what the towers read: text segments, SIDs and pictures, composed into padded batches.

A text segment is the ids of an item's or a query's text and EOS, and above a cut the cached hidden states of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.datasets import open_dataset
from sidray.models.prompts import Prompter

NO_ROW = np.iinfo(np.int64).max
IN_MEMORY_BYTES = 128 * 2**20  # of cached image features that a process keeps

Ids = npt.NDArray[np.int64]
States = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Segment:
    """ids [n] ending in EOS; states [n, d] at the cut, or None where the towers embed ids themselves."""

    ids: Ids
    states: States | None = None

    def body(self) -> Segment:
        """Without EOS."""
        return Segment(self.ids[:-1], None if self.states is None else self.states[:-1])

    def end(self) -> Segment:
        """EOS alone."""
        return Segment(self.ids[-1:], None if self.states is None else self.states[-1:])


class TextSource(Protocol):
    """Segments of catalogue rows, tokenised on the spot or read from the cache of the frozen layers."""

    def items(self, rows: Rows) -> list[Segment]: ...
    def queries(self, query_ids: Rows, queries: Sequence[str]) -> list[Segment]: ...
    def empty(self) -> Segment: ...
    def groups(self, rows: Rows) -> Rows:
        """A number >= 0 for the text of each item row: equal for equal texts, as they are read."""


class RawTexts:
    """Tokenises on the spot."""

    def __init__(self, prompter: Prompter, catalogue: Catalogue) -> None:
        self.prompter = prompter
        self.catalogue = catalogue

    def items(self, rows: Rows) -> list[Segment]:
        texts = item_texts(self.catalogue.items(rows, ["title", *self.prompter.fields]), self.prompter)
        return ended(self.prompter, self.prompter.items(texts))

    def queries(self, query_ids: Rows, queries: Sequence[str]) -> list[Segment]:
        return ended(self.prompter, self.prompter.queries([self.prompter.query_text(query) for query in queries]))

    def empty(self) -> Segment:
        return ended(self.prompter, [[]])[0]

    def groups(self, rows: Rows) -> Rows:
        new = np.unique(rows[self._groups[rows] < 0])
        if len(new):
            self._groups[new] = text_groups(self.items(new))
        return self._groups[rows]

    @cached_property
    def _groups(self) -> Rows:
        """Of all item rows, -1 where nobody has asked."""
        return np.full(self.catalogue.n_items, -1, np.int64)


class StateCache:
    """Ids and hidden states at the cut, computed once per distinct text (embedding.cache)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @cached_property
    def _texts(self) -> Any:
        return open_dataset(storage.join(self.uri, "texts.lance"))

    def take(self, texts: Rows) -> list[Segment]:
        """The texts of these numbers, repetitions allowed."""
        distinct, back = np.unique(texts, return_inverse=True)
        table = self._texts.take(distinct, columns=["ids", "states"])
        segments = []
        for ids, states in zip(table["ids"].to_pylist(), table["states"], strict=True):
            flat = np.frombuffer(states.as_buffer(), np.float16)
            segments.append(Segment(np.asarray(ids, np.int64), flat.reshape(len(ids), -1)))
        return [segments[i] for i in back]

    def index(self, name: str) -> Rows:
        """The text of every row of `name`: items or queries."""
        table = open_dataset(storage.join(self.uri, f"{name}.lance")).to_table()
        return np.asarray(table["text"].to_numpy())


class CachedTexts:
    """Segments that the `text-cache` step computed."""

    def __init__(self, uri: str) -> None:
        self.cache = StateCache(uri)

    @cached_property
    def _index(self) -> Mapping[str, Rows]:
        return {name: self.cache.index(name) for name in ("items", "queries")}

    def items(self, rows: Rows) -> list[Segment]:
        return self.cache.take(self._index["items"][rows])

    def queries(self, query_ids: Rows, queries: Sequence[str]) -> list[Segment]:
        return self.cache.take(self._index["queries"][query_ids])

    def empty(self) -> Segment:
        return self.cache.take(np.zeros(1, np.int64))[0]

    def groups(self, rows: Rows) -> Rows:
        return self._index["items"][rows]


def item_texts(table: pa.Table, prompter: Prompter) -> list[str]:
    """The rendered prompts of item rows (title and the prompter's fields)."""
    return [prompter.item_text(row) for row in table.to_pylist()]


def text_groups(segments: Sequence[Segment]) -> Rows:
    """One number per distinct text (a 63-bit hash of the ids): [b] int64."""
    hashes = [hashlib.blake2b(segment.ids.tobytes(), digest_size=8).digest() for segment in segments]
    return np.frombuffer(b"".join(hashes), np.int64) & np.int64(2**63 - 1)


def ended(prompter: Prompter, sequences: Sequence[Sequence[int]]) -> list[Segment]:
    """Token ids as segments that end in EOS."""
    return [Segment(np.array([*ids, prompter.eos], np.int64)) for ids in sequences]


def sid_segment(ids: Ids, width: int | None) -> Segment:
    """SID tokens as a segment; their states are filled in by the towers."""
    return Segment(ids, None if width is None else np.zeros((len(ids), width), np.float16))


def batch_of(rows: Sequence[Sequence[Segment]], name: str, target: int | None = None) -> dict[str, Tensor]:
    """Concatenates each row's segments and pads on the right: `name.ids`, `name.mask`, `name.states` if cached.

    `target` numbers the segment of every row whose tokens are predicted: `name.target` [b, T] bool marks them."""
    lengths = np.array([sum(len(s.ids) for s in row) for row in rows])
    mask = np.arange(max(1, int(lengths.max(initial=0))))[None, :] < lengths[:, None]  # [b, T]
    flat = [segment for row in rows for segment in row]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([s.ids for s in flat])
    out = {f"{name}.ids": torch.from_numpy(ids), f"{name}.mask": torch.from_numpy(mask)}
    if flat and flat[0].states is not None:
        states = np.zeros((*mask.shape, flat[0].states.shape[1]), np.float16)
        states[mask] = np.concatenate([s.states for s in flat if s.states is not None])
        out[f"{name}.states"] = torch.from_numpy(states)
    if target is not None:
        marks = [np.full(len(s.ids), i == target % len(row)) for row in rows for i, s in enumerate(row)]
        marked = np.zeros(mask.shape, bool)
        marked[mask] = np.concatenate(marks)
        out[f"{name}.target"] = torch.from_numpy(marked)
    return out


class ImageSource:
    """Pictures of item rows: decoded pixels, or the features of the frozen trunk. `shuffle` permutes the pictures of
    the whole catalogue once (the control `shuffled-images`)."""

    def __init__(self, catalogue: Catalogue, size: int, cache: str | None, shuffle: int | None) -> None:
        self.catalogue = catalogue
        self.size = size
        self.cache = cache
        self.shuffle = shuffle

    @cached_property
    def _permutation(self) -> Rows | None:
        if self.shuffle is None:
            return None
        return np.random.default_rng(self.shuffle).permutation(self.catalogue.n_items)

    @cached_property
    def _features(self) -> Any:
        """The cached features: a small catalogue's whole table in memory, a large one's dataset on disk."""
        dataset = open_dataset(storage.join(str(self.cache), "features.lance"))
        bytes_per_row = 4 * dataset.schema.field("features").type.list_size
        if dataset.count_rows() * bytes_per_row > IN_MEMORY_BYTES:
            return dataset
        return dataset.to_table().combine_chunks()

    def source_rows(self, rows: Rows) -> Rows:
        """The rows whose pictures these items show."""
        return rows if self._permutation is None else self._permutation[rows]

    def __call__(self, rows: Rows) -> dict[str, Tensor]:
        """image (pixels uint8 [b, 3, S, S] or features [b, w]), image.present [b] bool, image_group [b] int64."""
        rows = self.source_rows(rows)
        if self.cache is None:
            table = self.catalogue.items(rows, ["image", "image_id"])
            values, present = pixels(table["image"].to_pylist(), self.size)
        else:
            table = self._features.take(rows)
            flat = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            values = torch.from_numpy(np.array(flat, np.float32).reshape(len(rows), -1))
            present = torch.from_numpy(table["image_id"].to_numpy() >= 0)
        group = torch.from_numpy(np.array(table["image_id"].to_numpy()))
        return {"image": values, "image.present": present, "image_group": group}


def of_groups(offsets: Rows, rows: Rows, groups: Rows) -> list[Rows]:
    """rows[offsets[g]:offsets[g + 1]] of each group g."""
    return [rows[offsets[group] : offsets[group + 1]] for group in groups]


def padded_rows(lists: Sequence[Rows]) -> Tensor:
    """Ascending numbers, padded with the largest int64: [b, k]; k >= 1."""
    out = np.full((len(lists), max(1, max(map(len, lists), default=0))), NO_ROW, np.int64)
    for i, numbers in enumerate(lists):
        out[i, : len(numbers)] = numbers
    return torch.from_numpy(out)


def pixels(images: Sequence[bytes | None], size: int) -> tuple[Tensor, Tensor]:
    """Encoded pictures (None = none) -> uint8 [b, 3, size, size], white where there is none, and present [b] bool."""
    from sidray.data.images import decode_rgb

    out = np.full((len(images), 3, size, size), 255, np.uint8)
    for row, data in enumerate(images):
        if data is not None:
            out[row] = decode_rgb(data, size)
    return torch.from_numpy(out), torch.tensor([data is not None for data in images])
