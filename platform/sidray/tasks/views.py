"""What a batch looks like from the tasks' side: representations computed once, whichever tasks share them.

With `chunk` > 0 each encoder runs on so many rows at a time under activation checkpointing: only the representations
stay in memory and each chunk is recomputed in its own backward: gradient caching (GradCache) in autograd's words.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidray.models.mlrm import NoteInput
from sidray.models.towers import Batch, ImageInput, TextInput, Towers
from sidray.tasks.losses import among, gather

ItemKind = Literal["fused", "text", "sids"]
Input = TypeVar("Input", TextInput, ImageInput, NoteInput)
T = TypeVar("T")


def in_chunks(encode: Callable[[Input], T], inputs: Input, chunk: int) -> list[T]:
    """What `encode` says of at most `chunk` rows at a time (0: of all at once)."""
    if not chunk or len(inputs) <= chunk:
        return [encode(inputs)]
    parts = [inputs[slice(start, start + chunk)] for start in range(0, len(inputs), chunk)]
    if not torch.is_grad_enabled():
        return [encode(part) for part in parts]
    return [checkpoint(encode, part, use_reentrant=False) for part in parts]


class Views:
    """Lazy representations of one batch. `item_kind` says what an item's vector is made of in this stage."""

    def __init__(self, towers: Towers, batch: Batch, item_kind: ItemKind, chunk: int = 0) -> None:
        self.towers = towers
        self.batch = batch
        self.item_kind = item_kind
        self.chunk = chunk

    def _encode(self, encode: Callable[[Input], Tensor], inputs: Input) -> Tensor:
        return torch.cat(in_chunks(encode, inputs, self.chunk))

    def __len__(self) -> int:
        return len(self.batch["item_row"])

    def hidden(self, name: str) -> Tensor:
        """The last hidden states of whole sequences, [b, T, d]."""
        return self._encode(self.towers.hidden, TextInput.of_batch(self.batch, name))

    def encode_text(self, name: str) -> Tensor:
        return self._encode(self.towers.encode_text, TextInput.of_batch(self.batch, name))

    @cached_property
    def h_query(self) -> Tensor:
        """LLM(q): [b, d]."""
        return self.encode_text("query")

    @cached_property
    def h_text(self) -> Tensor:
        """LLM(i_text): [b, d]."""
        return self.encode_text("text")

    @cached_property
    def h_image(self) -> Tensor:
        """ViT(i_image), projected: [b, d]; zeros without a picture."""
        return self._encode(self.towers.encode_image, ImageInput.of_batch(self.batch))

    @cached_property
    def query(self) -> Tensor:
        """MLP_Q(h_q): [b, dimension]."""
        return self.towers.query(self.h_query)

    @cached_property
    def item(self) -> Tensor:
        """The item's vector [b, dimension]: fused (6), of text alone, or of text + SIDs (10)."""
        if self.item_kind == "fused":
            return self.towers.item(self.h_text, self.h_image)
        if self.item_kind == "text":
            return self.towers.item(self.h_text)
        return self.towers.item(self.encode_text("item"))

    def same(self, column: str) -> Tensor:
        """[b, world * b] bool: candidates that carry the same number in `column` as the anchor's own positive."""
        own = self.batch[column]
        return own[:, None] == gather(own)[None, :]

    @cached_property
    def clicked_texts(self) -> Tensor:
        """[b, world * b] bool: candidates with the text of an item that the anchor's query led to in train."""
        return among(gather(self.batch["text_group"]), self.batch["query.clicked_texts"])

    @cached_property
    def clicked(self) -> Tensor:
        """[b, world * b] bool: candidates that the anchor's query led to in train (and the item itself)."""
        return among(gather(self.batch["item_row"]), self.batch["query.clicked"]) | self.same("item_row")
