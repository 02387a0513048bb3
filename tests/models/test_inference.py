"""A model made ready to compute vectors: bf16 weights, fp32 buffers and pictures, nearly the same vectors."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from sidray.models.inference import for_inference
from sidray.models.note_inputs import note_input
from tests.models.tiny import pairs_batch, tiny_mlrm


@torch.inference_mode()
def test_bf16_halves_the_weights_and_hardly_turns_a_vector(tmp_path: Path) -> None:
    model = for_inference(tiny_mlrm(tmp_path), "fp32")
    notes = note_input(pairs_batch(model, 8), "note")
    exact = model(notes)[1]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for_inference(model, "bf16")
    rounded = model(notes)[1]
    assert not torch.equal(rounded, exact)
    assert F.cosine_similarity(rounded.float(), exact.float()).min() > 0.999


def test_buffers_and_the_image_encoder_stay_as_they_are(tmp_path: Path) -> None:
    model = for_inference(tiny_mlrm(tmp_path), "bf16")
    assert model.image is not None
    image = {id(parameter) for parameter in model.image.parameters()}
    assert {p.dtype for p in model.parameters() if id(p) in image} == {torch.float32}
    assert {p.dtype for p in model.parameters() if id(p) not in image} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
