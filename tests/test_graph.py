"""A step's key follows from what its result depends on, and from nothing else."""

from __future__ import annotations

import pytest

from sidray.graph import build_graph
from sidray.recipe import load_recipe


def keys(*overrides: str) -> dict[str, str]:
    recipe, _, _ = load_recipe("smgr-hm", ["data.folder=x", *overrides])
    return {role: step.key for role, step in build_graph(recipe).steps.items()}


@pytest.mark.parametrize(
    ("override", "changed", "kept"),
    [
        ("model.image.pool=last", ["image-weights", "image-cache", "stage-query2text"], ["text-cache", "text-weights"]),
        ("model.image.weights=efficientnet-lite2", ["image-weights", "image-cache"], ["text-cache", "text-weights"]),
        ("model.text.layers=7", ["text-weights", "text-cache", "stage-query2text"], ["image-cache"]),
        ("model.text.max_tokens=20", ["text-cache", "stage-query2text"], ["text-weights", "image-cache"]),
        ("model.text.pooling=eos", ["stage-query2text"], ["text-cache", "text-weights"]),
        ("training.precision=fp32", ["stage-query2text"], ["image-cache", "text-cache"]),
        ("tokenizer.token_start=random", ["stage-doc2docid", "index"], ["tokenizers", "sids", "stage-query2item"]),
        ("tokenizer.gamma=0.5", ["tokenizers", "index"], ["stage-query2item", "pretrained"]),
        ("tokenizer.epochs=1", ["tokenizers", "sids", "stage-doc2docid"], ["stage-query2item", "negatives"]),
        ("training.workers=2", [], ["stage-query2text", "index"]),
        ("controls.shuffle_images=1", ["stage-image2text", "sids", "index"], ["stage-query2text", "image-cache"]),
        ("embedding.batch_size=7", [], ["stage-query2text", "text-cache", "index"]),
    ],
)
def test_what_a_step_depends_on(override: str, changed: list[str], kept: list[str]) -> None:
    before, after = keys(), keys(override)
    assert [role for role in changed if after[role] == before[role]] == []
    assert [role for role in kept if after[role] != before[role]] == []
