"""Related notes close to each other: NoteLLM-2's losses, equations (1), (8) and (9), and Omni-Retrieval beside them.

(9) is a stage of two tasks: {note2note: 0.9, note2note_visual: 0.1} is alpha = 9. A note's negatives are all other
notes of the global batch but those that train relates it to (the paper's batches of 1.1 million notes hold none).
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from sidray.tasks.base import Metrics, Task
from sidray.tasks.losses import info_nce, recalls
from sidray.tasks.note_views import NoteViews
from sidray.tasks.views import ItemKind


class Note2Note(Task[NoteViews]):
    """L^m, (1) with the multimodal n_m."""

    name = "note2note"
    rows = "pairs"
    contrastive = True

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({"note", "related"})

    def vectors(self, views: NoteViews) -> tuple[Tensor, Tensor]:
        """[2b, dimension], and [2b] bool: the notes that take part."""
        notes = views.notes[1]
        return notes, torch.ones(len(notes), dtype=torch.bool, device=notes.device)

    def loss(self, views: NoteViews) -> tuple[Tensor, Metrics]:
        notes, valid = self.vectors(views)
        loss, better = info_nce(notes, notes, views.tau, views.false_negatives, valid, views.partners)
        return loss, recalls(better, valid.float())


class Note2NoteVisual(Note2Note):
    """L^v, (8): the same with n_v, over the pairs whose notes both have a picture. Needs mICL."""

    name = "note2note_visual"
    selects = False  # n_v serves nobody

    def vectors(self, views: NoteViews) -> tuple[Tensor, Tensor]:
        notes = views.notes[0]
        assert notes is not None
        return notes, views.pictured


class CrossModal(Task[NoteViews]):
    """Omni-Retrieval (CommerceMM): a note as image, text or both against its related note as image, text or both; the
    mean of the nine losses."""

    name = "omni"
    rows = "pairs"
    contrastive = True

    def columns(self, item_kind: ItemKind) -> frozenset[str]:
        return frozenset({"note", "note_text", "note_image", "related"})

    def loss(self, views: NoteViews) -> tuple[Tensor, Metrics]:
        everyone = torch.ones_like(views.pictured)
        text, image = views.compress("note_text")[1], views.compress("note_image")[1]
        shown = {"note": (views.notes[1], everyone), "text": (text, everyone), "image": (image, views.pictured)}
        losses = []
        metrics: Metrics = {}
        for (first, (anchors, one)), (second, (candidates, two)) in product(shown.items(), repeat=2):
            valid = one & two
            loss, better = info_nce(anchors, candidates, views.tau, views.false_negatives, valid, views.partners)
            losses.append(loss)
            if first == second == "note":
                metrics = recalls(better, valid.float())
        return torch.stack(losses).mean(), metrics
