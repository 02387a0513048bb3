"""What a batch looks like from the tasks' side: representations computed once, whichever tasks share them.

With `chunk` > 0 each encoder runs on so many rows at a time under activation checkpointing: only the representations
stay in memory and each chunk is recomputed in its own backward: gradient caching (GradCache) in autograd's words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidray.models.towers import ImageInput, TextInput, Towers
from sidray.tasks.losses import gather

Batch = Mapping[str, Tensor]
ItemKind = Literal["fused", "text", "sids"]
Input = TypeVar("Input", TextInput, ImageInput)


def text_input(batch: Batch, name: str) -> TextInput:
    """The columns `name.ids`, `name.mask` and, above a cut, `name.states`."""
    return TextInput(batch[f"{name}.ids"], batch[f"{name}.mask"], batch.get(f"{name}.states"))


class Views:
    """Lazy representations of one batch. `item_kind` says what an item's vector is made of in this stage."""

    def __init__(self, towers: Towers, batch: Batch, item_kind: ItemKind, chunk: int = 0) -> None:
        self.towers = towers
        self.batch = batch
        self.item_kind = item_kind
        self.chunk = chunk

    def _encode(self, encode: Callable[[Input], Tensor], inputs: Input) -> Tensor:
        if not self.chunk or len(inputs) <= self.chunk:
            return encode(inputs)
        parts = [inputs[slice(start, start + self.chunk)] for start in range(0, len(inputs), self.chunk)]
        if not torch.is_grad_enabled():
            return torch.cat([encode(part) for part in parts])
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])

    def encode_text(self, name: str) -> Tensor:
        return self._encode(self.towers.encode_text, text_input(self.batch, name))

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
        image = ImageInput(self.batch["image"], self.batch["image.present"])
        return self._encode(self.towers.encode_image, image)

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
    def clicked(self) -> Tensor:
        """[b, world * b] bool: candidates that the anchor's query led to in train (and the item itself)."""
        known = self.batch["query.clicked"]  # [b, k], ascending, padded with the largest int64
        candidates = gather(self.batch["item_row"]).expand(len(known), -1).contiguous()  # [b, world * b]
        at = torch.searchsorted(known.contiguous(), candidates).clamp(max=known.shape[1] - 1)
        return (known.gather(1, at) == candidates) | self.same("item_row")
