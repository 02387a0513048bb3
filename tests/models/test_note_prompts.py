"""Prompts of NoteLLM-2 (sections 2.2 and 3): what stands where, what is cut, what a note without a part reads as."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidray.errors import UserError
from sidray.models.mlrm import VISUAL
from sidray.models.note_prompts import NotePrompter, first_words, note_text
from sidray.models.note_settings import NoteSettings
from sidray.models.settings import TextSettings

IMG_EMB = 100_000
NOTE = {"title": "Soup", "topic": "food", "content": "hot and sour"}


def characters(texts: list[str], add_special_tokens: bool) -> dict[str, Any]:
    """A tokenizer whose tokens are characters."""
    assert add_special_tokens is False
    return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def prompter(max_tokens: int = 500, **note: Any) -> NotePrompter:
    return NotePrompter(
        characters, TextSettings(max_tokens=max_tokens), NoteSettings(**note), ["topic", "content"], IMG_EMB
    )


def shown(ids: list[int]) -> str:
    return "".join({VISUAL: "<IMG>", IMG_EMB: "<IMG_EMB>"}.get(i) or chr(i) for i in ids)


def one(style: Any, note: dict[str, Any] = NOTE, picture: bool = True, **settings: Any) -> str:
    return shown(prompter(**settings).notes([note], [picture], style)[0])


TEXT = """Note content: {'title': Soup, 'topic': food, 'content': hot and sour}. Compress this note into one word:\""""
IMAGE = """Note content: {'image': <IMG>}. Compress this note into one word:\""""


def test_the_prompts_are_the_papers() -> None:
    basic = """Note content: {'image': <IMG>, 'title': Soup, 'topic': food, 'content': hot and sour}. """
    assert one("basic") == basic + """Compress this note into one word:\""""
    assert one("micl") == IMAGE + '<IMG_EMB>". ' + TEXT
    assert one("text") == TEXT
    assert one("image") == IMAGE


@pytest.mark.parametrize("style", ["basic", "micl"])
def test_a_note_that_lacks_a_part_reads_as_what_it_has(style: Any) -> None:
    assert one(style, picture=False) == TEXT
    assert one(style, note={"title": "", "content": None}) == IMAGE


@pytest.mark.parametrize("style", ["micl", "basic", "text"])
def test_only_the_text_is_cut_and_by_as_much_in_every_style(style: Any) -> None:
    """118 tokens stand around it in the longest, mICL's."""
    whole = "'title': Soup, 'topic': food, 'content': hot and sour"
    assert one(style, max_tokens=118 + len(whole)) == one(style)
    assert one(style, max_tokens=118 + len(whole) - 5) == one(style).replace("hot and sour", "hot and")


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"max_tokens=99 leaves a note no room: its prompt alone has 118 tokens(.|\n)*126"
    ):
        prompter(99)
    assert len(prompter(126).notes([NOTE], [True], "micl")[0]) == 126


def test_each_field_is_cut_at_its_words() -> None:
    settings = NoteSettings(max_words={"title": 2, "content": 1})
    text = note_text({"title": " a b c ", "content": "d e", "topic": ""}, settings, ["topic", "content"])
    assert text == "'title': a b, 'content': d"


def test_words_of_chinese_are_characters() -> None:
    assert first_words("牛肉面 noodle soup 好吃", 4) == "牛肉面 noodle"
    assert first_words("牛肉面", 2) == "牛肉"
    assert first_words("a  b", 5) == "a  b"


@given(st.text(max_size=40), st.integers(1, 6))
def test_a_cut_text_begins_the_whole_and_cutting_again_changes_nothing(text: str, limit: int) -> None:
    cut = first_words(text, limit)
    assert text.startswith(cut)
    assert first_words(cut, limit) == cut


def test_what_cannot_be_is_refused() -> None:
    for wrong in (
        {"micl": True, "early": False},
        {"micl": False, "inputs": "text"},
        {"micl": False, "early": False, "late": False},
        {"micl": False, "inputs": "image", "early": False, "late": True},
    ):
        with pytest.raises(ValueError, match="early"):
            NoteSettings(**wrong)  # type: ignore[arg-type]
