"""The embed step: from the recipe's words to an EmbedJob."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from sidray import storage
from sidray.embedding.embed import EmbedJob, embed
from sidray.models.sources import sources_of
from sidray.steps import Summary, Work
from sidray.tokenizers.run import sid_count

if TYPE_CHECKING:
    from sidray.recipe import Recipe


def embed_step(item: str, recipe: Recipe, work: Work) -> Summary:
    """Inputs: as a stage's, and towers."""
    job = EmbedJob(
        sources=sources_of(work.inputs, recipe.controls.shuffle_images),
        model=recipe.model,
        sid_count=sid_count(work.inputs.get("tokenizers")),
        towers=storage.join(work.inputs["towers"], "towers.safetensors"),
        item=cast(Literal["fused", "text", "sids"], item),
        random_images=recipe.controls.random_images,
        without_images=recipe.controls.without_images,
        own_pictures=recipe.tokenizer.of_pictures,
        precision=recipe.embedding.precision,
    )
    return embed(job, recipe.embedding, work)
