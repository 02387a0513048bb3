"""A step's key follows from what its result depends on, and from nothing else."""

from __future__ import annotations

import pytest

from sidray.errors import UserError
from sidray.graph import build_graph
from sidray.recipe import load_recipe


def keys(*overrides: str, recipe: str = "smgr-hm") -> dict[str, str]:
    loaded, _, _ = load_recipe(recipe, ["data.folder=x", *overrides])
    return {role: step.key for role, step in build_graph(loaded.with_seeds()[0]).steps.items()}


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
        ("embedding.precision=bf16", ["text-cache", "pretrained", "embed"], ["image-cache", "text-weights"]),
    ],
)
def test_what_a_step_depends_on(override: str, changed: list[str], kept: list[str]) -> None:
    before, after = keys(), keys(override)
    assert [role for role in changed if after[role] == before[role]] == []
    assert [role for role in kept if after[role] != before[role]] == []


@pytest.mark.parametrize(
    ("override", "changed", "kept"),
    [
        (
            "model.note.connector.queries=8",
            ["stage-note2note", "embed"],
            ["note-cache-micl", "grid-cache", "zero-shot"],
        ),
        ("model.note.max_words={title: 5}", ["note-cache-micl", "note-cache-text", "zero-shot"], ["grid-cache"]),
        ("model.note.late=false", ["stage-note2note", "given-text"], ["note-cache-micl", "zero-shot", "catalogue"]),
        ("model.text.pooling=mean", ["stage-note2note", "zero-shot"], ["note-cache-micl", "text-weights"]),
        ("embedding.precision=fp32", ["note-cache-micl", "embed", "zero-shot"], ["grid-cache", "text-weights"]),
        ("seeds=[7]", ["stage-note2note", "index"], ["note-cache-micl", "grid-cache", "text-weights", "image-weights"]),
        ("controls.shuffle_images=1", ["stage-note2note", "zero-shot"], ["grid-cache", "note-cache-micl"]),
        ("embedding.batch_size=7", [], ["stage-note2note", "note-cache-micl", "index"]),
        ("evaluation.saliency_notes=9", [], ["stage-note2note", "embed"]),
    ],
)
def test_what_a_step_on_pairs_depends_on(override: str, changed: list[str], kept: list[str]) -> None:
    before, after = keys(recipe="notellm2-hm"), keys(override, recipe="notellm2-hm")
    assert [role for role in changed if after[role] == before[role]] == []
    assert [role for role in kept if after[role] != before[role]] == []


def test_the_methods_of_table_4_share_what_they_have_in_common() -> None:
    recipe, variants, _ = load_recipe("notellm2-hm", ["data.folder=x"])
    graphs = {label: build_graph(each) for label, each in {recipe.label: recipe, **variants}.items()}
    assert len({graph["catalogue"].key for graph in graphs.values()}) == 1
    assert len({graph["grid-cache"].key for graph in graphs.values() if "grid-cache" in graph}) == 1
    assert graphs["NoteLLM-2"]["note-cache-micl"].key == graphs["mICL"]["note-cache-micl"].key
    assert graphs["basic method"]["note-cache-basic"].key == graphs["Omni-Retrieval"]["note-cache-basic"].key
    assert graphs["text LM"]["note-cache-text"].key == graphs["only late fusion"]["note-cache-text"].key
    assert "grid-cache" not in graphs["text LM"]
    assert not any(role.startswith("note-cache") for role in graphs["image encoder"].steps if role != "note-cache-text")
    assert len({graph["stage-note2note"].key for graph in graphs.values()}) == len(graphs)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sid_stages=[{name: s, tasks: {doc2docid: 1}}]", "sid_stages need towers"),
        ("stages=[{name: s, tasks: {query2item: 1}}]", "a model with model.note has note2note"),
        ("stages=[{name: s, tasks: {note2note: 1, query2item: 1}}]", "cannot share a stage with tasks on pairs"),
        ("model.note.micl=false", "note2note_visual needs model.note.micl"),
        ("model.note.early=false", "micl compresses the picture inside the LM"),
        ("model.image.weights=none", "note looks at pictures, and image.weights is none"),
        ("seeds=[1, 1]", "names one twice"),
    ],
)
def test_recipes_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("notellm2-hm", ["data.folder=x", override])


def test_towers_do_not_learn_from_pairs() -> None:
    with pytest.raises(UserError, match=r"a model without model\.note has query2item"):
        load_recipe("smgr-hm", ["data.folder=x", "stages=[{name: s, tasks: {note2note: 1}}]"])
