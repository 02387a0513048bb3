"""New tokens before their first stage: of the size of the text around them. SIDs, visual embeddings and <IMG_EMB>."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch

from sidray import storage
from sidray.data.catalogue import Catalogue, Rows
from sidray.models.fetch import Fetch
from sidray.models.inputs import Segment
from sidray.models.mlrm import Mlrm, Standard
from sidray.models.note_inputs import NoteFetch, note_input
from sidray.models.text import TextEncoder
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
    sids.scale.fill_(text_size(towers.text, fetch.texts.items(sample(fetch.catalogue))) / STD)
    if start == "codebook":
        uri = str(fetch.sources.tokenizers)
        tokenizers = load_all(storage.local_folder(uri) / "tokenizers")
        vocabulary = SidVocabulary.load(storage.join(uri, "vocabulary.json"))
        sids.weight.copy_(codebook_embeddings(tokenizers, vocabulary, towers.text.width))


@torch.no_grad()
def start_visual_tokens(model: Mlrm, fetch: NoteFetch) -> None:
    """Sets how large visual embeddings and <IMG_EMB> are beside the states of the prompts' text."""
    if model.connector is None:
        return
    segments = fetch.segments(sample(fetch.catalogue), model.note.prompt("multimodal"))
    size = text_size(model.text, [_text_of(segment, model.base) for segment in segments])
    model.connector.scale.fill_(size)
    if model.text.sids is not None:
        model.text.sids.scale.fill_(size / STD)


@torch.no_grad()
def start_standards(model: Mlrm, fetch: NoteFetch) -> None:
    """Fits what standardises the compressed words and the picture's whole on the first items."""
    model.eval()
    words: list[torch.Tensor] = []
    wholes: list[torch.Tensor] = []
    rows = sample(fetch.catalogue)
    for start in range(0, len(rows), 32):
        notes = note_input(fetch(rows[start : start + 32]), "note")
        grid = None if notes.image is None else model.grid(notes.image)
        if notes.image is not None and grid is not None and model.whole is not None:
            wholes.append(model.whole.normalise(model.whole_of(grid))[notes.image.present])
        if notes.text is not None:
            words.append(model.compressed(notes.text, grid))
    if model.whole is not None and wholes:
        model.whole.standard.fit(torch.cat(wholes))
    if words:
        for standard, values in zip(model.standards, torch.cat(words).unbind(1), strict=True):
            cast(Standard, standard).fit(values)


def _text_of(segment: Segment, base: int) -> Segment:
    """Without the other tokens."""
    is_text = (segment.ids >= 0) & (segment.ids < base)
    return Segment(segment.ids[is_text], None if segment.states is None else segment.states[is_text])


def sample(catalogue: Catalogue) -> Rows:
    """The rows of the first items."""
    return np.arange(min(SAMPLE, catalogue.n_items))


def text_size(text: TextEncoder, segments: Sequence[Segment]) -> float:
    """Root mean square of what enters the trained layers at a token: the median over all tokens, which the few huge
    states (attention sinks) do not move."""
    sizes = []
    for segment in segments:
        ids = torch.from_numpy(segment.ids)[None]
        cached = segment.states
        states = torch.from_numpy(cached) if cached is not None else text.states(ids, ids >= 0)[0]
        sizes.append(states.float().square().mean(-1).sqrt())
    return float(torch.cat(sizes).median())
