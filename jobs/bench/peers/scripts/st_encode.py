"""In the environment of sentence-transformers: `encode` over a file of texts. One JSON line, and the first vectors.

python st_encode.py --encoder FOLDER --texts FILE --batch 128 --threads 2 --first 64 --vectors OUT.npy
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--vectors", required=True)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    launched = time.perf_counter()
    model = SentenceTransformer(given.encoder, device="cpu")
    texts = given.texts.read_text().split("\n")
    model.encode(texts[: given.batch], batch_size=given.batch)  # warm
    started = time.perf_counter()
    vectors = model.encode(texts, batch_size=given.batch)
    ended = time.perf_counter()
    np.save(given.vectors, vectors[: given.first])
    print(json.dumps({"items/s": len(texts) / (ended - started), "whole items/s": len(texts) / (ended - launched)}))


if __name__ == "__main__":
    main()
