"""New tokens before their first stage: like the text around them. SIDs, visual embeddings and <IMG_EMB>."""

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
    states = text_states(towers.text, fetch.texts.items(sample(fetch.catalogue)))
    sids.scale.fill_(float(sizes(states).median()) / STD)  # the few huge states (attention sinks) do not move it
    if start == "codebook":
        uri = str(fetch.sources.tokenizers)
        tokenizers = load_all(storage.local_folder(uri) / "tokenizers")
        vocabulary = SidVocabulary.load(storage.join(uri, "vocabulary.json"))
        sids.weight.copy_(codebook_embeddings(tokenizers, vocabulary, towers.text.width, towers.settings.seed))


@torch.no_grad()
def start_visual_tokens(model: Mlrm, fetch: NoteFetch) -> None:
    """Gives visual embeddings the mean and the deviation of the prompts' text, dimension by dimension, and <IMG_EMB>
    nearly so: one deviation for all."""
    if model.connector is None:
        return
    segments = fetch.segments(paired_sample(fetch.catalogue), model.note.prompt("multimodal"))
    states = usual(text_states(model.text, [_text_of(segment, model.base) for segment in segments]))
    model.connector.mean.copy_(states.mean(0))
    model.connector.scale.copy_(states.std(0))
    if (sids := model.text.sids) is not None:
        sids.scale.fill_(float(states.std(0).square().mean().sqrt()) / STD)
        sids.weight.add_(states.mean(0) / sids.scale)


@torch.no_grad()
def start_standards(model: Mlrm, fetch: NoteFetch) -> None:
    """Fits what standardises the compressed words and the picture's whole on notes of train pairs, without dropout."""
    training = model.training
    model.eval()
    words: list[list[torch.Tensor]] = [[] for _ in model.standards]
    wholes: list[torch.Tensor] = []
    rows = paired_sample(fetch.catalogue)
    for start in range(0, len(rows), 32):
        notes = note_input(fetch(rows[start : start + 32]), "note")
        grid = None if notes.image is None else model.grid(notes.image)
        if notes.image is not None and grid is not None and model.whole is not None:
            wholes.append(model.whole.normalise(model.whole_of(grid))[notes.image.present])
        if notes.text is not None:
            *visual, multimodal = model.compressed(notes.text, grid).unbind(1)
            has_visual = (notes.text.ids == model.base).any(1)  # [b]: there is an n_v
            for found, word in zip(words, [*(n_v[has_visual] for n_v in visual), multimodal], strict=True):
                found.append(word)
    if model.whole is not None and wholes:
        model.whole.standard.fit(torch.cat(wholes))
    for standard, values in zip(model.standards, words, strict=True):
        if values:
            cast(Standard, standard).fit(torch.cat(values))
    model.train(training)


def _text_of(segment: Segment, base: int) -> Segment:
    """Without the other tokens."""
    is_text = (segment.ids >= 0) & (segment.ids < base)
    return Segment(segment.ids[is_text], None if segment.states is None else segment.states[is_text])


def sample(catalogue: Catalogue) -> Rows:
    """The rows of some items, whatever the catalogue's order."""
    return _some(np.arange(catalogue.n_items))


def paired_sample(catalogue: Catalogue) -> Rows:
    """The rows of some items of train pairs."""
    return _some(catalogue.paired_items("train"))


def _some(rows: Rows) -> Rows:
    """At most SAMPLE of the rows: always the same ones, in order."""
    return rows if len(rows) <= SAMPLE else np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))


def text_states(text: TextEncoder, segments: Sequence[Segment]) -> torch.Tensor:
    """What enters the trained layers at every token of the segments: [n, d]."""
    found = []
    for segment in segments:
        ids = torch.from_numpy(segment.ids)[None]
        cached = segment.states
        states = torch.from_numpy(cached) if cached is not None else text.states(ids, ids >= 0)[0]
        found.append(states.float())
    return torch.cat(found)


def sizes(states: torch.Tensor) -> torch.Tensor:
    """Root mean square of each state: [n, d] -> [n]."""
    return states.square().mean(-1).sqrt()


def usual(states: torch.Tensor) -> torch.Tensor:
    """Without the few huge states (attention sinks): those of at most three times the median size."""
    size = sizes(states)
    return states[size <= 3 * size.median()]
