"""In the environment of vector-quantize-pytorch: the same autoencoder around its ResidualVQ. One JSON line.

python vq_fit.py SIZES.json

After each epoch: the seconds so far and the mean squared distance of held-out vectors to their reconstructions
(standardised, summed over dimensions). Encoding is timed afterwards, in batches as ours are.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vector_quantize_pytorch import ResidualVQ


class Autoencoder(nn.Module):
    """Linear layers with ReLU down and up, ResidualVQ between them."""

    def __init__(self, widths: list[int], levels: int, entries: int) -> None:
        super().__init__()
        self.encoder, self.decoder = pyramid(widths), pyramid(widths[::-1])
        self.quantiser = ResidualVQ(
            dim=widths[-1],
            num_quantizers=levels,
            codebook_size=entries,
            kmeans_init=True,
            kmeans_iters=25,
            threshold_ema_dead_code=1,
        )

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions, and the commitment of all levels."""
        quantised, _, commitment = self.quantiser(self.encoder(h))
        return self.decoder(quantised), commitment.sum()


def pyramid(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def held_out_error(model: Autoencoder, valid: Tensor) -> float:
    model.eval()
    error = float((model(valid)[0] - valid).square().sum(-1).mean())
    model.train()
    return error


def main() -> None:
    sizes: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    train, valid = (torch.from_numpy(np.load(sizes[name])) for name in ("train", "valid"))
    started, epochs = time.perf_counter(), list[tuple[float, float]]()
    mean, std = train.mean(0), train.std(0)
    train, valid = (train - mean) / std, (valid - mean) / std
    model = Autoencoder(sizes["widths"], sizes["levels"], sizes["entries"])
    with torch.no_grad():
        model.quantiser(model.encoder(train[: 256 * sizes["entries"]]))  # k-means of its codebooks on all rows, as ours
    optimiser = torch.optim.AdamW(model.parameters(), lr=sizes["lr"], weight_decay=1e-4)
    weight = sizes["beta"] * sizes["gamma"] * sizes["widths"][-1]  # its commitment is a mean over the dimensions
    for _ in range(sizes["epochs"]):
        for rows in torch.split(torch.randperm(len(train)), sizes["batch"]):
            h = train[rows]
            restored, commitment = model(h)
            loss = (restored - h).square().sum(-1).mean() + weight * commitment
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        epochs.append((time.perf_counter() - started, held_out_error(model, valid)))
    model.eval()
    started, encoded = time.perf_counter(), 0
    with torch.no_grad():
        while time.perf_counter() < started + sizes["encode s"]:
            for rows in torch.split(train, sizes["encode batch"]):
                model.quantiser(model.encoder(rows))
            encoded += len(train)
    print(json.dumps({"epochs": epochs, "encode items/s": encoded / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
