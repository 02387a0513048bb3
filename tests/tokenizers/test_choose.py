"""Codebook sizes by validation recall: the rule by hand, and the recall against brute force."""

from __future__ import annotations

from typing import Any, cast

import pyarrow as pa
import pytest

from sidray.config import build
from sidray.errors import UserError
from sidray.tokenizers.choose import ValidationRecall, choose, smallest_sufficient
from sidray.tokenizers.rkmeans import RkMeansTokenizer
from sidray.tokenizers.settings import TokenizerSettings


def sized(entries: int) -> RkMeansTokenizer:
    return RkMeansTokenizer("item", TokenizerSettings(kind="rkmeans", entries=entries))


def test_the_smallest_size_that_loses_at_most_one_percent() -> None:
    assert smallest_sufficient({8: 0.30, 16: 0.396, 32: 0.40, 64: 0.399}) == 16
    assert smallest_sufficient({8: 0.30, 16: 0.395, 32: 0.40}) == 32
    assert smallest_sufficient({8: 0.0, 16: 0.0}) == 8


def test_only_a_modality_with_a_choice_is_scored() -> None:
    asked = []

    def score(tokenizer: RkMeansTokenizer) -> float:
        asked.append((tokenizer.modality, tokenizer.entries))
        return {8: 0.2, 16: 0.4}[tokenizer.entries]

    sizes = choose({"item": [sized(8), sized(16)], "text": [sized(4)]}, score)
    assert (sizes.chosen["item"].entries, sizes.chosen["text"].entries) == (16, 4)
    assert sizes.recalls == {"item": {8: 0.2, 16: 0.4}}
    assert asked == [("item", 8), ("item", 16)]


def test_sizes_by_modality_are_sorted_and_distinct() -> None:
    settings = build(TokenizerSettings, {"entries": {"text": 32, "image": [64, 16, 64], "item": [32]}}, "tokenizer")
    assert [settings.sizes_of(modality) for modality in ("text", "image", "item")] == [[32], [16, 64], [32]]


def test_an_empty_list_of_sizes_is_refused() -> None:
    with pytest.raises(UserError, match="at least 1 item"):
        build(TokenizerSettings, {"entries": []}, "tokenizer")


def test_several_sizes_are_no_answer_where_one_is_needed() -> None:
    with pytest.raises(UserError, match=r"several sizes for 'item': \[8, 16\]"):
        TokenizerSettings(entries=[16, 8]).entries_of("item")


def test_a_choice_without_validation_clicks_is_refused() -> None:
    class NoClicks:
        def clicks(self, split: str) -> pa.Table:
            return pa.table({"item_row": pa.array([], pa.int64())})

    with pytest.raises(UserError, match="no validation clicks"):
        ValidationRecall(cast(Any, NoClicks()), "nowhere")(sized(8))
