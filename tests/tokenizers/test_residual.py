"""Eq. (13) against brute force: nearest codes, ties, the residual identity, k-means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidray.tokenizers.residual import ResidualCodec, kmeans, nearest, plus_plus, residual_kmeans


def brute_force(rows: np.ndarray, codebooks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes [N, L] and what is left [N, c], by plain differences in float64."""
    residual = rows.astype(np.float64)
    codes = []
    for codebook in codebooks.astype(np.float64):
        distance = ((residual[:, None] - codebook[None]) ** 2).sum(-1)
        codes.append(distance.argmin(1))
        residual = residual - codebook[codes[-1]]
    return np.stack(codes, 1), residual


def quantisation_error(rows: np.ndarray, codebooks: torch.Tensor) -> float:
    return float((brute_force(rows, codebooks.numpy())[1] ** 2).sum(1).mean())


def integers(shape: Any) -> Any:
    return hnp.arrays(np.float64, shape, elements=st.integers(-3, 3).map(float))


@given(st.data())
@settings(max_examples=60)
def test_nearest_is_brute_force_and_takes_the_lowest_of_equals(data: Any) -> None:
    width = data.draw(st.integers(1, 5))
    rows = data.draw(integers((data.draw(st.integers(1, 6)), width)))  # integers: ties are many and exact
    codebook = data.draw(integers((data.draw(st.integers(1, 9)), width)))
    expected = ((rows[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
    assert nearest(torch.from_numpy(rows), torch.from_numpy(codebook)).tolist() == expected.tolist()


def test_quantise_is_the_brute_force_walk(rng: np.random.Generator) -> None:
    codec = ResidualCodec(width=5, code_width=5, levels=4, entries=7).double()
    codec.codebooks.data = torch.from_numpy(rng.normal(size=(4, 7, 5)))
    latent = torch.from_numpy(rng.normal(size=(50, 5)))
    found = codec.quantise(latent)
    codes, left = brute_force(latent.numpy(), codec.codebooks.detach().numpy())
    assert found.codes.tolist() == codes.tolist()
    assert torch.equal(found.residuals[0], latent)
    for before, chosen, after in zip(found.residuals, found.chosen, found.residuals[1:], strict=False):
        assert torch.equal(before - chosen, after)
    last = found.residuals[-1] - found.chosen[-1]
    np.testing.assert_allclose(last.detach(), left, atol=1e-14)
    np.testing.assert_allclose((torch.stack(found.chosen).sum(0) + last).detach(), latent, atol=1e-14)
    np.testing.assert_array_equal(codec.look_up(found.codes).detach(), torch.stack(found.chosen, 1).detach())


def test_kmeans_init_beats_random_rows_on_a_mixture(rng: np.random.Generator) -> None:
    centres = rng.normal(size=(20, 6)) * 3
    rows = centres[rng.integers(20, size=800)] + rng.normal(size=(800, 6))
    fitted = quantisation_error(rows, residual_kmeans(torch.from_numpy(rows), levels=2, entries=16, seed=0))
    random = [
        quantisation_error(rows, torch.from_numpy(np.stack([r[:16], r[16:32] - r[16:32].mean(0)])))
        for r in (rng.permutation(rows) for _ in range(5))
    ]
    assert fitted < 0.5 * min(random)


def test_kmeans_with_enough_entries_returns_the_distinct_rows() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    found = kmeans(rows, 4, np.random.default_rng(0))
    assert found.shape == (4, 2)
    assert {tuple(row) for row in found} == {(1.0, 2.0), (3.0, 4.0)}


def test_plus_plus_draws_by_the_squared_distance_to_the_nearest_choice() -> None:
    rows = np.array([[0.0], [1.0], [3.0]])
    drawn = [tuple(int(x) for x in plus_plus(rows, 2, np.random.default_rng(seed))[:, 0]) for seed in range(3000)]
    share = {pair: drawn.count(pair) / len(drawn) for pair in set(drawn)}
    expected = {(0, 1): 1 / 10, (0, 3): 9 / 10, (1, 0): 1 / 5, (1, 3): 4 / 5, (3, 0): 9 / 13, (3, 1): 4 / 13}
    assert share.keys() == expected.keys()
    assert all(abs(share[pair] - chance / 3) < 0.03 for pair, chance in expected.items())


def test_kmeans_is_seeded(rng: np.random.Generator) -> None:
    rows = torch.from_numpy(rng.normal(size=(300, 4)))
    first, again, other = (residual_kmeans(rows, 2, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("count", [9, 40])
def test_kmeans_of_rows_that_hardly_differ(count: int) -> None:
    rows = np.repeat(np.arange(3.0)[:, None], count, axis=0)
    assert np.isfinite(residual_kmeans(torch.from_numpy(rows), 3, 8, 0).numpy()).all()
