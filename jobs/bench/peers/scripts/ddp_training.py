"""A bare torch DDP loop on the pairs of the shop, in the environment of sentence-transformers. One JSON line of rank 0.

torchrun --nproc_per_node=W ddp_training.py --encoder FOLDER --pairs FILE --batch 64 --steps 60 --lr 1e-4 --warm 20
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModel, AutoTokenizer

TAU = 0.05
MAX_TOKENS = 48


class Gather(torch.autograd.Function):
    """All ranks' rows; each gets the gradients of its own from all."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


class Pairs(nn.Module):
    """InfoNCE of a batch of pairs, with the negatives of all ranks."""

    def __init__(self, encoder: str) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(encoder, dtype=torch.float32)

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        weights = mask[..., None].float()
        return F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)

    def forward(self, anchors: Any, positives: Any) -> Tensor:
        own = self.embed(anchors["input_ids"], anchors["attention_mask"])
        gather: Any = Gather.apply
        candidates = gather(self.embed(positives["input_ids"], positives["attention_mask"]))
        labels = torch.arange(len(own)) + dist.get_rank() * len(own)
        return F.cross_entropy(own @ candidates.T / TAU, labels)


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
    dist.init_process_group("gloo")
    rank, local = dist.get_rank(), given.batch // dist.get_world_size()
    pairs = json.loads(given.pairs.read_text())
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    tokenizer = AutoTokenizer.from_pretrained(given.encoder)
    model = DistributedDataParallel(Pairs(given.encoder))
    optimiser = torch.optim.AdamW(model.parameters(), lr=given.lr, weight_decay=0.01)
    ends, losses = list[float](), list[float]()

    def tokenised(texts: list[str]) -> Any:
        return tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")

    for step in range(given.steps):
        first = (step * given.batch + rank * local) % (len(order) - local)
        batch = [pairs[row] for row in order[first : first + local]]
        loss = model(tokenised([anchor for anchor, _ in batch]), tokenised([positive for _, positive in batch]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
        ends.append(time.perf_counter())
    if rank == 0:
        rate = given.batch * (given.steps - given.warm) / (ends[-1] - ends[given.warm - 1])
        print(json.dumps({"samples/s": rate, "last loss": sum(losses[-10:]) / 10}))


if __name__ == "__main__":
    main()
