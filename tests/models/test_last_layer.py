"""The last layer at some positions against the whole layer: values and gradients, for every kind that it replaces."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from sidray.models.last_layer import FITTING
from sidray.models.text import TextEncoder

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 50}


def encoder(kind: str, layers: int = 2, **more: object) -> TextEncoder:
    torch.manual_seed(0)
    heads = {"num_key_value_heads": 2, "head_dim": 8} if kind in FITTING else {}
    config = AutoConfig.for_model(kind, num_hidden_layers=layers, **SIZE, **heads, **more)
    return TextEncoder(AutoModelForCausalLM.from_config(config, dtype=torch.float32), 0, 0, with_frozen=False).eval()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [*FITTING, "gpt_neox"])
def test_it_answers_as_the_whole_layer_does(kind: str, layers: int) -> None:
    text = encoder(kind, layers)
    assert (text._last is None) == (kind == "gpt_neox")
    states = torch.randn(3, 9, 32)
    mask = torch.arange(9)[None] < torch.tensor([[9], [6], [1]])
    positions = torch.tensor([[2, 8], [4, 5], [0, 0]])
    ids = torch.zeros(3, 9, dtype=torch.long)
    results = []
    for part in (True, False):
        x = states.clone().requires_grad_(True)
        text.zero_grad()
        if part:
            out = text.hidden_at(x, ids, mask, 50, positions)
        else:
            out = text.hidden(x, ids, mask, 50)[torch.arange(3)[:, None], positions]
        out.square().sum().backward()
        weights = {n: p.grad.clone() for n, p in text.lm.base_model.named_parameters() if p.grad is not None}
        results.append((out.detach(), x.grad, weights))
    torch.testing.assert_close(results[0][0], results[1][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-5, rtol=1e-4)
    assert set(results[0][2]) == set(results[1][2])
    for name, gradient in results[1][2].items():
        torch.testing.assert_close(results[0][2][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_a_sliding_window_is_left_as_it_is() -> None:
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    assert encoder("qwen2", **window)._last is None
    assert encoder("mistral", sliding_window=4)._last is None


def test_names_of_weights_stay() -> None:
    plain = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", num_hidden_layers=2, **SIZE, num_key_value_heads=2)
    )
    names = set(plain.state_dict())
    assert set(TextEncoder(plain, 0, 0, with_frozen=False).lm.state_dict()) == names
