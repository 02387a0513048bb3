"""How the SID tokens start in the language model: at random (the paper), or as what their codes mean.

    weight = codebook_embeddings(tokenizers, vocabulary, width=576)   # [len(vocabulary), 576]

A code's vector in its codebook, turned into the LM's width: the sum of an item's three tokens is then a rotation of
what the RQ-VAE kept of the item, so that one linear map reads it and rare codes begin where their neighbours are.
An LM normalises every token, which would make deep levels, small corrections, as large as the first. So one more
coordinate fills each vector up to the length of the first level: normalised, the levels keep their proportions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sidray.tokenizers.base import SemanticTokenizer
from sidray.tokenizers.vocabulary import SidVocabulary

VERSION = 3
STD = 0.02  # of random embeddings, and the root mean square of each modality's first level


def random_embeddings(count: int, width: int) -> Tensor:
    """[count, width], from torch's generator."""
    return torch.randn(count, width) * STD


def codebook_embeddings(
    tokenizers: Mapping[str, SemanticTokenizer], vocabulary: SidVocabulary, width: int, seed: int = 0
) -> Tensor:
    """[len(vocabulary), width]: the codebooks [L, K, c] of each modality, filled up to one length, under one random
    rotation per modality. Tokens without a code (<img_none>) stay random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weight = random_embeddings(len(vocabulary), width)
        start = 0
        for modality in vocabulary.modalities:
            codec = tokenizers[modality].codec
            assert codec is not None
            books = codec.codebooks.detach().float().cpu()  # [L, K, c]
            filled = fill_up(books)
            turned = filled @ nn.init.orthogonal_(torch.empty(filled.shape[-1], width))  # [L, K, width]
            rms = turned[0].square().mean().sqrt().clamp(min=1e-12)
            rows = turned.shape[0] * turned.shape[1]
            weight[start : start + rows] = (turned * STD / rms).reshape(rows, width)
            start += rows
    return weight


def fill_up(books: Tensor) -> Tensor:
    """[L, K, c] -> [L, K, c + 1]: vectors shorter than the first level's root mean square get that length."""
    squared = books.square().sum(-1, keepdim=True)  # [L, K, 1]
    return torch.cat([books, (squared[0].mean() - squared).clamp(min=0).sqrt()], -1)
