"""The size `paper`: dimensions and parameter counts on the meta device (Qwen3-0.6B + Chinese-CLIP ViT-H/14)."""

from __future__ import annotations

import torch
from transformers import AutoModel, AutoModelForCausalLM, ChineseCLIPVisionConfig, Qwen3Config

from sidray.config import build, load_yaml
from sidray.models.image import VisionTower
from sidray.models.settings import ModelSettings
from sidray.models.text import TextEncoder
from sidray.models.towers import Towers
from sidray.tokenizers.settings import TokenizerSettings
from sidray.tokenizers.vocabulary import SidVocabulary

QWEN3_06B = Qwen3Config(
    vocab_size=151_936,
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    tie_word_embeddings=True,
)
VIT_H_14 = ChineseCLIPVisionConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=16,
    patch_size=14,
    image_size=224,
)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_paper_size_on_the_meta_device() -> None:
    values = load_yaml("sizes/paper")
    settings = build(ModelSettings, values["model"], "sizes/paper")
    tokenizer = build(TokenizerSettings, values["tokenizer"], "sizes/paper")
    vocabulary = SidVocabulary(levels=tokenizer.levels, entries=tokenizer.entries)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(QWEN3_06B)
        vision = AutoModel.from_config(VIT_H_14)
        text = TextEncoder(lm, settings.text.frozen_layers, len(vocabulary), with_frozen=False)
        towers = Towers(text, VisionTower(vision, [0.5] * 3, [0.5] * 3), settings, base=151_936)
    assert count(lm) == 596_049_920  # Qwen3-0.6B
    assert 625e6 < count(vision) < 635e6  # ViT-H/14
    assert text.sids is not None
    assert tuple(text.sids.weight.shape) == (288 + 1, 1024)  # and <img_none>
    assert [layer.out_features for layer in towers.mlp_q if hasattr(layer, "out_features")] == [512, 256, 128]
    assert (towers.project.in_features, towers.project.out_features) == (1280, 1024)
    assert tokenizer.widths("text", 1024) == tokenizer.widths("image", 1024) == [1024, 768, 512, 256]
    assert tokenizer.widths("item", 128) == [128, 64, 32]
    pixels = torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device="meta")
    assert towers.trunk(pixels).shape == (2, 1280)
    e_q = torch.zeros(2, 1024, device="meta")
    assert towers.query(e_q).shape == towers.item(e_q, e_q).shape == (2, 128)
