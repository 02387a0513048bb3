"""Tiny random towers and a tokenizer for tests, without a catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from sidray.models.mlrm import VISUAL, Mlrm, build_mlrm
from sidray.models.note_settings import ConnectorSettings, NoteSettings
from sidray.models.settings import ImageSettings, ModelSettings, Prompts, TextSettings
from sidray.models.towers import Towers, build_towers
from sidray.models.weights import prepare_image, prepare_text

TEXTS = [f"Title: {word} {thing}" for word in ("red", "blue", "green") for thing in ("cat", "dog", "soup", "dress")]
LM = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
}


def tiny_settings(**text: object) -> ModelSettings:
    return ModelSettings(
        text=TextSettings(vocabulary=300, config=LM, max_tokens=16, max_query_tokens=12, **text),
        image=ImageSettings(size=16, config=VIT),
        mlp=[24, 16, 8],
    )


def write_weights(folder: Path, settings: ModelSettings) -> None:
    prepare_text(settings.text, TEXTS, folder / "text", seed=0)
    prepare_image(settings.image, folder / "image", seed=0)


def tiny_towers(folder: Path, sid_count: int = 0) -> Towers:
    settings = tiny_settings()
    if not (folder / "text").is_dir():
        write_weights(folder, settings)
    return build_towers(folder / "text", folder / "image", settings, sid_count, with_frozen=False)


def cut_settings(folder: Path, frozen: int) -> ModelSettings:
    """Towers on the same weights with the lowest `frozen` layers below the cut."""
    text = TextSettings(weights=str(folder / "text"), frozen_layers=frozen, max_tokens=16, max_query_tokens=12)
    return tiny_settings().model_copy(update={"text": text, "prompts": Prompts(sids="")})


def random_batch(towers: Towers, rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every column that the tasks read, with some equal texts and pictures, missing pictures and known clicks."""
    g = torch.Generator().manual_seed(seed)
    batch: dict[str, torch.Tensor] = {"item_row": torch.arange(rows) % max(1, rows - 1)}
    for name in ("query", "text", "item", "causal"):
        lengths = torch.randint(2, 7, (rows,), generator=g)
        mask = torch.arange(7)[None] < lengths[:, None]
        batch[f"{name}.ids"] = torch.randint(0, 250, (rows, 7), generator=g) * mask
        batch[f"{name}.mask"] = mask
    batch["causal.target"] = batch["causal.mask"] & (torch.arange(7) >= 2)
    batch["item.ids"][:, 1] = towers.base + torch.arange(rows) % 3
    batch["image"] = torch.randint(0, 255, (rows, 3, 16, 16), generator=g).to(torch.uint8)
    batch["image.present"] = torch.arange(rows) % 4 != 3
    batch["image_group"] = torch.arange(rows) % 5
    batch["text_group"] = torch.arange(rows) % 6
    known = torch.sort(torch.randint(0, rows, (rows, 3), generator=g), dim=1).values
    batch["query.clicked"] = known
    batch["query.clicked_texts"] = torch.sort((known + 1) % 6, dim=1).values
    return batch


PLACES = 3  # L_c
CONNECTOR = ConnectorSettings(queries=PLACES, layers=2, width=16, heads=2, intermediate=32, dropout=0)


def note_model_settings(**note: Any) -> ModelSettings:
    return ModelSettings(
        text=TextSettings(vocabulary=300, config=LM, max_tokens=32),
        image=ImageSettings(size=16, config=VIT),
        note=NoteSettings(connector=CONNECTOR, dimension=8, **note),
    )


def tiny_mlrm(folder: Path, **note: Any) -> Mlrm:
    settings = note_model_settings(**note)
    if not (folder / "text").is_dir():
        write_weights(folder, settings)
    return seeing(build_mlrm(folder / "text", folder / "image", settings, with_frozen=True))


def seeing(model: Mlrm) -> Mlrm:
    """The model as if it had learnt to look: a fused picture begins as nothing."""
    if model.whole is not None:
        g = torch.Generator().manual_seed(0)
        torch.nn.init.normal_(cast(torch.nn.Linear, model.whole.linear).weight, std=0.2, generator=g)
    return model


def pairs_batch(model: Mlrm, pairs: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """2 * pairs notes with every column of the tasks on pairs: equal items, missing pictures, known relations."""
    g = torch.Generator().manual_seed(seed)
    notes = 2 * pairs
    batch: dict[str, torch.Tensor] = {"item_row": torch.randint(0, notes - 1, (notes,), generator=g)}
    batch["image"] = torch.randint(0, 255, (notes, 3, 16, 16), generator=g).to(torch.uint8)
    batch["image.present"] = torch.arange(notes) % 5 != 3
    visual = torch.full((notes, PLACES), VISUAL)
    visual[~batch["image.present"]] = 7
    word = torch.full((notes, 1), model.base if model.note.micl else 8)
    word[~batch["image.present"]] = 7
    for name, middle in (("note", [visual, word]), ("note_text", []), ("note_image", [visual])):
        words = torch.randint(10, 250, (notes, 5), generator=g)
        batch[f"{name}.ids"] = torch.cat([*middle, words], 1)
        lengths = torch.randint(2, 6, (notes,), generator=g) + batch[f"{name}.ids"].shape[1] - 5
        batch[f"{name}.mask"] = torch.arange(batch[f"{name}.ids"].shape[1])[None] < lengths[:, None]
    batch["related"] = torch.sort(torch.randint(0, notes, (notes, 3), generator=g), dim=1).values
    return batch
