"""The tokenizer that random weights get, and the pixels that a pretrained vision tower expects."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from sidray.errors import UserError
from sidray.models.image import load_vision, normalisation
from sidray.models.prompts import load_tokenizer
from sidray.models.settings import ImageSettings
from sidray.models.weights import prepare_image, train_tokenizer

PIXELS = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}


def test_a_trained_tokenizer_reads_case_and_wide_letters_alike(tmp_path: Path) -> None:
    train_tokenizer(["Title: Hot Soup", "Query: soup", "Title: 牛肉 Ｓｏｕｐ"], 400, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    lower, title, wide = (tokenizer(text)["input_ids"] for text in ("hot soup", "Hot SOUP", "ｈｏｔ soup"))
    assert lower == title == wide
    assert tokenizer.decode(tokenizer("牛肉")["input_ids"]) == "牛肉"
    assert tokenizer.eos_token_id is not None


def clip(folder: Path) -> Path:
    """A tiny CLIP in half precision, as many are published."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16))
    model.half().save_pretrained(str(folder))
    return folder


def test_a_clip_brings_its_pixels_and_trains_in_fp32(tmp_path: Path) -> None:
    source = clip(tmp_path / "clip")
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json, and a CLIP's pixels"):
        prepare_image(ImageSettings(weights=str(source)), tmp_path / "without", 0)
    (source / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    prepare_image(ImageSettings(weights=str(source)), tmp_path / "out", 0)
    assert normalisation(tmp_path / "out") == (PIXELS["image_mean"], PIXELS["image_std"])
    assert {parameter.dtype for parameter in load_vision(tmp_path / "out").parameters()} == {torch.float32}


FROM_HUB = """
import sys
from pathlib import Path
from sidray.models.settings import ImageSettings
from sidray.models.weights import prepare_image
prepare_image(ImageSettings(weights="shop/clip"), Path(sys.argv[1]), 0)
"""


def test_one_of_the_hub_does_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "hub" / "models--shop--clip"
    source = clip(kept / "snapshots" / ("0" * 40))
    (source / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))  # is read when transformers is imported
    subprocess.run([sys.executable, "-c", FROM_HUB, str(tmp_path / "out")], check=True)
    assert normalisation(tmp_path / "out") == (PIXELS["image_mean"], PIXELS["image_std"])
