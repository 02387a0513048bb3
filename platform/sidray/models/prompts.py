"""From rows to token sequences: templates, truncation, EOS.

    prompter = Prompter(tokenizer, text, prompts, fields);  prompter.queries([prompter.query_text("soup")])  # [ids]

A sequence is built from segments: the text of an item or a query, the SID tokens, EOS. Tokenizers of causal LMs do not
append EOS, so it is appended here; truncation cuts the fields from the end, never EOS, SIDs or the query's template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidray.models.settings import Prompts, TextSettings

Ids = list[int]


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer saved beside the text weights."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def item_prompt(row: Mapping[str, str | None], prompts: Prompts, fields: Sequence[str]) -> str:
    """The item's text: title and its non-empty fields in the recipe's order. "" when the title is empty."""
    title = row.get("title")
    if not title:
        return ""
    parts = [prompts.field.format(field=name, value=row[name]) for name in fields if row.get(name)]
    return prompts.title.format(title=title) + "".join(parts)


def query_prompt(query: str, prompts: Prompts) -> str:
    return prompts.query.format(query=query)


class Prompter:
    """Renders queries and items into token ids without EOS, at most `max_tokens` - 1 (items) long."""

    def __init__(self, tokenizer: Any, text: TextSettings, prompts: Prompts, fields: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.prompts = prompts
        self.fields = list(fields)
        self.eos = int(tokenizer.eos_token_id)
        self.sids_prefix: Ids = token_ids(self.tokenizer, [prompts.sids])[0] if prompts.sids else []

    def item_text(self, row: Mapping[str, str | None]) -> str:
        return item_prompt(row, self.prompts, self.fields)

    def query_text(self, query: str) -> str:
        return query_prompt(query, self.prompts)

    def items(self, texts: Sequence[str]) -> list[Ids]:
        """Ids of rendered item texts, cut to leave room for EOS; "" gives no ids."""
        return [ids[: self.text.max_tokens - 1] for ids in token_ids(self.tokenizer, texts)]

    def queries(self, texts: Sequence[str]) -> list[Ids]:
        return [ids[: self.text.max_query_tokens - 1] for ids in token_ids(self.tokenizer, texts)]


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Of each text, without special tokens."""
    if not texts:
        return []
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def pad(sequences: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [B, T] int64 and their mask [B, T] bool (1 = real). T is at least 1."""
    lengths = np.array([len(sequence) for sequence in sequences])
    width = max(1, int(lengths.max(initial=0)))
    ids = np.zeros((len(sequences), width), np.int64)
    mask = np.arange(width)[None, :] < lengths[:, None]
    if lengths.sum():
        ids[mask] = np.concatenate([np.asarray(s, np.int64) for s in sequences if len(s)])
    return torch.from_numpy(ids), torch.from_numpy(mask)
