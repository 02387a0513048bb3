"""The model section of a recipe: encoders, prompts, fusion and projections. Light: no torch here."""

from __future__ import annotations

import string
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sidray.config import Settings, later
from sidray.models.note_settings import NoteSettings

Positive = Annotated[int, Field(gt=0)]
Precision = Literal["fp32", "bf16"]


class TextSettings(Settings):
    """The causal LM that both towers share."""

    weights: str = "random"
    """`random` (built from `config`), a folder, a .gguf file, `smollm2-135m-instruct` (from its package), or a hub
    name."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Of random weights: the LM's Hugging Face configuration."""
    vocabulary: Positive = 4096
    """Of random weights: tokens of the BPE tokenizer that is trained on the catalogue."""
    layers: Positive | None = None
    """How many of the lowest layers are kept; null: all."""
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    """How many of those, from below, are not trained: their states are computed once and cached."""
    pooling: Literal["eos", "mean"] = "eos"
    """`eos`: the state at EOS, of an MLRM at the compressed word (the papers); `mean`: over the tokens, which few
    trained layers learn faster."""
    max_tokens: Positive = 64
    """Tokens of an item, EOS included; its fields are cut from the end. Of an MLRM those of its longest prompt: the
    others give a note's text as much room."""
    max_query_tokens: Positive = 32
    """Tokens of a query, EOS included."""

    @model_validator(mode="after")
    def _cut(self) -> TextSettings:
        if self.layers is not None and self.frozen_layers > self.layers:
            raise ValueError(f"frozen_layers={self.frozen_layers} is more than layers={self.layers}")
        if self.weights == "random" and self.frozen_layers:
            raise ValueError("frozen_layers on random weights freezes noise: give weights, or set it to 0")
        return self


class ImageSettings(Settings):
    """The image encoder."""

    weights: str = "random"
    """`random` (a ViT or CLIP vision tower from `config`), a folder, a hub name, `efficientnet-lite0` or
    `efficientnet-lite2` (from their packages); `none`: a text-only model."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Of random weights: the vision tower's Hugging Face configuration."""
    size: Positive = 224
    """Pixels that a picture is scaled to, in width and in height."""
    frozen: bool = False
    """Whether the encoder is not trained: its features are computed once and cached."""
    pool: Literal["last", "stages"] = "last"
    """`last`: the tower's own pooled output; `stages`: the means of all stages of an EfficientNet, which keep the
    colours."""

    @model_validator(mode="after")
    def _has_stages(self) -> ImageSettings:
        if self.pool == "stages" and self.weights not in ("efficientnet-lite0", "efficientnet-lite2", "none"):
            raise ValueError(f"pool=stages needs an EfficientNet, not weights={self.weights}: use pool=last")
        return self


class Prompts(Settings):
    """Templates of what the towers read."""

    query: str = "Query: {query}"
    """Of a query."""
    title: str = "Title: {title}"
    """How an item begins."""
    field: str = " {field}: {value}"
    """Of each of its `data.text_fields` that is not empty."""
    sids: str = " SIDs:"
    """What stands before its SID tokens, when it has some; empty where `text.frozen_layers` > 0."""

    @field_validator("query", "title", "field")
    @classmethod
    def _placeholders(cls, template: str, info: Any) -> str:
        wanted = {"query": {"query"}, "title": {"title"}, "field": {"field", "value"}}[info.field_name]
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if found != wanted:
            raise ValueError(f"the template needs exactly {sorted(wanted)} in braces, found {sorted(found)}")
        return template


class Fusion(Settings):
    """h_item = h_text + h_image."""

    normalise: bool = True
    """Whether each is L2-normalised first; else the larger norm silences the other."""
    mlp: bool = later(False)
    """An MLP over [h_text; h_image] in place of the sum (Joint-Que2search)."""


class ModelSettings(Settings):
    """Two towers, or with `note` an MLRM (NoteLLM-2); `prompts`, `fusion` and `mlp` are the towers' alone."""

    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()
    prompts: Prompts = Prompts()
    fusion: Fusion = Fusion()
    mlp: Annotated[list[Positive], Field(min_length=1)] = Field(default_factory=lambda: [512, 256, 128])
    """Widths of MLP_Q's and MLP_I's layers after the input; the last one is the dimension of the vectors."""
    note: NoteSettings | None = None
    """Null: two towers that learn from clicks; else an MLRM that learns from pairs."""
    seed: int = 0
    """Of random weights, projections and heads."""

    @model_validator(mode="after")
    def _note_has_pictures(self) -> ModelSettings:
        if self.note is not None and self.note.looks and self.image.weights == "none":
            raise ValueError("note looks at pictures, and image.weights is none: set note.inputs, early and late")
        return self

    @model_validator(mode="after")
    def _segments(self) -> ModelSettings:
        if self.note is None and self.text.frozen_layers and self.prompts.sids:
            raise ValueError(
                "prompts.sids must be empty when text.frozen_layers > 0: SIDs enter above the cached layers"
            )
        return self
