"""Our arm of the tokenizers: RqVaeTokenizer, as the step `tokenizers` fits it. One JSON line as of vq_fit.py.

python sidray_tokenizer.py SIZES.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sidray.tokenizers.base import Vectors
from sidray.tokenizers.rqvae import RqVaeTokenizer
from sidray.tokenizers.settings import TokenizerSettings


class Timed(RqVaeTokenizer):
    """Notes when each epoch had its held-out error."""

    def __init__(self, modality: str, settings: TokenizerSettings) -> None:
        super().__init__(modality, settings)
        self.measured: list[tuple[float, float]] = []
        self.started = time.perf_counter()

    def error(self, vectors: Vectors) -> float:
        found = super().error(vectors)
        self.measured.append((time.perf_counter() - self.started, found))
        return found


def main() -> None:
    sizes: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(sizes["threads"])
    train, valid = np.load(sizes["train"]), np.load(sizes["valid"])
    settings = TokenizerSettings(
        levels=sizes["levels"],
        entries=sizes["entries"],
        hidden={"item": sizes["widths"]},
        beta=sizes["beta"],
        gamma=sizes["gamma"],
        epochs=sizes["epochs"],
        batch_size=sizes["batch"],
        lr=sizes["lr"],
    )
    tokenizer = Timed("item", settings)
    tokenizer.fit(train, valid)
    tokenizer.encode(train[: sizes["encode batch"]])  # warm
    started, encoded = time.perf_counter(), 0
    while time.perf_counter() < started + sizes["encode s"]:
        tokenizer.encode(train)
        encoded += len(train)
    rate = encoded / (time.perf_counter() - started)
    print(json.dumps({"epochs": tokenizer.measured, "encode items/s": rate}))


if __name__ == "__main__":
    main()
