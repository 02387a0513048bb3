"""The SID tokens before their first stage: of the size of the text around them, at random or from the codebooks."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from sidray import storage
from sidray.models.fetch import Fetch
from sidray.models.towers import Towers
from sidray.tokenizers.embeddings import STD, codebook_embeddings
from sidray.tokenizers.fit import load_all
from sidray.tokenizers.vocabulary import SidVocabulary

SAMPLE = 256  # items whose text is looked at


@torch.no_grad()
def start_sid_tokens(towers: Towers, fetch: Fetch, start: Literal["random", "codebook"]) -> None:
    """Sets embeddings and scale, where no earlier stage has trained them."""
    sids = towers.text.sids
    assert sids is not None
    sids.scale.fill_(text_size(towers, fetch) / STD)
    if start == "codebook":
        uri = str(fetch.sources.tokenizers)
        tokenizers = load_all(storage.local_folder(uri) / "tokenizers")
        vocabulary = SidVocabulary.load(storage.join(uri, "vocabulary.json"))
        sids.weight.copy_(codebook_embeddings(tokenizers, vocabulary, towers.text.width))


def text_size(towers: Towers, fetch: Fetch) -> float:
    """Root mean square of what enters the trained layers at a token: the median over the tokens of the first items,
    which the few huge states (attention sinks) do not move."""
    segments = fetch.texts.items(np.arange(min(SAMPLE, fetch.catalogue.n_items)))
    sizes = []
    for segment in segments:
        ids = torch.from_numpy(segment.ids)[None]
        cached = segment.states
        states = torch.from_numpy(cached) if cached is not None else towers.text.states(ids, ids >= 0)[0]
        sizes.append(states.float().square().mean(-1).sqrt())
    return float(torch.cat(sizes).median())
