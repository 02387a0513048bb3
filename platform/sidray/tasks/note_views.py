"""What a batch of pairs looks like from the tasks' side: every note compressed once, whichever losses share it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sidray.models.mlrm import Mlrm
from sidray.models.note_inputs import note_input
from sidray.tasks.losses import gather

Batch = Mapping[str, Tensor]
Compressed = tuple[Tensor | None, Tensor]


class NoteViews:
    """2b notes: the items of b pairs, then their related items. `chunk`: see tasks.views."""

    def __init__(self, model: Mlrm, batch: Batch, chunk: int = 0) -> None:
        self.model = model
        self.batch = batch
        self.chunk = chunk

    def compress(self, column: str) -> Compressed:
        """n^_v and n^_m of all notes, projected: [2b, dimension] each."""
        inputs = note_input(self.batch, column)
        if not self.chunk or len(inputs) <= self.chunk:
            return cast(Compressed, self.model(inputs))
        chunks = [inputs[slice(start, start + self.chunk)] for start in range(0, len(inputs), self.chunk)]
        if torch.is_grad_enabled():
            parts = [checkpoint(self.model, chunk, use_reentrant=False) for chunk in chunks]
        else:
            parts = [self.model(chunk) for chunk in chunks]
        visual = None if parts[0][0] is None else torch.cat([part[0] for part in parts])
        return visual, torch.cat([part[1] for part in parts])

    @cached_property
    def notes(self) -> Compressed:
        return self.compress("note")

    @cached_property
    def tau(self) -> Tensor:
        """exp(-tau) of (1)."""
        return cast(Tensor, self.model.temperature())

    @cached_property
    def partners(self) -> Tensor:
        """Row of each note's related note: [2b]."""
        b = len(self.batch["item_row"]) // 2
        rows = torch.arange(2 * b, device=self.batch["item_row"].device)
        return (rows + b) % (2 * b)

    @cached_property
    def pictured(self) -> Tensor:
        """[2b] bool: both notes of the pair have a picture."""
        present = self.batch["image.present"]
        return present & present[self.partners]

    @cached_property
    def false_negatives(self) -> Tensor:
        """[2b, world * 2b] bool: the note itself and its related note, wherever they stand, and all that train relates
        it to. (InfoNCE keeps each note's own positive.)"""
        own, known = self.batch["item_row"], self.batch["related"]  # known ascending, padded with the largest int64
        everyone = gather(own)
        candidates = everyone.expand(len(known), -1).contiguous()  # [2b, world * 2b]
        at = torch.searchsorted(known.contiguous(), candidates).clamp(max=known.shape[1] - 1)
        same = (own[:, None] == everyone) | (own[self.partners][:, None] == everyone)
        return (known.gather(1, at) == candidates) | same
