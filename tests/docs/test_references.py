"""The generated halves of pages are what `make docs` would write now, and explain every key."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from docs import api_reference, recipe_reference
from docs.generated import with_end
from sidray.recipe import Recipe
from sidray.serving.routes import router

REMEDY = "run `make docs`"


@pytest.mark.parametrize("generator", [recipe_reference, api_reference], ids=["recipes", "serving-api"])
def test_the_page_is_what_make_docs_writes(generator: object) -> None:
    text = generator.PAGE.read_text()  # type: ignore[attr-defined]
    assert with_end(text, generator.reference()) == text, REMEDY  # type: ignore[attr-defined]


SECTIONS = dict(recipe_reference.sections(Recipe))


@pytest.mark.parametrize("section", SECTIONS.values(), ids=[path or "recipe" for path in SECTIONS])
def test_every_key_is_explained_in_few_words(section: type[BaseModel]) -> None:
    assert section.__doc__
    for name, field in section.model_fields.items():
        if recipe_reference._explains_itself(field):
            continue
        assert field.description, f"{section.__name__}.{name} has no string below it"
        assert field.description.endswith("."), f"{section.__name__}.{name}"
        assert len(field.description) <= 200, f"{section.__name__}.{name}"


def test_a_section_has_its_row_with_values_and_default() -> None:
    text = recipe_reference.reference()
    assert "| `limit` | integer >= 1 or `null` | `null` |" in text
    assert "| `max_words` | {text: integer > 0} | `{title: 20, content: 80}` |" in text
    assert "| `zero_stage` | `0`, `1`, `2`, `3` | `0` |" in text
    assert text.count("### `stages[]`") == 1


def test_every_route_and_error_has_its_place() -> None:
    text = api_reference.reference()
    for route in router.routes:
        for method in route.methods:  # type: ignore[attr-defined]
            assert f"### {method} {route.path}\n" in text  # type: ignore[attr-defined]
    for status in (400, 401, 404, 413, 415, 422, 429, 500, 503, 504):
        assert f"\n| {status} | " in text
    assert "| `k` | integer >= 1 <= 1000 | `10` |" in text
