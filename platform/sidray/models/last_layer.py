"""The last layer of a decoder computed at some positions alone: nothing reads its other outputs.

Of that layer every position still gives key and value; query, attention, output projection and MLP run at the chosen
positions only, which is nearly all of its work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FITTING = ("llama", "qwen2", "qwen3")  # model types whose layers are what `_forward` computes


class LastLayer:
    """Stands in for the last layer's forward; its weights and their names stay where they are."""

    def __init__(self, decoder: Any) -> None:
        self.layer = decoder.layers[-1]
        self._rotate = sys.modules[type(self.layer.self_attn).__module__].apply_rotary_pos_emb
        self._whole = self.layer.forward
        self._positions: Tensor | None = None
        self._mask: Tensor | None = None
        self.layer.forward = self._forward

    @staticmethod
    def fits(lm: Any) -> bool:
        """Whether the last layer of this LM is a plain one: of a known type, without a sliding window."""
        if lm.config.model_type not in FITTING or not len(lm.base_model.layers):
            return False
        return getattr(lm.base_model.layers[-1].self_attn, "sliding_window", None) is None

    @contextmanager
    def at(self, positions: Tensor, mask: Tensor) -> Iterator[None]:
        """For the block the layer answers [B, P, d]: positions int64 [B, P], mask [B, T] of the real tokens."""
        self._positions, self._mask = positions, mask
        try:
            yield
        finally:
            self._positions = self._mask = None

    def _forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._positions is None or self._mask is None:
            return self._whole(hidden_states, *args, **kwargs)
        layer, positions = self.layer, self._positions
        rows = torch.arange(len(hidden_states), device=hidden_states.device)[:, None]
        attended = self._attend(layer.input_layernorm(hidden_states), rows, kwargs["position_embeddings"])
        hidden = hidden_states[rows, positions] + layer.self_attn.o_proj(attended)  # [B, P, d]
        out: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return out

    def _attend(self, normed: Tensor, rows: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of the chosen positions over all of them: [B, T, d] -> [B, P, heads * head width]."""
        attention = self.layer.self_attn
        assert self._positions is not None
        assert self._mask is not None

        def heads(states: Tensor, norm: str) -> Tensor:
            """[B, n, heads * h] -> [B, heads, n, h], normalised where the model does so."""
            split = states.view(*states.shape[:2], -1, attention.head_dim)
            normalised: Tensor = getattr(attention, norm, torch.nn.Identity())(split)
            return normalised.transpose(1, 2)

        query = heads(attention.q_proj(normed[rows, self._positions]), "q_norm")
        key = heads(attention.k_proj(normed), "k_norm")
        value = heads(attention.v_proj(normed), "")
        cos, sin = (part.expand(len(normed), -1, -1) for part in rotary)  # [B, T, h]
        query = self._rotate(query, query, cos[rows, self._positions], sin[rows, self._positions])[0]
        key = self._rotate(key, key, cos, sin)[1]
        earlier = torch.arange(normed.shape[1], device=normed.device) <= self._positions[..., None]  # [B, P, T]
        mask = (earlier & self._mask[:, None])[:, None]
        dropout = attention.attention_dropout if self.layer.training else 0.0
        out: Tensor = F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, scale=attention.scaling, enable_gqa=True
        )
        return out.transpose(1, 2).flatten(2)
