"""The text encoder: a causal LM of Hugging Face, pooled at EOS or over all tokens, with SID tokens and an optional cut.

Below the cut (`frozen_layers`) nothing is trained, so those layers run once per text and their hidden states are
cached; above it the layers are trained. SID tokens enter at the cut by an embedding of their own (at the input when
nothing is frozen, which is the paper's expanded vocabulary). Each text segment passes the frozen layers alone; the
trained layers see the whole sequence.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sidray.errors import UserError
from sidray.models.last_layer import LastLayer
from sidray.tokenizers.embeddings import random_embeddings


class SidTokens(nn.Module):
    """Embedding of the new tokens, tied to their output head. One module, so that ZeRO-3 gathers its weight.

    What enters the LM is `scale` x weight: states above a cut can be some hundred times larger than a new embedding,
    which beside them is hardly seen and, at the LM's learning rate, hardly grows. `scale` is set once, not trained."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(random_embeddings(count, width))
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, ids: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        """ids [...] -> what enters the LM [..., d], or hidden [..., d] -> logits [..., count]."""
        if ids is not None:
            return nn.functional.embedding(ids, self.weight) * self.scale
        assert hidden is not None
        return hidden @ self.weight.T


def decoder_of(lm: Any) -> Any:
    """The stack of layers inside a causal LM. UserError for an architecture without `.layers`."""
    decoder = lm.base_model
    if not hasattr(decoder, "layers"):
        raise UserError(
            f"the text encoder {type(lm).__name__} keeps its layers in no list called `layers`",
            "use a decoder-only LM such as Qwen3, Llama, Mistral or SmolLM",
        )
    return decoder


def keep_layers(lm: Any, start: int, stop: int) -> None:
    """Keeps layers start..stop-1 of the LM, in place, and the settings that go by layer."""
    decoder = decoder_of(lm)
    decoder.layers = decoder.layers[start:stop]
    config = lm.config
    config.num_hidden_layers = stop - start
    if getattr(config, "layer_types", None):
        config.layer_types = list(config.layer_types)[start:stop]
    for index, layer in enumerate(decoder.layers):
        if hasattr(layer, "self_attn"):
            layer.self_attn.layer_idx = index


class TextEncoder(nn.Module):
    """`width` = hidden size d. `lower` is None where cached states are always given (training)."""

    def __init__(self, lm: Any, cut: int, sid_count: int, with_frozen: bool) -> None:
        super().__init__()
        layers = int(lm.config.num_hidden_layers)
        self.width = int(lm.config.hidden_size)
        self.vocabulary = int(lm.config.vocab_size)
        self.cut = cut
        self.lower: Any = None
        if cut and with_frozen:
            lower = copy.deepcopy(lm)
            keep_layers(lower, 0, cut)
            decoder_of(lower).norm = nn.Identity()
            self.lower = lower.base_model.requires_grad_(False)
        if cut:
            keep_layers(lm, cut, layers)
            lm.get_input_embeddings().weight.requires_grad_(False)  # below the cut; the head it may be tied to, too
        self.lm = lm
        self._last = LastLayer(lm.base_model) if LastLayer.fits(lm) else None
        self._whole = False
        self.sids = SidTokens(sid_count, self.width) if sid_count else None

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """What enters the trained layers at text tokens: ids [B, T] -> [B, T, d]."""
        if self.lower is None:
            return self._embed(ids)
        with torch.no_grad():
            out = self.lower(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        result: Tensor = out.last_hidden_state
        return result

    def states_among(self, ids: Tensor, is_text: Tensor, mask: Tensor) -> Tensor:
        """The same where other tokens stand among the text: it passes the frozen layers without them, and what the
        others get is to be replaced. ids, is_text, mask [B, T] -> [B, T, d]."""
        ids = ids.masked_fill(~is_text, 0)
        if self.lower is None or bool((is_text == mask).all()):
            return self.states(ids, mask)
        order = (~is_text).long().argsort(dim=1, stable=True)  # text tokens first
        packed = self.states(ids.gather(1, order), is_text.gather(1, order))  # [B, T, d]
        back = order.argsort(dim=1)
        return packed.gather(1, back[..., None].expand_as(packed))

    def _embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.lm.get_input_embeddings()(ids)
        return out

    def hidden_at(self, states: Tensor, ids: Tensor, mask: Tensor, base: int, positions: Tensor) -> Tensor:
        """The same at some positions alone, positions [B, P] -> [B, P, d]: the last layer's work is P / T of it."""
        if self._last is None or self._whole:
            rows = torch.arange(len(ids), device=ids.device)[:, None]
            return self.hidden(states, ids, mask, base)[rows, positions]
        with self._last.at(positions, mask):
            return self.hidden(states, ids, mask, base)

    @contextmanager
    def whole_layers(self) -> Iterator[None]:
        """For the block `hidden_at` computes every layer at every position, so that all attention can be seen."""
        self._whole = True
        try:
            yield
        finally:
            self._whole = False

    def hidden(self, states: Tensor, ids: Tensor, mask: Tensor, base: int) -> Tensor:
        """Last hidden states [B, T, d]. Where ids >= base the SID embedding replaces `states` [B, T, d]."""
        x = states.to(self.dtype)
        if self.sids is not None:
            is_sid = ids >= base  # [B, T]
            x = torch.where(is_sid[..., None], self.sids(ids=(ids - base).clamp(min=0)).to(x.dtype), x)
        out = self.lm.base_model(inputs_embeds=x, attention_mask=mask.long(), use_cache=False)
        result: Tensor = out.last_hidden_state
        return result

    @property
    def dtype(self) -> torch.dtype:
        result: torch.dtype = next(self.lm.parameters()).dtype
        return result

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the text vocabulary and the SID tokens: [..., d] -> [..., V + S]."""
        text: Tensor = self.lm.get_output_embeddings()(hidden)
        return text if self.sids is None else torch.cat([text, self.sids(hidden=hidden)], -1)

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Scores of some text tokens [m]: [..., d] -> [..., m]. UserError where the LM's head is not its embedding."""
        if not self.lm.config.tie_word_embeddings:
            raise UserError(
                f"{type(self.lm).__name__} keeps a head apart from its embedding, which `vocabulary: batch` reads",
                "set vocabulary: full in this stage",
            )
        return hidden @ self._embed(tokens).to(hidden.dtype).T


def pool_last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state at the last real position, EOS: [B, T, d], [B, T] -> [B, d]."""
    last = mask.sum(1).clamp(min=1) - 1  # [B]
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def pool_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real positions, EOS included: [B, T, d], [B, T] -> [B, d]."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def load_lm(folder: Path) -> Any:
    """The causal LM from a local folder of safetensors."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
