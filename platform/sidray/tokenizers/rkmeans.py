"""Residual k-means: the reference tokenizer. No network: each level is the k-means of what the last one left.

    tokenizer = RkMeansTokenizer("item", TokenizerSettings(kind="rkmeans"));  tokenizer.fit(train_vectors)

It fits in seconds, and its reconstruction is what an RQ-VAE of the same size has to come near to.
"""

from __future__ import annotations

import torch

from sidray.tokenizers.base import History, SemanticTokenizer, Vectors, check_shape, sample, statistics
from sidray.tokenizers.residual import ResidualCodec, residual_kmeans


class RkMeansTokenizer(SemanticTokenizer):
    """Eq. (13) on the standardised vectors themselves."""

    kind = "rkmeans"

    def build(self, width: int) -> ResidualCodec:
        return ResidualCodec(width, width, self.levels, self.entries)

    @torch.no_grad()
    def fit(self, vectors: Vectors, valid: Vectors | None = None) -> History:
        """One pass: statistics, then k-means level by level on a seeded sample (`base.ROWS_PER_CENTROID`)."""
        check_shape(vectors, self.modality)
        codec = self.build(vectors.shape[1])
        mean, std = statistics(vectors, self.modality)
        if self.settings.standardise:
            codec.mean.copy_(mean)
            codec.std.copy_(std)
        codec.double()
        rows = torch.from_numpy(sample(vectors, self.entries, self.settings.seed)).double()
        codec.codebooks.copy_(residual_kmeans(codec.standardise(rows), self.levels, self.entries, self.settings.seed))
        self.finish(codec)
        record = {"epoch": 0.0, "reconstruction": self.error(vectors)}
        if valid is not None:
            record["valid_reconstruction"] = self.error(valid)
        self.history = [record]
        return self.history
