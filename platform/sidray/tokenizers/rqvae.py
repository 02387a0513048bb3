"""RQ-VAE (SMGR, appendix A): an encoder, residual codebooks and a decoder, trained together by eq. (14).

    tokenizer = RqVaeTokenizer("item", TokenizerSettings());  history = tokenizer.fit(train_vectors, valid_vectors)

Against the collapse of codebooks: standardised inputs, k-means initialisation of every level's residuals, and codes
that no row has used for `dead_code_after` steps are seeded anew from the batch's residuals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sidray.errors import UserError
from sidray.models.inference import inference_device
from sidray.tokenizers.base import (
    History,
    SemanticTokenizer,
    Vectors,
    check_shape,
    sample,
    statistics,
)
from sidray.tokenizers.residual import Quantised, ResidualCodec, residual_kmeans
from sidray.tokenizers.settings import TokenizerSettings


class RqVaeLoss(NamedTuple):
    """The parts of eq. (14), each summed over dimensions (and levels) and averaged over the batch; unweighted."""

    total: Tensor
    reconstruction: Tensor
    codebook: Tensor
    commitment: Tensor


def rqvae_loss(h: Tensor, h_hat: Tensor, quantised: Quantised, beta: float, gamma: float) -> RqVaeLoss:
    """Eq. (14): ||h - h_hat||^2 + beta * sum_l(||sg[r] - e||^2 + gamma * ||r - sg[e]||^2).

    h, h_hat: [B, d]. Every norm is a sum over dimensions: a mean in the
    first one would weigh it d times too low against the others."""

    def squared(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().sum(-1).mean()

    pairs = list(zip(quantised.residuals, quantised.chosen, strict=True))  # r(l) and e(l), each [B, c]
    reconstruction = squared(h, h_hat)
    codebook = torch.stack([squared(r.detach(), e) for r, e in pairs]).sum()
    commitment = torch.stack([squared(r, e.detach()) for r, e in pairs]).sum()
    return RqVaeLoss(reconstruction + beta * (codebook + gamma * commitment), reconstruction, codebook, commitment)


def pyramid(widths: list[int]) -> nn.Sequential:
    """Linear layers through the widths with a ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class RqVae(ResidualCodec):
    """The network: widths [d, ..., c] down, L codebooks of K codes, the same widths up."""

    def __init__(self, widths: list[int], levels: int, entries: int) -> None:
        super().__init__(widths[0], widths[-1], levels, entries, encoder=pyramid(widths), decoder=pyramid(widths[::-1]))

    def loss(self, h: Tensor, beta: float, gamma: float) -> tuple[RqVaeLoss, Quantised]:
        """Eq. (14) on standardised vectors [B, d]. The decoder reads the codes' sum; its gradient goes straight
        through to the encoder and reaches no codebook."""
        latent = self.encoder(h)  # [B, c], r(1)
        quantised = self.quantise(latent)
        summed = torch.stack(quantised.chosen).sum(0)
        straight = latent + (summed - latent).detach()
        h_hat = self.decoder(straight)
        return rqvae_loss(h, h_hat, quantised, beta, gamma), quantised


class DeadCodes:
    """Counts the steps since each code was last used, and seeds the codes anew that are past the limit."""

    def __init__(self, codebooks: nn.Parameter, limit: int, seed: int) -> None:
        self.codebooks = codebooks
        self.limit = limit
        self.idle = torch.zeros(codebooks.shape[:2], dtype=torch.int64, device=codebooks.device)  # [L, K]
        self.rng = torch.Generator().manual_seed(seed)
        self.resets = 0

    @torch.no_grad()
    def step(self, quantised: Quantised, optimiser: torch.optim.Optimizer) -> None:
        """After an optimiser step: a dead code becomes a random residual of its level from this batch, and what the
        optimiser remembers about it is forgotten."""
        used = torch.zeros_like(self.idle).scatter_(1, quantised.codes.T, 1)  # [L, K]
        self.idle = (self.idle + 1) * (1 - used)
        for level, residual in enumerate(quantised.residuals):
            dead = (self.idle[level] >= self.limit).nonzero().flatten()
            if len(dead) == 0:
                continue
            rows = torch.randperm(len(residual), generator=self.rng).repeat(math.ceil(len(dead) / len(residual)))
            self.codebooks[level, dead] = residual[rows[: len(dead)].to(residual.device)]
            for moment in optimiser.state[self.codebooks].values():
                if moment.shape == self.codebooks.shape:
                    moment[level, dead] = 0
            self.idle[level, dead] = 0
            self.resets += len(dead)


