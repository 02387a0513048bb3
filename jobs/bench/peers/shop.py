"""What all arms read: a made-up catalogue with clicks, and an encoder with random weights, each the same on every call.

    shop = Shop.write(folder, items=4000, encoder=SMALL);  shop.recipe(steps=40, ...)

<folder>/items.parquet, clicks.parquet (the contract's tables); items.txt and pairs.json, the same as the peers read
them: the rendered texts; encoder/, a causal LM that Hugging Face's and sentence-transformers' loaders open alike. Its
tokenizer ends a text with EOS, as ours does, so that all arms read the same tokens.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sidray.models.settings import Prompts, TextSettings

MAX_TOKENS = 48
PROMPTS = Prompts(query="{query}", title="{title}", field=" {field}: {value}")
FIELDS = ["description"]
SMALL = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 8}
# As many weights in its matrices as multilingual-e5-small: 12 layers of width 384.
E5 = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 12, "num_attention_heads": 12}
VOCABULARY = 4096
_SYLLABLES = ["ba", "ke", "lo", "mi", "nu", "ra", "se", "ti", "vo", "zan", "per", "dol", "gri", "shu", "fen", "mar"]


@dataclass(frozen=True)
class Shop:
    folder: Path

    @classmethod
    def write(cls, folder: Path, items: int, encoder: dict[str, int]) -> Shop:
        folder.mkdir(parents=True, exist_ok=True)
        shop = cls(folder)
        texts = shop._write_tables(items)
        shop._write_encoder(encoder, texts)
        return shop

    @property
    def encoder(self) -> Path:
        return self.folder / "encoder"

    def recipe(self, root: Path, steps: int, batch: int, **training: Any) -> dict[str, Any]:
        """Values of a recipe: one stage of query2text over the catalogue, and a text-only service."""
        stage: dict[str, Any] = {
            "name": "query2text",
            "tasks": {"query2text": 1},
            "item": "text",
            "batch_size": batch,
            "steps": steps,
        }
        text: dict[str, Any] = {"weights": str(self.encoder), "pooling": "mean"}
        text |= {"max_tokens": MAX_TOKENS, "max_query_tokens": MAX_TOKENS}
        return {
            "name": "side-by-side",
            "data": {
                "source": "tables",
                "items": str(self.folder / "items.parquet"),
                "clicks": str(self.folder / "clicks.parquet"),
                "text_fields": FIELDS,
            },
            "model": {"text": text, "image": {"weights": "none"}, "prompts": PROMPTS.model_dump(), "mlp": [128]},
            "training": {"threads": 1, "valid_rows": 64, **training},
            "stages": [{**stage, "validations": 1}],
            "sid_stages": [],
            "embedding": {"actors": 2, "cpus": 1},
            "runs": {"root": str(root)},
        }

    def _write_tables(self, items: int) -> list[str]:
        """The rendered texts of the items."""
        from sidray.models.prompts import item_prompt, query_prompt

        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(_SYLLABLES, rng.integers(2, 5))) for _ in range(3000)]
        shares = 1 / np.arange(1, len(words) + 1)
        shares /= shares.sum()

        def some(low: int, high: int) -> list[str]:
            return [words[n] for n in rng.choice(len(words), rng.integers(low, high), p=shares)]

        titles, descriptions = [some(3, 6) for _ in range(items)], [some(4, 16) for _ in range(items)]
        queries = [
            " ".join(rng.permutation([*title, *text])[:3]) for title, text in zip(titles, descriptions, strict=True)
        ]
        rows = [
            {"item_id": f"i{n}", "title": " ".join(title), "description": " ".join(text), "partition": f"p{n % 10}"}
            for n, (title, text) in enumerate(zip(titles, descriptions, strict=True))
        ]
        splits = ["valid" if n % 20 == 0 else "test" if n % 20 == 1 else "train" for n in range(items)]
        ids = [row["item_id"] for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), self.folder / "items.parquet")
        pq.write_table(pa.table({"query": queries, "item_id": ids, "split": splits}), self.folder / "clicks.parquet")
        texts = [item_prompt(row, PROMPTS, FIELDS) for row in rows]
        read = [query_prompt(query, PROMPTS) for query in queries]
        pairs = [each for *each, split in zip(read, texts, splits, strict=True) if split == "train"]
        (self.folder / "items.txt").write_text("\n".join(texts))
        (self.folder / "queries.txt").write_text("\n".join(read))
        (self.folder / "pairs.json").write_text(json.dumps(pairs))
        return texts

    def _write_encoder(self, sizes: dict[str, int], texts: list[str]) -> None:
        from sidray.models.weights import prepare_text

        heads = sizes["num_attention_heads"]
        config = {**sizes, "num_key_value_heads": heads, "head_dim": sizes["hidden_size"] // heads}
        shutil.rmtree(self.encoder, ignore_errors=True)
        prepare_text(TextSettings(config=config, vocabulary=VOCABULARY), texts, self.encoder, seed=0)
        end_with_eos(self.encoder)
        for_sentence_transformers(self.encoder)


def end_with_eos(folder: Path) -> None:
    """Makes the tokenizer end a text with EOS where its caller asks for special tokens, as all peers do."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    from sidray.models.weights import EOS

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, tokenizer.token_to_id(EOS))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def for_sentence_transformers(folder: Path) -> None:
    """The files beside the weights that say: mean over the tokens, at most MAX_TOKENS. The class of the tokenizer gets
    the name by which older transformers know it, too."""
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling")]
    named = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.{kind}"}
        for n, (path, kind) in enumerate(modules)
    ]
    config = json.loads((folder / "config.json").read_text())
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": config["hidden_size"], "pooling_mode_mean_tokens": True}
    _write(folder / "1_Pooling/config.json", pooling)
    _write(folder / "modules.json", named)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": MAX_TOKENS, "do_lower_case": False})
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    _write(folder / "tokenizer_config.json", {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"})
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        _write(folder / "config.json", {**config, "rope_theta": theta})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1))
