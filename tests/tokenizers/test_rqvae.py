"""RQ-VAE against eq. (14): by hand, against numpy in float64, its gradients, its remedies against collapse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sidray.errors import UserError
from sidray.tokenizers import rqvae
from sidray.tokenizers.residual import Quantised
from sidray.tokenizers.rkmeans import RkMeansTokenizer
from sidray.tokenizers.rqvae import DeadCodes, RqVae, RqVaeTokenizer, rqvae_loss
from sidray.tokenizers.settings import TokenizerSettings
from tests.tokenizers.conftest import mixture
from tests.tokenizers.test_residual import brute_force

BETA, GAMMA = 0.3, 0.2


def network(rng: np.random.Generator, beta_levels: int = 3) -> RqVae:
    torch.manual_seed(0)
    codec = RqVae([6, 5, 3], levels=beta_levels, entries=4).double()
    codec.codebooks.data = torch.from_numpy(rng.normal(size=(beta_levels, 4, 3)) * 0.3)
    return codec


def test_loss_by_hand() -> None:
    h = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    h_hat = torch.tensor([[0.0, 2.0], [0.0, 1.0]])  # squared distances 1 and 4: mean 2.5
    residuals = [torch.tensor([[1.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.5, 0.0], [1.0, 1.0]])]
    chosen = [torch.tensor([[0.5, 0.0], [1.0, 0.0]]), torch.tensor([[0.5, 0.0], [1.0, 4.0]])]
    # level 1: 0.25 and 2, mean 1.125; level 2: 0 and 9, mean 4.5; together 5.625
    losses = rqvae_loss(h, h_hat, Quantised(torch.zeros(2, 2), residuals, chosen), beta=0.5, gamma=0.25)
    assert losses.reconstruction.item() == 2.5
    assert losses.codebook.item() == losses.commitment.item() == 5.625
    assert losses.total.item() == 2.5 + 0.5 * (5.625 + 0.25 * 5.625)


def test_loss_is_the_reference_in_numpy(rng: np.random.Generator) -> None:
    codec = network(rng)
    h = rng.normal(size=(9, 6))
    weights = {name: value.numpy() for name, value in codec.state_dict().items()}

    def mlp(part: str, rows: np.ndarray) -> np.ndarray:
        hidden = np.maximum(rows @ weights[f"{part}.0.weight"].T + weights[f"{part}.0.bias"], 0)
        return hidden @ weights[f"{part}.2.weight"].T + weights[f"{part}.2.bias"]

    latent = mlp("encoder", h)
    codes, left = brute_force(latent, weights["codebooks"])
    expected = np.square(h - mlp("decoder", latent - left)).sum(1).mean()
    residual = latent
    for level in range(3):
        residual_after = residual - weights["codebooks"][level][codes[:, level]]
        expected += BETA * (1 + GAMMA) * np.square(residual_after).sum(1).mean()
        residual = residual_after
    losses, quantised = codec.loss(torch.from_numpy(h), BETA, GAMMA)
    assert quantised.codes.tolist() == codes.tolist()
    assert losses.total.item() == pytest.approx(expected, rel=1e-12)


def test_codebooks_learn_from_the_codebook_term_alone(rng: np.random.Generator) -> None:
    codec = network(rng)
    h = torch.from_numpy(rng.normal(size=(9, 6)))
    losses, quantised = codec.loss(h, BETA, GAMMA)
    losses.total.backward()
    expected = torch.zeros_like(codec.codebooks)
    for level in range(3):
        pull = 2 * BETA / 9 * (quantised.chosen[level] - quantised.residuals[level]).detach()
        expected[level].index_add_(0, quantised.codes[:, level], pull)
    torch.testing.assert_close(codec.codebooks.grad, expected)


def test_encoder_learns_from_reconstruction_straight_through_and_commitment(rng: np.random.Generator) -> None:
    codec = network(rng)
    h = torch.from_numpy(rng.normal(size=(9, 6)))
    latent = codec.encoder(h)
    quantised = codec.quantise(latent.detach())
    summed = torch.stack(quantised.chosen).sum(0).detach().requires_grad_()
    (h - codec.decoder(summed)).square().sum(-1).mean().backward()
    pull = sum(r - e for r, e in zip(quantised.residuals, quantised.chosen, strict=True))
    at_latent = summed.grad + 2 * BETA * GAMMA / 9 * pull.detach()  # type: ignore[operator, union-attr]
    parameters = list(codec.encoder.parameters())
    expected = torch.autograd.grad(latent, parameters, at_latent)
    codec.zero_grad()
    codec.loss(h, BETA, GAMMA)[0].total.backward()
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_dead_codes_are_seeded_anew_after_exactly_the_limit(rng: np.random.Generator) -> None:
    codec = network(rng, beta_levels=2).float()
    codec.codebooks.data[1, 2] = 1e3
    codec.codebooks.data[:, [0, 1, 3]] = torch.randn(2, 3, 3) * 1e-2
    h = torch.from_numpy(rng.normal(size=(64, 6))).float()
    optimiser = torch.optim.AdamW([codec.codebooks], lr=0.0, weight_decay=0.0)
    dead = DeadCodes(codec.codebooks, limit=3, seed=0)
    for step in range(3):
        assert codec.codebooks[1, 2, 0].item() == pytest.approx(1e3), step
        losses, quantised = codec.loss(h, 1.0, 1.0)
        losses.total.backward()
        optimiser.step()
        optimiser.state[codec.codebooks]["exp_avg"][1, 2] = 5.0
        dead.step(quantised, optimiser)
    assert dead.resets >= 1
    revived = codec.codebooks[1, 2].detach()
    assert (quantised.residuals[1].detach() == revived).all(1).any()
    assert optimiser.state[codec.codebooks]["exp_avg"][1, 2].tolist() == [0, 0, 0]
    assert (codec.loss(h, 1.0, 1.0)[1].codes[:, 1] == 2).any()


@pytest.mark.parametrize(("dead_code_after", "used"), [(5, 1.0), (10**9, 0.5)])
def test_resets_revive_half_a_codebook(monkeypatch: pytest.MonkeyPatch, dead_code_after: int, used: float) -> None:
    def half_dead(*args: object) -> torch.Tensor:
        codebooks = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
        codebooks[:, 4:] = 1e4
        return codebooks

    monkeypatch.setattr(rqvae, "residual_kmeans", half_dead)
    rows = mixture(400, 12, 20)
    tokenizer = RqVaeTokenizer("item", tiny(levels=2, entries=8, epochs=20, dead_code_after=dead_code_after))
    tokenizer.fit(rows)
    codes = tokenizer.encode(rows)
    share = [len(np.unique(codes[:, level])) / 8 for level in range(2)]
    assert share == [1.0, 1.0] if used == 1.0 else max(share) <= used


def tiny(**changes: object) -> TokenizerSettings:
    values: dict[str, object] = {"levels": 3, "entries": 8, "epochs": 5, "batch_size": 64}
    return TokenizerSettings.model_validate({**values, **changes})


def test_reconstruction_comes_near_residual_kmeans() -> None:
    rows = mixture(2400, 32, 60)
    train, test = rows[:2000], rows[2000:]
    settings = TokenizerSettings(entries=8, epochs=40, batch_size=128)
    network_, reference = RqVaeTokenizer("item", settings), RkMeansTokenizer("item", settings)
    history = network_.fit(train)
    reference.fit(train)
    assert network_.error(test) < 1.5 * reference.error(test)
    assert history[-1]["reconstruction"] < 0.5 * history[0]["reconstruction"]


def test_the_best_epoch_on_valid_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixture(300, 8, 10)
    two_epochs = RqVaeTokenizer("item", tiny(epochs=2))
    two_epochs.fit(rows)
    curve = [5.0, 1.0, 4.0, 3.0, 2.0]
    monkeypatch.setattr(RqVaeTokenizer, "error", lambda self, valid: curve[len(self.history) - 1])
    five_epochs = RqVaeTokenizer("item", tiny(epochs=5))
    history = five_epochs.fit(rows, rows)
    assert [epoch["valid_reconstruction"] for epoch in history] == curve
    np.testing.assert_array_equal(five_epochs.quantise(rows), two_epochs.quantise(rows))


def test_history_has_what_health_needs_per_epoch() -> None:
    history = RqVaeTokenizer("item", tiny(epochs=2)).fit(mixture(100, 8, 5))
    assert [epoch["epoch"] for epoch in history] == [0, 1]
    assert set(history[0]) == {
        "epoch", "resets", "total", "reconstruction", "codebook", "commitment", "used_1", "used_2", "used_3",
    }  # fmt: skip


def test_statistics_come_from_the_training_vectors_and_lie_in_the_state() -> None:
    train, valid = mixture(200, 8, 5) * 3 + 7, mixture(50, 8, 5, seed=1) - 100
    train[:, 2] = 4.0  # constant: no division by zero
    tokenizer = RqVaeTokenizer("item", tiny(epochs=1))
    tokenizer.fit(train, valid)
    assert tokenizer.codec is not None
    state = tokenizer.codec.state_dict()
    np.testing.assert_allclose(state["mean"], train.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state["std"], np.where(np.arange(8) == 2, 1, train.std(0)), rtol=1e-5)
    raw = RqVaeTokenizer("item", tiny(epochs=1, standardise=False))
    raw.fit(train)
    assert raw.codec is not None
    assert raw.codec.mean.abs().sum() == 0
    assert raw.codec.std.tolist() == [1.0] * 8


def test_training_is_seeded() -> None:
    rows = mixture(200, 8, 10)
    runs = [RqVaeTokenizer("item", tiny(seed=seed)) for seed in (3, 3, 4)]
    histories = [run.fit(rows) for run in runs]
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
    np.testing.assert_array_equal(runs[0].encode(rows), runs[1].encode(rows))


def test_divergence_names_modality_and_remedy() -> None:
    with pytest.raises(UserError, match="image tokenizer diverged") as raised:
        RqVaeTokenizer("image", tiny(lr=1e12)).fit(mixture(200, 8, 5))
    assert "tokenizer.lr" in raised.value.remedy
