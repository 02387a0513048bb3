"""The stage step: from the recipe's words to a StageJob. Consecutive stages run in one group of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidray import storage
from sidray.data.catalogue import Catalogue
from sidray.errors import UserError
from sidray.models.sources import sources_of
from sidray.steps import Chained, Summary, Work
from sidray.tokenizers.run import sid_count
from sidray.training.module import columns_of
from sidray.training.settings import StageSettings
from sidray.training.stage import run_stages
from sidray.training.worker import TOWERS, StageJob

if TYPE_CHECKING:
    from sidray.recipe import Recipe


@dataclass(frozen=True)
class StageRun(Chained):
    """Inputs: catalogue, text-weights and, as the recipe has them, image-weights, caches, tokenizers, sids, negatives,
    start (the stage whose towers this one continues)."""

    stage: StageSettings
    recipe: Recipe

    def together(self, runs: Sequence[StageRun], works: Sequence[Work]) -> list[Summary]:
        note = self.recipe.model.note
        looking = [run.stage.name for run in runs if ("image" in columns_of(run.stage) if note is None else note.looks)]
        if looking:
            _check_pictures(works[0].inputs["catalogue"], looking[0], _TEXT_ALONE if note is None else _NOTE_TEXT_ALONE)
        jobs = [run.job(work) for run, work in zip(runs, works, strict=True)]
        return run_stages(jobs, self.recipe.training)

    def job(self, work: Work) -> StageJob:
        start, controls = work.inputs.get("start"), self.recipe.controls
        return StageJob(
            stage=self.stage,
            training=self.recipe.training,
            model=self.recipe.model,
            sources=sources_of(work.inputs, controls.shuffle_images, controls.shuffle_pairs),
            sid_count=sid_count(work.inputs.get("tokenizers")),
            tokens=self.recipe.tokenizer,
            start=None if start is None else storage.join(start, TOWERS),
            output=work.output,
        )


_TEXT_ALONE = (
    "model.image.weights=none, one stage of query2item with `item: text`, sid_stages=[] (the variant dual-tower of the"
    " shipped recipes)"
)
_NOTE_TEXT_ALONE = "model.note={inputs: text, micl: false, early: false, late: false} (the variant text LM)"


def _check_pictures(catalogue: str, stage: str, remedy: str) -> None:
    """UserError when a stage reads pictures and no item of the catalogue has one."""
    if not Catalogue.open(catalogue).n_images:
        raise UserError(
            f"stage {stage} learns from pictures, and no item of the catalogue has one",
            f"fill the column image or image_uri of items; or train on text alone: {remedy}",
        )
