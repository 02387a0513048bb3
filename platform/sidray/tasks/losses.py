"""InfoNCE over all ranks, in one screen.

Every rank holds its own anchors and positives. The positives of all ranks are the candidates (gathered with gradients),
so the loss of a global batch does not depend on how many ranks share it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order. Backward: the gradients of all ranks are summed and each takes its own rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        start = rank() * ctx.rows
        return grad[start : start + ctx.rows]


def gather(local: Tensor) -> Tensor:
    """[b, ...] -> [world * b, ...]; differentiable. Every rank must hold the same number of rows."""
    if world_size() == 1:
        return local
    if not local.is_floating_point():
        parts = [torch.empty_like(local) for _ in range(world_size())]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)
    apply = cast(Callable[[Tensor], Tensor], _Gather.apply)  # torch leaves Function.apply untyped
    return apply(local)


def among(candidates: Tensor, known: Tensor) -> Tensor:
    """[b, n] bool: which candidates [n] each row of `known` [b, k] has; it ascends, padded with the largest int64."""
    wanted = candidates.expand(len(known), -1).contiguous()  # [b, n]
    at = torch.searchsorted(known.contiguous(), wanted).clamp(max=known.shape[1] - 1)
    return known.gather(1, at) == wanted


def distinct(ids: Tensor, size: int) -> Tensor:
    """The different numbers among all ranks' ids [n], each below `size`: ascending [m]."""
    seen = torch.zeros(size, dtype=torch.uint8, device=ids.device)
    seen[ids] = 1
    if world_size() > 1:
        dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return seen.nonzero().squeeze(1)


def global_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean over all ranks, scaled so that averaging its gradients over the ranks gives the mean's gradient.

    values, weights: [b]. A batch without any weight gives zero (with a graph, so that every rank runs backward)."""
    total = weights.sum().detach()
    if world_size() > 1:
        dist.all_reduce(total)
    return (values * weights).sum() * world_size() / total.clamp(min=1e-12)


def info_nce(
    anchors: Tensor,
    candidates: Tensor,
    tau: float | Tensor,
    false_negatives: Tensor,
    valid: Tensor | None = None,
    positives: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE, SMGR eq. (4), with cosine similarity and the candidates of all ranks as negatives.

    anchors, candidates [b, d]; false_negatives [b, world * b] bool: candidates that are no negatives of the anchor (its
    own positive never counts as one); valid [b] bool: rows that take part, as anchor and as candidate; positives [b]:
    which of the rank's own candidates is the anchor's positive (None: the one of the same row).
    Returns the loss (a scalar) and each anchor's rank of its positive [b], 0 = first, ties above it.
    """
    everyone = gather(F.normalize(candidates.float(), dim=-1))  # [world * b, d]
    scores = F.normalize(anchors.float(), dim=-1) @ everyone.T / tau  # [b, world * b]
    rows = torch.arange(len(anchors), device=anchors.device)
    own = (rows if positives is None else positives) + rank() * len(anchors)
    valid = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device) if valid is None else valid
    out = ~gather(valid) | false_negatives  # [b, world * b]
    out[rows, own] = False
    scores = scores.masked_fill(out, float("-inf"))
    losses = F.cross_entropy(scores, own, reduction="none")
    with torch.no_grad():
        better = (~(scores < scores[rows, own][:, None])).sum(1) - 1  # [b]; a NaN is above all, never below
    return global_mean(losses, valid.float()), better


def recalls(better: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """R@1 and R@10 of what `info_nce` says of each anchor, over all ranks."""
    return {f"R@{k}": global_mean((better < k).float(), weights).detach() for k in (1, 10)}


def hard_info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, valid: Tensor, tau: float) -> Tensor:
    """InfoNCE of each anchor against its own hard negatives alone.

    anchors, positives [b, d]; negatives [b, h, d]; valid [b, h] bool. Rows without a negative take no part."""
    q = F.normalize(anchors.float(), dim=-1)
    positive = (q * F.normalize(positives.float(), dim=-1)).sum(-1, keepdim=True)  # [b, 1]
    others = torch.einsum("bd,bhd->bh", q, F.normalize(negatives.float(), dim=-1))
    scores = torch.cat([positive, others.masked_fill(~valid, float("-inf"))], 1) / tau  # [b, 1 + h]
    target = torch.zeros(len(q), dtype=torch.long, device=q.device)
    return global_mean(F.cross_entropy(scores, target, reduction="none"), valid.any(1).float())
