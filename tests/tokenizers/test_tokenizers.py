"""What both tokenizers promise: exactness, codes that no batch changes, files, errors, parallel fitting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidray.errors import UserError
from sidray.tokenizers import base
from sidray.tokenizers.base import SemanticTokenizer
from sidray.tokenizers.fit import TOKENIZERS, fit_modalities, load_all, load_tokenizer, save_all
from sidray.tokenizers.rkmeans import RkMeansTokenizer
from sidray.tokenizers.settings import TokenizerSettings
from tests.tokenizers.conftest import mixture

KINDS = ["rqvae", "rkmeans"]


def make(kind: str, **changes: Any) -> SemanticTokenizer:
    values = {"kind": kind, "entries": 8, "epochs": 3, "batch_size": 64, **changes}
    return TOKENIZERS[kind]("item", TokenizerSettings(**values))


@pytest.fixture(scope="module", params=KINDS)
def lattice(request: pytest.FixtureRequest) -> SemanticTokenizer:
    """Fitted on integer points, with twice the same code in each codebook: equal distances are everywhere."""
    rows = np.random.default_rng(0).integers(-2, 3, (300, 6)).astype(np.float32)
    tokenizer = make(request.param, standardise=False)
    tokenizer.fit(rows)
    assert tokenizer.codec is not None
    tokenizer.codec.codebooks[:, 5] = tokenizer.codec.codebooks[:, 1]
    return tokenizer


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.booleans())
@settings(max_examples=60)
def test_a_row_has_the_same_codes_alone_and_in_any_batch(
    lattice: SemanticTokenizer, seed: int, count: int, integers: bool
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(-2, 3, (count, 6)) if integers else rng.normal(size=(count, 6)) * 2
    rows = points.astype(np.float32)
    codes = lattice.encode(rows)
    assert (codes.dtype, codes.shape) == (np.int32, (count, 3))
    order = rng.permutation(count)
    np.testing.assert_array_equal(lattice.encode(rows[order]), codes[order])
    for index in range(count):
        np.testing.assert_array_equal(lattice.encode(rows[index : index + 1]), codes[index : index + 1])
    assert 5 not in codes  # the twin of code 1: the lower one wins


def test_batches_and_threads_do_not_matter(lattice: SemanticTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).integers(-2, 3, (500, 6)).astype(np.float32)
    codes, vectors = lattice.encode(rows), lattice.quantise(rows)
    monkeypatch.setattr(base, "BATCH", 7)
    torch.set_num_threads(2)
    np.testing.assert_array_equal(lattice.encode(rows), codes)
    np.testing.assert_allclose(lattice.quantise(rows), vectors, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_distances_resolve_to_the_lowest_code_in_any_batch(kind: str) -> None:
    rng = np.random.default_rng(0)
    tokenizer = make(kind, entries=32, epochs=1, standardise=False)
    tokenizer.fit(rng.normal(size=(200, 48)).astype(np.float32))
    assert tokenizer.codec is not None
    tokenizer.codec.codebooks[:, 16:] = tokenizer.codec.codebooks[:, :16].flip(1)  # each code has a twin
    rows = rng.normal(size=(3000, 48)).astype(np.float32)
    codes = tokenizer.encode(rows)
    assert codes.max() < 16
    for size in (1, 5, 67):
        found = np.concatenate([tokenizer.encode(rows[start : start + size]) for start in range(0, 400, size)])
        np.testing.assert_array_equal(found[:400], codes[:400])


@pytest.mark.parametrize("kind", KINDS)
def test_near_ties_are_told_apart_beyond_float32(kind: str) -> None:
    rng = np.random.default_rng(0)
    tokenizer = make(kind, levels=1, entries=128, epochs=1, standardise=False)
    rows = rng.normal(size=(64, 48)).astype(np.float32)
    tokenizer.fit(rows)
    assert tokenizer.codec is not None
    latent = tokenizer.codec.encoder(torch.from_numpy(rows).double()).numpy()
    steps = rng.normal(size=(64, 2, latent.shape[1]))
    steps *= 0.1 / np.linalg.norm(steps, axis=-1, keepdims=True)
    pairs = (latent[:, None] + steps).astype(np.float32)  # two codes for each row, equally far up to rounding
    tokenizer.codec.codebooks[0] = torch.from_numpy(pairs.reshape(128, -1))
    found = tokenizer.encode(rows)[:, 0]
    distance = np.square(latent[:, None] - pairs.reshape(1, 128, -1).astype(np.float64)).sum(-1)
    assert (distance[np.arange(64), found] - distance.min(1)).max() < 2e-10 * np.square(latent).sum(1).max()
    assert [int(tokenizer.encode(row[None])[0, 0]) for row in rows] == found.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cpu_and_cuda_give_the_same_codes(lattice: SemanticTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(1).integers(-2, 3, (5000, 6)).astype(np.float32)
    on_cuda = lattice.encode(rows)
    monkeypatch.setattr(base, "inference_device", lambda: torch.device("cpu"))
    np.testing.assert_array_equal(lattice.encode(rows), on_cuda)


def test_rkmeans_with_an_entry_for_each_row_is_exact(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(20, 5)).astype(np.float32)
    for entries in (20, 32):
        tokenizer = make("rkmeans", entries=entries)
        tokenizer.fit(rows)
        np.testing.assert_allclose(tokenizer.quantise(rows), rows, atol=1e-6)
        assert len(np.unique(tokenizer.encode(rows)[:, 0])) == 20


@pytest.mark.parametrize("kind", KINDS)
def test_levels_refine(kind: str) -> None:
    rows = mixture(600, 16, 40)
    tokenizer = make(kind, epochs=20)
    tokenizer.fit(rows)
    codes = tokenizer.encode(rows)
    levels = [tokenizer.decode(codes[:, :level]) for level in (1, 2, 3)]
    errors = [float(np.square(rows - level).sum()) for level in levels]
    assert [level.dtype for level in levels] == [np.float32] * 3
    assert errors[0] > errors[1] > errors[2]
    np.testing.assert_array_equal(levels[2], tokenizer.quantise(rows))
    assert tokenizer.codec is not None
    scaled = (rows - levels[2]) / tokenizer.codec.std.numpy()
    assert tokenizer.error(rows) == pytest.approx(float(np.square(scaled).sum(1).mean()), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_keep_every_code(kind: str, tmp_path: Path) -> None:
    rows = mixture(300, 8, 20)
    tokenizer = make(kind)
    tokenizer.fit(rows, rows[:50])
    tokenizer.save(tmp_path / "item")
    assert sorted(path.name for path in (tmp_path / "item").iterdir()) == ["tokenizer.json", "tokenizer.safetensors"]
    loaded = load_tokenizer(tmp_path / "item")
    assert type(loaded) is type(tokenizer)
    assert (loaded.modality, loaded.settings, loaded.history) == ("item", tokenizer.settings, tokenizer.history)
    np.testing.assert_array_equal(loaded.encode(rows), tokenizer.encode(rows))
    np.testing.assert_array_equal(loaded.quantise(rows), tokenizer.quantise(rows))


def test_damaged_folders_name_the_file(tmp_path: Path) -> None:
    tokenizer = make("rkmeans")
    tokenizer.fit(mixture(50, 4, 5))
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(UserError, match="holds no tokenizers"):
        load_all(tmp_path / "absent")
    tokenizer.save(tmp_path / "a")
    weights = tmp_path / "a" / "tokenizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        load_tokenizer(tmp_path / "a")
    weights.unlink()
    with pytest.raises(UserError, match=r"tokenizer\.safetensors"):
        load_tokenizer(tmp_path / "a")
    tokenizer.save(tmp_path / "b")
    config = tmp_path / "b" / "tokenizer.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"width": 5}))
    with pytest.raises(UserError, match=r"tokenizer\.safetensors does not fit"):
        load_tokenizer(tmp_path / "b")
    config.write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(tmp_path / "b")


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_vectors_are_named(kind: str) -> None:
    rows = mixture(50, 4, 5)
    bad = rows.copy()
    bad[31, 2] = np.nan
    with pytest.raises(UserError, match="item vector in row 31 is not finite"):
        make(kind).fit(bad)
    with pytest.raises(UserError, match=r"shape \(0, 4\)"):
        make(kind).fit(rows[:0])
    tokenizer = make(kind)
    with pytest.raises(RuntimeError, match="neither fitted nor loaded"):
        tokenizer.encode(rows)
    tokenizer.fit(rows)
    with pytest.raises(UserError, match="have 3 dimensions, its tokenizer was fitted on 4"):
        tokenizer.encode(rows[:, :3])
    with pytest.raises(UserError, match="row 31"):
        tokenizer.encode(bad)
    assert tokenizer.encode(rows[:0]).shape == (0, 3)  # a batch in which no item has a picture
    assert tokenizer.quantise(rows[:0]).shape == (0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_few_or_equal_rows_and_memory_maps(kind: str, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", mixture(100, 6, 10))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    tokenizer = make(kind)
    tokenizer.fit(mapped)
    assert tokenizer.encode(mapped).shape == (100, 3)
    for rows in (np.ones((10, 6), np.float32), mapped[:1], mapped[:3]):
        few = make(kind)
        few.fit(rows)
        assert np.isfinite(few.quantise(rows)).all()


def check_modalities(tmp_path: Path) -> None:
    vectors = {"text": mixture(200, 16, 10), "image": mixture(150, 12, 10, 1), "item": mixture(200, 8, 10, 2)}
    config = TokenizerSettings(entries={"text": 8, "image": 4, "item": 8}, epochs=2, hidden={"item": [8, 4]})
    tokenizers = fit_modalities(vectors, {"item": vectors["item"][:20]}, config)
    assert list(tokenizers) == ["text", "image", "item"]
    assert "valid_reconstruction" in tokenizers["item"].history[0]
    assert "valid_reconstruction" not in tokenizers["text"].history[0]
    save_all(tokenizers, tmp_path)
    loaded = load_all(tmp_path)
    for modality, rows in vectors.items():
        np.testing.assert_array_equal(loaded[modality].encode(rows), tokenizers[modality].encode(rows))
    assert loaded["image"].entries == 4
    rows = vectors["text"].copy()
    rows[9] = np.inf
    with pytest.raises(UserError, match="text vector in row 9") as raised:
        fit_modalities({"text": rows, "item": vectors["item"]}, {}, config)
    assert type(raised.value) is UserError  # not Ray's wrapper with a traceback in its text
    with pytest.raises(UserError, match=r"tokenizer\.hidden\.item starts with 8"):
        fit_modalities({"item": vectors["text"]}, {}, config)


def test_fit_modalities_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    check_modalities(tmp_path)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_fit_modalities_on_ray(tmp_path: Path) -> None:
    check_modalities(tmp_path)


def test_rkmeans_beats_the_mean() -> None:
    rows = mixture(300, 8, 8)
    tokenizer = RkMeansTokenizer("item", TokenizerSettings(entries=8))
    history = tokenizer.fit(rows, rows[:10])
    assert history[0]["reconstruction"] < 0.2 * 8  # standardised: the mean alone would leave 8
