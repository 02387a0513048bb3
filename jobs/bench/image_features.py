"""Pictures a second through EfficientNet-Lite0: folded for inference, against the network as its package has it.

    python jobs/bench/image_features.py [--size 224] [--batch 32] [--threads 1] [--rounds 5]

Rounds alternate, the best of each counts. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from sidray.models.efficientnet import EfficientNetLite, load_efficientnet_lite
from sidray.models.inference import for_inference, inference_device


def seconds(trunk: EfficientNetLite, pixels: torch.Tensor) -> float:
    started = time.perf_counter()
    trunk(pixels).sum().item()  # .item() waits for a GPU
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pixels = torch.randint(0, 256, (args.batch, 3, args.size, args.size), dtype=torch.uint8, device=inference_device())
    plain = load_efficientnet_lite("lite0", None, "stages").to(inference_device())
    folded = for_inference(load_efficientnet_lite("lite0", None, "stages"), "fp32")
    with torch.inference_mode():
        differ = float((plain(pixels) - folded(pixels)).abs().max())
        times = [(seconds(plain, pixels), seconds(folded, pixels)) for _ in range(args.rounds)]
    before, after = (args.batch / min(each) for each in zip(*times, strict=True))
    figures = {"pictures/s": round(after, 1), "plain": round(before, 1), "ratio": round(after / before, 2)}
    print(json.dumps({"bench": "image_features", **vars(args), **figures, "largest difference": differ}))


if __name__ == "__main__":
    main()
