"""The cache of frozen text layers: which texts it is of, and what it keeps in memory while it numbers them."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sidray.data import items
from sidray.data.catalogue import Catalogue
from sidray.data.ingest import ingest
from sidray.datasets import open_dataset
from sidray.embedding import cache
from sidray.models.prompts import Prompter
from sidray.recipe import load_recipe
from sidray.steps import Work
from tests.data.conftest import blocks_in_this_process
from tests.data.makers import settings

ITEMS, WORDS = 1000, 100


class Tokenizer:
    """An id for each word."""

    eos_token_id = 7

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [[1000 + zlib.crc32(word.encode()) % 10**6 for word in text.split()] for text in texts]}


def not_encoded(name: str, count: int, *more: Any) -> Iterator[pa.Table]:
    yield pa.table({"row": np.arange(count)})


def test_texts_are_numbered_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(items, "_checked_blocks", blocks_in_this_process)
    monkeypatch.setattr(cache, "load_tokenizer", lambda folder: Tokenizer())
    monkeypatch.setattr(cache, "encode_rows", not_encoded)
    monkeypatch.setattr(cache, "ROWS_AT_ONCE", 64)
    recipe, _, _ = load_recipe("smgr-debug", [f"model.text.max_tokens={2 * WORDS}"])
    titles = [" ".join(f"w{n // 2}-{k}" for k in range(WORDS)) for n in range(ITEMS)]  # each of two items
    rows = [{"item_id": f"i{n}", "title": title} for n, title in enumerate(titles)]
    clicks = [{"query": f"query {n % 70}", "item_id": f"i{n}", "split": "train"} for n in range(100)]
    ingest(settings(tmp_path, items=rows, clicks=clicks), str(tmp_path / "catalogue"))
    work = Work(str(tmp_path / "out"), {"catalogue": str(tmp_path / "catalogue"), "text-weights": str(tmp_path)})

    tracemalloc.start()
    summary = cache.text_cache(recipe.model, recipe.embedding, work)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < ITEMS * WORDS * 16  # as lists of ids: 36 bytes for each

    prompter = Prompter(Tokenizer(), recipe.model.text, recipe.model.prompts, [])
    ids = open_dataset(work.path("ids.lance")).to_table()["ids"].to_pylist()
    assert ids[0] == [7]
    assert len(ids) == summary["texts"] == 1 + ITEMS // 2 + 70
    assert summary["tokens"] == sum(map(len, ids))
    catalogue = Catalogue.open(work.inputs["catalogue"])
    queries = [f"query {n}" for n in range(70)]
    assert catalogue.clicks()["query"].to_pylist()[:70] == queries
    for name, texts in (
        ("items", prompter.items([prompter.item_text({"title": title}) for title in titles])),
        ("queries", prompter.queries([prompter.query_text(query) for query in queries])),
    ):
        numbers = open_dataset(work.path(f"{name}.lance")).to_table()["text"].to_pylist()
        assert [ids[number] for number in numbers] == [[*text, 7] for text in texts]
