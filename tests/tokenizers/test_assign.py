"""Which SIDs an item gets: those of the recipe's modalities, or another item's where they are shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sidray.datasets import write_dataset
from sidray.embedding.pool import vector_column
from sidray.tokenizers.fit import fit_modalities, save_all
from sidray.tokenizers.run import Assigner, _assigner, shuffled
from sidray.tokenizers.settings import MODALITIES, TokenizerSettings
from sidray.tokenizers.vocabulary import SidVocabulary
from tests.tokenizers.conftest import mixture

N = 40


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizers step of two levels, and the vectors of N items, the third of which has no picture."""
    folder = tmp_path_factory.mktemp("tokenizers")
    vectors = {name: mixture(N, 8, 6, seed) for seed, name in enumerate(("text", "image", "item"))}
    settings = TokenizerSettings(kind="rkmeans", levels=2, entries=4)
    save_all(fit_modalities(vectors, {}, settings), folder / "tokenizers")
    SidVocabulary(levels=2, entries=4).save(folder / "vocabulary.json")
    image = vectors["image"].copy()
    image[2] = 0
    columns = {"text": vectors["text"], "image": image, "vector": vectors["item"], "picture": vectors["item"][::-1]}
    table = pa.table({name: vector_column(np.ascontiguousarray(value)) for name, value in columns.items()})
    write_dataset(str(folder / "items.lance"), table)
    return folder


def assigned(step: Path, modalities: list[str], shuffle: int | None = None) -> pa.Table:
    encode = _assigner(str(step), modalities, str(step / "items.lance"), shuffled(N, shuffle))
    return encode(np.arange(N))


@pytest.mark.parametrize("chosen", [["text"], ["item"], ["text", "image"], ["image", "item"], []])
def test_a_subset_is_those_columns_of_all(step: Path, chosen: list[str]) -> None:
    whole = np.array(assigned(step, list(MODALITIES))["sids"].to_pylist())
    table = assigned(step, chosen)
    places = [2 * MODALITIES.index(name) + level for name in MODALITIES if name in chosen for level in (0, 1)]
    assert np.array(table["sids"].to_pylist()).tolist() == whole[:, places].tolist()
    seen = 2 * len({"image", "item"} & set(chosen))
    assert [len(row) for row in table["picture_sids"].to_pylist()] == [0 if n == 2 else seen for n in range(N)]
    none = len(SidVocabulary(levels=2, entries=4)) - 1
    assert (none in table["sids"].to_pylist()[2]) == ("image" in chosen)


def test_shuffled_sids_are_another_items(step: Path) -> None:
    own, other = (assigned(step, ["text", "item"], shuffle).to_pylist() for shuffle in (None, 3))
    source = np.random.default_rng(3).permutation(N)
    assert other == [own[row] for row in source]
    assert sum(a != b for a, b in zip(own, other, strict=True)) > N / 2


def test_the_settings_keep_the_order_of_the_tokens() -> None:
    assert TokenizerSettings(modalities=["item", "text"]).modalities == ["text", "item"]
    assert [TokenizerSettings(modalities=m).of_pictures for m in (["text"], ["text", "item"], [])] == [
        False,
        True,
        False,
    ]


def test_a_new_item_alone_gets_the_same(step: Path) -> None:
    table = assigned(step, ["image", "item"])
    vectors = {name: mixture(N, 8, 6, seed)[7:8] for seed, name in enumerate(("text", "image", "item"))}
    assert Assigner(str(step), ["image", "item"]).sids(**vectors).tolist() == [table["sids"].to_pylist()[7]]
