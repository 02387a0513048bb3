"""The image encoder: any Hugging Face vision tower, or EfficientNet-Lite. Pixels are uint8 until here.

forward: pixels uint8 [B, 3, S, S] -> [B, width], the tower's pooled output.
grid:    -> [B, L, width], its features place by place; row 0 is the [CLS] token of a tower that has one (has_cls).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidray.errors import UserError

PREPROCESSOR = "preprocessor_config.json"  # of Hugging Face: mean and deviation of the pixels
EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite2")
VISION = "vision.json"


@dataclass(frozen=True)
class Vision:
    """What is known of a vision encoder without its weights: the width of its features, whether it has a [CLS]."""

    width: int
    has_cls: bool

    @classmethod
    def of(cls, folder: Path) -> Vision:
        """What `weights.prepare_image` noted."""
        return cls(**json.loads((folder / VISION).read_text()))


class VisionTower(nn.Module):
    """A Hugging Face vision model with the mean and standard deviation of its preprocessor."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def _run(self, pixels: Tensor) -> Any:
        dtype = next(self.model.parameters()).dtype
        return self.model(pixel_values=((pixels.float() - self.mean) / self.std).to(dtype))  # [B, 3, S, S]

    def forward(self, pixels: Tensor) -> Tensor:
        out = self._run(pixels)
        pooled = getattr(out, "pooler_output", None)
        result: Tensor = pooled if pooled is not None else out.last_hidden_state[:, 0]
        return result

    @property
    def has_cls(self) -> bool:
        """ViT and CLIP put a [CLS] token before the patches, SigLIP has none."""
        return hasattr(self.model, "embeddings") and any(
            hasattr(self.model.embeddings, name) for name in ("cls_token", "class_embedding")
        )

    def grid(self, pixels: Tensor) -> Tensor:
        """Last hidden states: [B, 3, S, S] -> [B, L, width]."""
        states: Tensor = self._run(pixels).last_hidden_state
        return states


def vision_part(model: Any) -> Any:
    """The vision tower of a two-tower model (CLIP, Chinese-CLIP, SigLIP), or the model itself."""
    return getattr(model, "vision_model", model)


def load_vision(folder: Path) -> VisionTower:
    """A vision tower from a local folder: config.json, safetensors, and preprocessor_config.json when there is one."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(str(folder))
    model = AutoModel.from_pretrained(str(folder), use_safetensors=True, dtype=torch.float32)
    if not hasattr(config, "hidden_size") and not hasattr(vision_part(model), "config"):
        raise UserError(f"{folder} holds no vision tower ({config.model_type})", "give a ViT, CLIP or SigLIP folder")
    mean, std = normalisation(folder)
    return VisionTower(vision_part(model), mean, std)


def normalisation(folder: Path) -> tuple[list[float], list[float]]:
    """image_mean and image_std of the folder's preprocessor; 0.5 (ViT's own) when it has none."""
    path = folder / PREPROCESSOR
    values = json.loads(path.read_text()) if path.exists() else {}
    return values.get("image_mean", [0.5] * 3), values.get("image_std", [0.5] * 3)


def load_image_encoder(folder: Path) -> Any:
    """What `weights.prepare_image` wrote: an EfficientNet-Lite or a vision tower. It has `.width`."""
    for name in EFFICIENTNETS:
        path = folder / f"{name}.safetensors"
        if path.exists():
            from sidray.models.efficientnet import load_efficientnet_lite

            return load_efficientnet_lite(name.rsplit("-", 1)[1], path)
    return load_vision(folder)
