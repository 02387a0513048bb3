"""The start of the SID tokens: geometry of the codebooks, the vocabulary's order, the size of the text around them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from sidray.models.inputs import Segment
from sidray.models.trained import set_trainable
from sidray.tokenizers.base import SemanticTokenizer
from sidray.tokenizers.embeddings import STD, codebook_embeddings, fill_up
from sidray.tokenizers.rkmeans import RkMeansTokenizer
from sidray.tokenizers.settings import TokenizerSettings
from sidray.tokenizers.vocabulary import SidVocabulary
from sidray.training.new_tokens import start_sid_tokens
from tests.models.tiny import tiny_towers

WIDTH = 24
VOCABULARY = SidVocabulary(levels=2, entries={"text": 4, "image": 3, "item": 5})


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, SemanticTokenizer]:
    rng = np.random.default_rng(0)
    found: dict[str, SemanticTokenizer] = {}
    for modality, width in (("text", 8), ("image", 8), ("item", 6)):
        settings = TokenizerSettings(kind="rkmeans", levels=2, entries=VOCABULARY.entries_of(modality))
        found[modality] = RkMeansTokenizer(modality, settings)
        found[modality].fit(rng.normal(size=(60, width)).astype(np.float32))
    return found


def test_a_token_is_its_codebook_vector_turned(tokenizers: dict[str, SemanticTokenizer]) -> None:
    """All angles inside a modality, across its levels, are those of the codebooks; token by token of the vocabulary.
    The dot product with what fills a vector up comes on top."""
    weight = codebook_embeddings(tokenizers, VOCABULARY, WIDTH).double()
    assert weight.shape == (len(VOCABULARY), WIDTH)
    for index, modality in enumerate(VOCABULARY.modalities):
        codec = tokenizers[modality].codec
        assert codec is not None
        offsets = VOCABULARY.offsets[2 * index : 2 * index + 3]
        own = [weight[first:last] for first, last in pairwise(offsets)]
        books = list(codec.codebooks)
        length = books[0].square().sum(1).mean()
        fill = [(length - book.square().sum(1)).clamp(min=0).sqrt() for book in books]
        scale = own[1].square().sum(1).mean() / (books[1].square().sum(1) + fill[1].square()).mean()
        for a in range(2):
            for b in range(2):
                expected = books[a] @ books[b].T + fill[a][:, None] * fill[b]
                torch.testing.assert_close(own[a] @ own[b].T, expected * scale, rtol=1e-4, atol=1e-7)
        assert float(own[0].square().mean().sqrt()) == pytest.approx(STD, rel=1e-4)


def test_normalised_tokens_keep_the_proportions_of_their_levels() -> None:
    """What an LM makes of a token depends on its direction: the sum of two normalised levels is the sum of the codes,
    up to the one coordinate that fills them."""
    books = torch.tensor([[[3.0, 4.0], [-4.0, 3.0]], [[0.0, 1.0], [0.5, 0.0]]])
    filled = fill_up(books)
    unit = torch.nn.functional.normalize(filled, dim=-1)
    torch.testing.assert_close(unit[..., :2] * 5, books)
    torch.testing.assert_close(filled.norm(dim=-1), torch.full((2, 2), 5.0))


def test_the_start_is_seeded_and_leaves_torch_alone(tokenizers: dict[str, SemanticTokenizer]) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second = (codebook_embeddings(tokenizers, VOCABULARY, WIDTH) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first, codebook_embeddings(tokenizers, VOCABULARY, WIDTH, seed=1))
    assert 0.5 * STD < float(first[-1].std()) < 2 * STD  # <img_none> has no codebook


def test_codes_wider_than_the_language_model_fit_too(tokenizers: dict[str, SemanticTokenizer]) -> None:
    weight = codebook_embeddings(tokenizers, VOCABULARY, 4)
    assert weight.shape == (len(VOCABULARY), 4)
    assert bool(weight.isfinite().all())


def test_tokens_enter_at_the_size_of_the_text(tmp_path: Path) -> None:
    """Above a cut states are larger than embeddings: what enters the LM at SIDs is as large; scale is not trained."""
    towers = tiny_towers(tmp_path, 200)
    states = torch.randn(20, 5, towers.text.width).half() * 3
    states[:, 0] *= 100  # sinks

    class Texts:
        def items(self, rows: np.ndarray) -> list[Segment]:
            return [Segment(np.arange(5), states[row].numpy()) for row in rows]

    class Catalogue:
        n_items = 20

    class Fetch:
        texts = Texts()
        catalogue = Catalogue()

    start_sid_tokens(towers, Fetch(), "random")  # type: ignore[arg-type]
    assert towers.text.sids is not None
    entered = towers.text.sids(ids=torch.arange(200))
    assert float(entered.square().mean().sqrt()) == pytest.approx(3, rel=0.1)
    set_trainable(towers, ["text", "sids"])
    assert towers.text.sids.weight.requires_grad
    assert not towers.text.sids.scale.requires_grad
