"""Pictures a second through EfficientNet-Lite0: folded for inference, against the network as its package has it.

    python jobs/bench/image_features.py [--size 224]

One thread. Rounds alternate, the best of each counts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from sidray.models.efficientnet import EfficientNetLite, load_efficientnet_lite
from sidray.models.inference import for_inference, inference_device

BATCH, ROUNDS = 32, 5


def seconds(trunk: EfficientNetLite, pixels: torch.Tensor) -> float:
    started = time.perf_counter()
    trunk(pixels).sum().item()  # .item() waits for a GPU
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    size = parser.parse_args().size
    torch.set_num_threads(1)
    pixels = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8, device=inference_device())
    plain = load_efficientnet_lite("lite0", None, "stages").to(inference_device())
    folded = for_inference(load_efficientnet_lite("lite0", None, "stages"), "fp32")
    with torch.inference_mode():
        differ = float((plain(pixels) - folded(pixels)).abs().max())
        times = [(seconds(plain, pixels), seconds(folded, pixels)) for _ in range(ROUNDS)]
    before, after = (BATCH / min(each) for each in zip(*times, strict=True))
    figures = {"pictures/s": round(after, 1), "plain": round(before, 1), "ratio": round(after / before, 2)}
    print(json.dumps({"bench": "image_features", "size": size, **figures, "largest difference": differ}))


if __name__ == "__main__":
    main()
