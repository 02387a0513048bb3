"""What a batch of pairs looks like from the tasks' side: every note compressed once, whichever losses share it."""

from __future__ import annotations

from functools import cached_property
from typing import cast

import torch
from torch import Tensor

from sidray.models.mlrm import Mlrm
from sidray.models.note_inputs import note_input
from sidray.models.towers import Batch
from sidray.tasks.losses import among, gather
from sidray.tasks.views import in_chunks

Compressed = tuple[Tensor | None, Tensor]


class NoteViews:
    """2b notes: the items of b pairs, then their related items. `chunk`: see tasks.views."""

    def __init__(self, model: Mlrm, batch: Batch, chunk: int = 0) -> None:
        self.model = model
        self.batch = batch
        self.chunk = chunk

    def compress(self, column: str) -> Compressed:
        """n^_v and n^_m of all notes, projected: [2b, dimension] each."""
        parts: list[Compressed] = in_chunks(self.model, note_input(self.batch, column), self.chunk)
        visual = [part[0] for part in parts if part[0] is not None]
        return torch.cat(visual) if visual else None, torch.cat([part[1] for part in parts])

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
        own = self.batch["item_row"]
        everyone = gather(own)
        same = (own[:, None] == everyone) | (own[self.partners][:, None] == everyone)
        return among(everyone, self.batch["related"]) | same
