"""The stage step: from the recipe's words to a StageJob."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidray import storage
from sidray.models.fetch import sources_of
from sidray.steps import Summary, Work
from sidray.tokenizers.run import sid_count
from sidray.training.settings import StageSettings
from sidray.training.stage import run_stage
from sidray.training.worker import TOWERS, StageJob

if TYPE_CHECKING:
    from sidray.recipe import Recipe


def stage_step(stage: StageSettings, recipe: Recipe, work: Work) -> Summary:
    """Inputs: catalogue, text-weights and, as the recipe has them, image-weights, caches, tokenizers, sids, negatives,
    start (the stage whose towers this one continues)."""
    start = work.inputs.get("start")
    job = StageJob(
        stage=stage,
        training=recipe.training,
        model=recipe.model,
        sources=sources_of(work.inputs, recipe.controls.shuffle_images),
        sid_count=sid_count(work.inputs.get("tokenizers")),
        start=None if start is None else storage.join(start, TOWERS),
    )
    return run_stage(job, work)
