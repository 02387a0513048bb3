"""From notes to prompts of NoteLLM-2 (sections 2.2 and 3): token ids with one VISUAL where the picture stands.

prompter = NotePrompter(tokenizer, text_settings, note_settings, ["topic", "content"], img_emb=49152)
prompter.notes([{"title": "Soup", "content": "..."}], pictures=[True], style="micl")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sidray.models.mlrm import VISUAL
from sidray.models.note_settings import NoteSettings, PromptStyle
from sidray.models.settings import TextSettings

Ids = list[int]
Note = Mapping[str, Any]  # title and text columns
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
        self._image, self._comma, self._end, self._quote, self._open = self._ids(pieces)

    def _ids(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def notes(self, notes: Sequence[Note], pictures: Sequence[bool], style: PromptStyle) -> list[Ids]:
        """The prompts. A note without a picture reads as in style "text", one without text as in style "image"."""
        bodies = self._ids([note_text(note, self.note, self.fields) for note in notes])
        out = []
        for body, picture in zip(bodies, pictures, strict=True):
            own = style
            if own in ("basic", "micl") and not (picture and body):
                own = "image" if picture else "text"
            out.append(self._prompt(own, body))
        return out

    def _prompt(self, style: PromptStyle, body: Ids) -> Ids:
        """At most `max_tokens` long; the note's text is cut, never what surrounds it."""
        visual = [*self._image, VISUAL]
        before = {
            "micl": [*visual, *self._end, self.img_emb, *self._quote, *self._open],
            "basic": [*visual, *self._comma],
            "text": self._open,
            "image": visual,
        }[style]
        room = max(0, self.max_tokens - len(before) - len(self._end))
        return [*before, *([] if style == "image" else body[:room]), *self._end]
