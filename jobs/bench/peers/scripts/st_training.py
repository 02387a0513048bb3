"""In the environment of sentence-transformers: its trainer on the pairs of the shop. One JSON line of rank 0.

torchrun --nproc_per_node=W st_training.py --encoder FOLDER --pairs FILE --batch 64 --steps 60 --lr 1e-4 --warm 20
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss
from transformers import TrainerCallback


class Clock(TrainerCallback):
    """When each step ended, and the losses that were logged."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--batch", type=int, required=True, help="of all workers together")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--warm", type=int, required=True, help="steps that are not timed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    world = torch.distributed.get_world_size()
    anchors, positives = zip(*json.loads(given.pairs.read_text()), strict=True)
    model, clock = SentenceTransformer(given.encoder, device="cpu"), Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=given.steps,
            per_device_train_batch_size=given.batch // world,
            learning_rate=given.lr,
            weight_decay=0.01,
            warmup_steps=round(0.1 * given.steps),
            max_grad_norm=1.0,
            use_cpu=True,
            ddp_backend="gloo",
            save_strategy="no",
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
        )
        SentenceTransformerTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict({"anchor": anchors, "positive": positives}),
            loss=MultipleNegativesRankingLoss(model, scale=20.0, gather_across_devices=world > 1),
            callbacks=[clock],
        ).train()
    if torch.distributed.get_rank() == 0:
        seconds = clock.ends[-1] - clock.ends[given.warm - 1]
        rate = given.batch * (given.steps - given.warm) / seconds
        print(json.dumps({"samples/s": rate, "last loss": clock.losses[-1]}))


if __name__ == "__main__":
    main()
