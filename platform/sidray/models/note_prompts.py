"""From notes to prompts of NoteLLM-2 (sections 2.2 and 3): token ids with one VISUAL where the picture stands.

prompter = NotePrompter(tokenizer, text_settings, note_settings, ["topic", "content"], img_emb=49152)
prompter.notes([{"title": "Soup", "content": "..."}], pictures=[True], style="micl")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from sidray.errors import UserError
from sidray.models.mlrm import VISUAL
from sidray.models.note_settings import NoteSettings, PromptStyle
from sidray.models.prompts import Ids, token_ids
from sidray.models.settings import TextSettings

Note = Mapping[str, Any]  # title and text columns
MIN_TEXT = 8  # tokens of a note's text that a prompt must have room for
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"  # kana, han, hangul
_WORD = re.compile(f"[{_CJK}]|[^\\s{_CJK}]+")


def first_words(text: str, limit: int) -> str:
    """The text up to its `limit`-th word; a character of Chinese, Japanese or Korean counts as one."""
    for count, word in enumerate(_WORD.finditer(text), 1):
        if count == limit:
            return text[: word.end()]
    return text


def note_text(note: Note, settings: NoteSettings, fields: Sequence[str]) -> str:
    """'title': t, 'topic': tp, 'content': ct: the title and the other fields that are not empty, each cut at its words.
    "" when all are."""
    parts = []
    for name in ("title", *fields):
        if value := (note.get(name) or "").strip():
            limit = settings.max_words.get(name)
            parts.append(f"'{name}': {first_words(value, limit) if limit else value}")
    return ", ".join(parts)


class NotePrompter:
    """A prompt is made of pieces that are tokenised apart: what surrounds a note is the same ids in all prompts."""

    def __init__(
        self, tokenizer: Any, text: TextSettings, note: NoteSettings, fields: Sequence[str], img_emb: int
    ) -> None:
        """`img_emb`: the id of <IMG_EMB>."""
        self.tokenizer = tokenizer
        self.max_tokens = text.max_tokens
        self.note = note
        self.fields = list(fields)
        self.img_emb = img_emb
        pieces = [note.opening + "{'image': ", ", ", "}" + note.instruction, '". ', note.opening + "{"]
        self._image, self._comma, self._end, self._quote, self._open = token_ids(self.tokenizer, pieces)
        self._room = self._checked_room()

    def _checked_room(self) -> int:
        """Tokens of a note's text at most: in every style what the longest leaves, so that all methods read the same.
        UserError when there are none: every note's text would be lost in silence."""
        around = max(len(self._before(style)) for style in get_args(PromptStyle)) + len(self._end)
        if self.note.reads_text and self.max_tokens < around + MIN_TEXT:
            raise UserError(
                f"model.text.max_tokens={self.max_tokens} leaves a note no room: its prompt alone has {around} tokens",
                f"set it to at least {around + MIN_TEXT}",
            )
        return self.max_tokens - around

    def notes(self, notes: Sequence[Note], pictures: Sequence[bool], style: PromptStyle) -> list[Ids]:
        """The prompts. A note without a picture reads as in style "text", one without text as in style "image"."""
        bodies = token_ids(self.tokenizer, [note_text(note, self.note, self.fields) for note in notes])
        out = []
        for body, picture in zip(bodies, pictures, strict=True):
            own = style
            if own in ("basic", "micl") and not (picture and body):
                own = "image" if picture else "text"
            out.append(self._prompt(own, body))
        return out

    def _prompt(self, style: PromptStyle, body: Ids) -> Ids:
        """At most `max_tokens` long; the note's text is cut, never what surrounds it."""
        return [*self._before(style), *([] if style == "image" else body[: self._room]), *self._end]

    def _before(self, style: PromptStyle) -> Ids:
        """What stands before the note's text."""
        visual = [*self._image, VISUAL]
        return {
            "micl": [*visual, *self._end, self.img_emb, *self._quote, *self._open],
            "basic": [*visual, *self._comma],
            "text": self._open,
            "image": visual,
        }[style]
