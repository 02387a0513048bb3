"""A trained model made ready to compute vectors: on the device of this process, in the precision of the recipe.

model = for_inference(load(...), recipe.embedding.precision)
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from sidray.models.efficientnet import EfficientNetLite
from sidray.models.settings import Precision

Module = TypeVar("Module", bound=nn.Module)


def inference_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def for_inference(model: Module, precision: Precision) -> Module:
    """The model itself, an EfficientNet in it folded. bf16: the weights of LM and heads, as DeepSpeed casts them for
    training; buffers (the rotary frequencies) and the image encoder stay as they are."""
    if precision == "bf16":
        for name, parameter in model.named_parameters():
            if not name.startswith("image."):
                parameter.data = parameter.data.bfloat16()
    model.eval()
    for module in list(model.modules()):
        if isinstance(module, EfficientNetLite):
            module.fold()
    return model.to(inference_device())
