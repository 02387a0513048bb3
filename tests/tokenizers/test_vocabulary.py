"""The numbering of the SID tokens: order and count of the paper, and the strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.errors import UserError
from sidray.tokenizers.vocabulary import SidVocabulary

NAMES = ("text", "image", "item", "audio")


def test_the_paper_has_288_tokens_and_ours_one_more() -> None:
    vocabulary = SidVocabulary()
    tokens = vocabulary.tokens
    assert len(vocabulary) == len(tokens) == len(set(tokens)) == 289
    assert tokens[:2] == ["<text_1_0>", "<text_1_1>"]
    assert tokens[31:33] == ["<text_1_31>", "<text_2_0>"]
    assert tokens[96] == "<image_1_0>"
    assert tokens[192] == "<item_1_0>"
    assert tokens[287:] == ["<item_3_31>", "<img_none>"]


def test_ids_of_two_items_by_hand() -> None:
    codes = {
        "text": np.array([[0, 1, 31], [5, 6, 7]]),
        "image": np.array([[2, 3, 4], [-1, 99, 0]]),  # the second has no picture: not read
        "item": np.array([[31, 0, 8], [9, 10, 11]]),
    }
    ids = SidVocabulary().token_ids(codes, np.array([True, False]))
    assert ids.dtype == np.int32
    assert ids.tolist() == [
        [0, 33, 95, 98, 131, 164, 223, 224, 264],
        [5, 38, 71, 288, 288, 288, 201, 234, 267],
    ]
    tokens = SidVocabulary().tokens
    assert [tokens[i] for i in ids[0, 3:6]] == ["<image_1_2>", "<image_2_3>", "<image_3_4>"]


@st.composite
def vocabularies_and_codes(draw: Any) -> tuple[SidVocabulary, dict[str, np.ndarray], np.ndarray]:
    modalities = draw(st.permutations(NAMES).map(lambda names: tuple(names[: 1 + len(names) // 2])))
    levels = draw(st.integers(1, 4))
    entries = {modality: draw(st.integers(1, 9)) for modality in modalities}
    count = draw(st.integers(0, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes = {m: rng.integers(0, entries[m], (count, levels)).astype(np.int32) for m in modalities}
    has_image = rng.random(count) < 0.6
    return SidVocabulary(modalities=modalities, levels=levels, entries=entries), codes, has_image


@given(vocabularies_and_codes())
@settings(max_examples=100)
def test_every_token_says_its_modality_level_and_code(
    case: tuple[SidVocabulary, dict[str, np.ndarray], np.ndarray],
) -> None:
    vocabulary, codes, has_image = case
    ids, tokens = vocabulary.token_ids(codes, has_image), vocabulary.tokens
    for row in range(len(ids)):
        for position, (modality, level) in enumerate(vocabulary.slots):
            plain = f"<{modality}_{level}_{codes[modality][row, level - 1]}>"
            wanted = plain if modality != "image" or has_image[row] else "<img_none>"
            assert tokens[ids[row, position]] == wanted


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        (np.array([[0, 32, 0]]), "code 32 on level 2 of row 0 is not below 32"),
        (np.array([[0, -1, 0]]), "code -1 on level 2 of row 0"),
        (np.array([[0, 1]]), r"shape \(1, 2\), not \(1, 3\)"),
    ],
)
def test_codes_that_do_not_fit(codes: np.ndarray, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        SidVocabulary(modalities=("text",)).token_ids({"text": codes}, np.array([True]))


def test_missing_modality() -> None:
    with pytest.raises(UserError, match="no image codes"):
        SidVocabulary().token_ids({"text": np.zeros((1, 3), np.int32)}, np.array([True]))


def test_save_and_load(tmp_path: Path) -> None:
    vocabulary = SidVocabulary(modalities=("image", "item"), levels=2, entries={"image": 4, "item": 8})
    vocabulary.save(tmp_path / "sids" / "vocabulary.json")
    assert SidVocabulary.load(tmp_path / "sids" / "vocabulary.json") == vocabulary
    (tmp_path / "broken.json").write_text('{"levels": 0}')
    for name in ("broken.json", "absent.json"):
        with pytest.raises(UserError, match=name):
            SidVocabulary.load(tmp_path / name)


def test_entries_must_cover_the_modalities() -> None:
    with pytest.raises(ValueError, match="no number for image"):
        SidVocabulary(modalities=("image", "item"), entries={"item": 8})
    with pytest.raises(ValueError, match="must differ"):
        SidVocabulary(modalities=("item", "item"))
