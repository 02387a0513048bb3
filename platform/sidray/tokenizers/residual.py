"""Residual quantisation, SMGR eq. (13): what every tokenizer here shares. Nearest codes, residual k-means, and the
codec: standardise -> encoder -> codebooks of residuals -> decoder -> back to the original scale.

    codec = ResidualCodec(width=128, code_width=128, levels=3, entries=32)
    codec.codebooks.data.copy_(residual_kmeans(rows, levels=3, entries=32, seed=0));  codec.quantise(z).codes
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# Distances that differ by less than this share of their scale count as equal, and the lowest code wins. In float64
# that is far above what the order of a sum can change and far below any difference that matters, so that codes
# depend neither on the batch a row comes in, nor on the number of threads, nor on the device.
TIE = 1e-10
KMEANS_ITERATIONS = 25


class Quantised(NamedTuple):
    """One pass through the levels l = 1..L of eq. (13)."""

    codes: Tensor  # [B, L] int64
    residuals: list[Tensor]  # L x [B, c]: r(l)
    chosen: list[Tensor]  # L x [B, c]: e(l), the code's vector


def nearest(residual: Tensor, codebook: Tensor) -> Tensor:
    """The code of the closest vector for each row, [B, c] and [K, c] -> [B]; of (near) equals, the lowest code."""
    own = residual.square().sum(-1, keepdim=True)  # [B, 1]
    other = codebook.square().sum(-1)  # [K]
    distance = own - 2 * residual @ codebook.T + other  # [B, K]
    best = distance.min(-1, keepdim=True).values
    return (distance <= best + TIE * (own + other.min())).to(torch.uint8).argmax(-1)


class ResidualCodec(nn.Module):
    """Vectors [B, d] to codes [B, L] and back. All of its state is in the state dict: the statistics that
    standardise, the codebooks, and the weights of encoder and decoder (none: codes quantise the vectors themselves)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        width: int,
        code_width: int,
        levels: int,
        entries: int,
        *,
        encoder: nn.Module | None = None,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.encoder = encoder or nn.Identity()
        self.decoder = decoder or nn.Identity()
        self.codebooks = nn.Parameter(torch.zeros(levels, entries, code_width))  # [L, K, c]

    def standardise(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.std

    def restore(self, standardised: Tensor) -> Tensor:
        """The inverse of `standardise`."""
        return standardised * self.std + self.mean

    def quantise(self, latent: Tensor) -> Quantised:
        """Eq. (13) on the encoder's output r(1) = `latent`, [B, c].

        The residual passes gradients to the encoder alone: each codebook learns from its own level's term."""
        codes, residuals, chosen = [], [], []
        residual = latent
        for codebook in self.codebooks:  # [K, c]
            code = nearest(residual.detach(), codebook.detach())
            vector = nn.functional.embedding(code, codebook)
            codes.append(code)
            residuals.append(residual)
            chosen.append(vector)
            residual = residual - vector.detach()
        return Quantised(torch.stack(codes, -1), residuals, chosen)

    def look_up(self, codes: Tensor) -> Tensor:
        """The vectors e(1)..e(L) of given codes: [B, L] -> [B, L, c]."""
        levels = torch.arange(codes.shape[1], device=codes.device)
        return self.codebooks[levels, codes]


def kmeans(rows: npt.NDArray[np.float64], entries: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """`entries` centroids [entries, c] of rows [N, c] by k-means++ and Lloyd's iterations.

    With no more distinct rows than entries the centroids are these rows, and the first fills what is left."""
    from scipy.cluster.vq import kmeans2  # .7 s, which whoever only reads SIDs need not wait for

    distinct = np.unique(rows, axis=0)
    if len(distinct) <= entries:
        return np.concatenate([distinct, np.repeat(distinct[:1], entries - len(distinct), axis=0)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cluster that empties keeps its centroid: health reports dead codes
        centroids, _ = kmeans2(rows, plus_plus(rows, entries, rng), iter=KMEANS_ITERATIONS, minit="matrix")
    return np.asarray(centroids, dtype=np.float64)


def plus_plus(rows: npt.NDArray[np.float64], entries: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """`entries` of the rows [N, c], which has more distinct ones: each drawn with a chance that grows as the squared
    distance to the nearest one so far (Arthur and Vassilvitskii, 2007). O(N * entries), where scipy's own initialiser
    measures every earlier choice again for each new one."""
    from scipy.spatial.distance import cdist

    chosen = [int(rng.integers(len(rows)))]
    nearest_squared = np.full(len(rows), np.inf)
    while len(chosen) < entries:
        squared = cdist(rows, rows[chosen[-1:]], "sqeuclidean")[:, 0]
        nearest_squared = np.minimum(nearest_squared, squared)
        chosen.append(int(rng.choice(len(rows), p=nearest_squared / nearest_squared.sum())))
    return rows[chosen]


def residual_kmeans(latent: Tensor, levels: int, entries: int, seed: int) -> Tensor:
    """Codebooks [L, K, c] (float32): k-means of the rows [N, c], then of each level's residuals (eq. 13)."""
    rng = np.random.default_rng(seed)
    residual = latent.detach().to("cpu", torch.float64)
    codebooks = []
    for _ in range(levels):
        codebook = torch.from_numpy(kmeans(residual.numpy(), entries, rng)).float()  # rounded as it will be stored
        codebooks.append(codebook)
        residual = residual - codebook.double()[nearest(residual, codebook.double())]
    return torch.stack(codebooks)