class RqVaeTokenizer(SemanticTokenizer):
    """SMGR's tokenizer."""

    kind = "rqvae"

    def build(self, width: int) -> RqVae:
        return RqVae(self.settings.widths(self.modality, width), self.levels, self.entries)

    def fit(self, vectors: Vectors, valid: Vectors | None = None) -> History:
        """Trains for `epochs`; with `valid` the epoch that reconstructs it best is kept, else the last.

        The history has per epoch: the parts of the loss, resets, the share of codes used on each level, and with
        `valid` its reconstruction error."""
        check_shape(vectors, self.modality)
        codec = self._initialised(vectors).to(inference_device())
        self.codec, self.history = codec, []
        optimiser = _optimiser(codec, self.settings)
        dead = DeadCodes(codec.codebooks, self.settings.dead_code_after, self.settings.seed)
        best: tuple[float, dict[str, Tensor]] | None = None
        for epoch in range(self.settings.epochs):
            record = self._epoch(codec, vectors, optimiser, dead, epoch)
            self.history.append(record)
            if valid is not None:
                record["valid_reconstruction"] = self.error(valid)
                if best is None or record["valid_reconstruction"] < best[0]:
                    best = record["valid_reconstruction"], {k: v.clone() for k, v in codec.state_dict().items()}
        if best is not None:
            codec.load_state_dict(best[1])
        self.finish(codec)
        return self.history

    def _initialised(self, vectors: Vectors) -> RqVae:
        """Seeded weights, statistics of the training vectors, k-means of the encoder's outputs on every level."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.settings.seed)
            codec = self.build(vectors.shape[1])
        mean, std = statistics(vectors, self.modality)
        if self.settings.standardise:
            codec.mean.copy_(mean)
            codec.std.copy_(std)
        with torch.no_grad():
            rows = torch.from_numpy(sample(vectors, self.entries, self.settings.seed))
            latent = codec.encoder(codec.standardise(rows))
            codec.codebooks.copy_(residual_kmeans(latent, self.levels, self.entries, self.settings.seed))
        return codec

    def _epoch(
        self, codec: RqVae, vectors: Vectors, optimiser: torch.optim.Optimizer, dead: DeadCodes, epoch: int
    ) -> dict[str, float]:
        codec.train()
        resets = dead.resets
        sums = torch.zeros(4, dtype=torch.float64)
        used = torch.zeros(self.levels, self.entries, dtype=torch.bool, device=codec.mean.device)
        for rows in self._shuffled(vectors, epoch):
            h = codec.standardise(torch.from_numpy(rows).to(codec.mean))
            losses, quantised = codec.loss(h, self.settings.beta, self.settings.gamma)
            optimiser.zero_grad()
            torch.autograd.backward(losses.total)
            optimiser.step()
            dead.step(quantised, optimiser)
            used.scatter_(1, quantised.codes.T, True)
            sums += torch.stack(losses).detach().cpu() * len(rows)
        if not bool(torch.isfinite(sums).all()):
            raise UserError(
                f"the {self.modality} tokenizer diverged in epoch {epoch}: its loss is not finite",
                f"lower tokenizer.lr={self.settings.lr:g}",
            )
        record: dict[str, float] = {"epoch": epoch, "resets": dead.resets - resets}
        record |= dict(zip(RqVaeLoss._fields, (sums / len(vectors)).tolist(), strict=True))
        return record | {f"used_{level}": float(row.float().mean()) for level, row in enumerate(used, start=1)}

    def _shuffled(self, vectors: Vectors, epoch: int) -> Iterator[Vectors]:
        """Batches of one seeded permutation; rows of a batch are read in file order, which suits memory maps."""
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(vectors))
        for start in range(0, len(order), self.settings.batch_size):
            rows = np.sort(order[start : start + self.settings.batch_size])
            yield np.array(vectors[rows], dtype=np.float32)


def _optimiser(codec: RqVae, settings: TokenizerSettings) -> torch.optim.AdamW:
    """AdamW; weight decay on the matrices alone, since it would pull codes and biases towards zero."""
    matrices = [module.weight for module in codec.modules() if isinstance(module, nn.Linear)]
    others = [parameter for parameter in codec.parameters() if all(parameter is not matrix for matrix in matrices)]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr)
