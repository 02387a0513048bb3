"""The Q-Former: from the vision encoder's feature grid to a few visual embeddings that enter the LM.

connector = Connector(settings, vision_width=768, width=4096);  connector(grid)  # [B, L, 768] -> [B, L_c, 4096]
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sidray.models.note_settings import ConnectorSettings


class Connector(nn.Module):
    """C_pi of NoteLLM-2, section 2.2: BLIP-2's Querying Transformer without its text branch, from random weights.

    What leaves it is a projection of unit size times `scale` plus `mean`, those of the text's states where they enter:
    above the lowest layers some dimensions of every state are huge, and an embedding without them is like nothing that
    the layers know. Both are set once, not trained."""

    def __init__(self, settings: ConnectorSettings, vision_width: int, width: int) -> None:
        super().__init__()
        from transformers import Blip2QFormerConfig, Blip2QFormerModel

        config = Blip2QFormerConfig(
            hidden_size=settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            intermediate_size=settings.intermediate,
            cross_attention_frequency=settings.cross_attention_every,
            encoder_hidden_size=vision_width,
            hidden_dropout_prob=settings.dropout,
            attention_probs_dropout_prob=settings.dropout,
            use_qformer_text_input=False,
        )
        self.settings = settings
        self.queries = nn.Embedding(settings.queries, settings.width)
        self.normalise = nn.LayerNorm(vision_width)
        self.qformer: Any = Blip2QFormerModel(config)
        self.project = nn.Linear(settings.width, width)
        nn.init.normal_(self.project.weight, std=settings.width**-0.5)  # the Q-Former's output is normalised: unit size
        nn.init.zeros_(self.project.bias)
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, grid: Tensor) -> Tensor:
        """E_v = C_pi(Z_v): [B, L, h_v] -> [B, L_c, h_t]."""
        queries = self.queries.weight.expand(len(grid), -1, -1)  # [B, L_c, width]
        grid = self.normalise(grid.to(self.queries.weight.dtype))
        hidden = self.qformer(query_embeds=queries, encoder_hidden_states=grid).last_hidden_state
        embedded: Tensor = self.project(hidden) * self.scale + self.mean
        return embedded
