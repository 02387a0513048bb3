"""Notes per second of an MLRM of NoteLLM-2's shape: a 7B LM, ViT-B/16, 16 visual embeddings, weights at random.

    python jobs/bench/paper_shape.py [--batch 50] [--tokens 256] [--batches 20]
    python jobs/bench/paper_shape.py --layers 1 --batch 2 --batches 2      # a try without a GPU

Pictures as pixels, every note with as many tokens as there can be. The paper has 48.2 notes/s on an A100. One JSON
line, with the share of the GPU's peak in bf16 where that is known.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig, LlamaConfig

from sidray.config import build, load_yaml
from sidray.models.image import Vision, VisionTower
from sidray.models.mlrm import VISUAL, Mlrm, NoteInput
from sidray.models.settings import ModelSettings
from sidray.models.text import TextEncoder
from sidray.models.towers import ImageInput, TextInput

VOCABULARY = 151_936  # Qwen's: 7.10 billion parameters without the head
PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # operations/s in bf16, dense


def mlrm(layers: int, device: torch.device, width: int = 4096) -> Mlrm:
    """The recipe `notellm2-paper` with so many layers; `width`: of the LM, a multiple of 128."""
    settings = build(ModelSettings, load_yaml("notellm2-paper")["model"], "notellm2-paper")
    lm = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        tie_word_embeddings=False,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            text = TextEncoder(AutoModelForCausalLM.from_config(lm), 0, 1, with_frozen=False)
            vision = VisionTower(
                AutoModel.from_config(CLIPVisionConfig(hidden_size=768, patch_size=16)), [0.5] * 3, [0.5] * 3
            )
            return Mlrm(text, vision, Vision(768, True), settings, VOCABULARY).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def notes(model: Mlrm, batch: int, tokens: int, device: torch.device) -> NoteInput:
    """Notes of `tokens` tokens, visual embeddings and <IMG_EMB> included."""
    queries = model.note.connector.queries
    ids = torch.randint(0, VOCABULARY, (batch, tokens), device=device)
    ids[:, 1 : 1 + queries] = VISUAL
    ids[:, 1 + queries + 8] = model.base  # <IMG_EMB>: n_v is before it, n_m at the end
    pixels = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8, device=device)
    present = torch.ones(batch, dtype=torch.bool, device=device)
    return NoteInput(TextInput(ids, torch.ones_like(ids, dtype=torch.bool)), ImageInput(pixels, present))


def operations(model: Mlrm, tokens: int) -> float:
    """Of one note in the LM: two for each weight of a matrix and token, and attention's."""
    layers = model.text.lm.model.layers
    weights = sum(p.numel() for p in layers.parameters() if p.ndim == 2)
    return float(2 * weights * tokens + 4 * len(layers) * tokens**2 * model.text.width)


@torch.inference_mode()
def measure(layers: int, batch: int, tokens: int, batches: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = mlrm(layers, device)
    given = notes(model, batch, tokens, device)

    def finished() -> float:
        vectors = model(given)[1]
        if not torch.isfinite(vectors.sum()):  # waits for the device
            raise SystemExit("the vectors are not finite")
        return time.perf_counter()

    for _ in range(2):
        started = finished()
    for _ in range(batches):
        ended = finished()
    rate = batch * batches / (ended - started)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = next((peak for gpu, peak in PEAK.items() if gpu in name), None)
    return {
        "bench": "paper shape",
        "device": name,
        "parameters": sum(p.numel() for p in model.text.lm.model.parameters()),
        "batch": batch,
        "tokens": tokens,
        "notes/s": round(rate, 2),
        "share of peak": None if peak is None else round(rate * operations(model, tokens) / peak, 3),
        "GPU GiB": round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.type == "cuda" else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, default=20)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.layers, arguments.batch, arguments.tokens, arguments.batches)))


if __name__ == "__main__":
    main()
