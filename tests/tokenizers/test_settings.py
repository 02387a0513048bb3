"""The recipe's section: the paper's defaults, pyramids against the width of the vectors."""

from __future__ import annotations

import pytest

from sidray.config import build
from sidray.errors import UserError
from sidray.tokenizers.settings import TokenizerSettings


def test_defaults_are_the_papers() -> None:
    settings = TokenizerSettings()
    assert (settings.levels, settings.entries, settings.beta, settings.gamma) == (3, 32, 0.25, 0.25)


def test_automatic_pyramid_of_1024_is_the_papers() -> None:
    assert TokenizerSettings().widths("text", 1024) == [1024, 768, 512, 256]
    assert TokenizerSettings(hidden={"text": []}).widths("text", 64) == [64, 48, 32, 16]
    assert TokenizerSettings().widths("text", 2) == [2, 1, 1, 1]


def test_given_pyramid_starts_with_the_width() -> None:
    settings = TokenizerSettings(hidden={"item": [128, 64, 32]})
    assert settings.widths("item", 128) == [128, 64, 32]
    assert settings.widths("text", 8) == [8, 6, 4, 2]
    with pytest.raises(UserError, match=r"tokenizer\.hidden\.item starts with 128, its vectors have 64 dimensions"):
        settings.widths("item", 64)


def test_pyramid_without_a_layer_is_refused() -> None:
    with pytest.raises(UserError, match="no layer"):
        TokenizerSettings(hidden={"item": [64]}).widths("item", 64)


def test_entries_per_modality() -> None:
    settings = TokenizerSettings(entries={"text": 32, "item": 64})
    assert (settings.entries_of("text"), settings.entries_of("item")) == (32, 64)
    with pytest.raises(UserError, match=r"tokenizer\.entries has no number for 'image'"):
        settings.entries_of("image")


@pytest.mark.parametrize(
    "values", [{"entries": 1}, {"levels": 0}, {"min_utilisation": 1.5}, {"hidden": {"item": [8, 0]}}, {"kind": "vqvae"}]
)
def test_impossible_values_name_their_key(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(values))):
        build(TokenizerSettings, values, "a recipe")
