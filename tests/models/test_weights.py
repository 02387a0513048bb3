"""The tokenizer that random weights get."""

from __future__ import annotations

from pathlib import Path

from sidray.models.prompts import load_tokenizer
from sidray.models.weights import train_tokenizer


def test_a_trained_tokenizer_reads_case_and_wide_letters_alike(tmp_path: Path) -> None:
    train_tokenizer(["Title: Hot Soup", "Query: soup", "Title: 牛肉 Ｓｏｕｐ"], 400, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    lower, title, wide = (tokenizer(text)["input_ids"] for text in ("hot soup", "Hot SOUP", "ｈｏｔ soup"))
    assert lower == title == wide
    assert tokenizer.decode(tokenizer("牛肉")["input_ids"]) == "牛肉"
    assert tokenizer.eos_token_id is not None
