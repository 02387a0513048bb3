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
    """The causal LM that both towers share.

    `weights`: "random" (built from `config`, with a BPE tokenizer trained on the catalogue), a local folder, a .gguf
    file, "smollm2-135m-instruct" (from its package), or a hub name. `layers` keeps the lowest N; of those the lowest
    `frozen_layers` are computed once and cached. `pooling`: the state at EOS, of an MLRM at the compressed word (the
    papers), or the mean over all tokens, of an MLRM over those that a word compresses, which few trained layers learn
    faster.
    """

    weights: str = "random"
    config: dict[str, Any] = Field(default_factory=dict)
    vocabulary: Positive = 4096
    layers: Positive | None = None
    frozen_layers: Annotated[int, Field(ge=0)] = 0
    pooling: Literal["eos", "mean"] = "eos"
    max_tokens: Positive = 64
    max_query_tokens: Positive = 32

    @model_validator(mode="after")
    def _cut(self) -> TextSettings:
        if self.layers is not None and self.frozen_layers > self.layers:
            raise ValueError(f"frozen_layers={self.frozen_layers} is more than layers={self.layers}")
        if self.weights == "random" and self.frozen_layers:
            raise ValueError("frozen_layers on random weights freezes noise: give weights, or set it to 0")
        return self


class ImageSettings(Settings):
    """The image encoder: "random" (a ViT or CLIP vision tower from `config`), a folder, a hub name, or
    "efficientnet-lite0" / "efficientnet-lite2" from their packages; "none" for a text-only model. A frozen trunk is
    computed once and cached. `pool`: "last" = the tower's own pooled output, "stages" = the means of all stages of an
    EfficientNet, which keep the colours."""

    weights: str = "random"
    config: dict[str, Any] = Field(default_factory=dict)
    size: Positive = 224
    frozen: bool = False
    pool: Literal["last", "stages"] = "last"

    @model_validator(mode="after")
    def _has_stages(self) -> ImageSettings:
        if self.pool == "stages" and self.weights not in ("efficientnet-lite0", "efficientnet-lite2", "none"):
            raise ValueError(f"pool=stages needs an EfficientNet, not weights={self.weights}: use pool=last")
        return self


class Prompts(Settings):
    """Templates. An item reads title, fields, and when it has SIDs the text of `sids` and its SID tokens."""

    query: str = "Query: {query}"
    title: str = "Title: {title}"
    field: str = " {field}: {value}"
    sids: str = " SIDs:"

    @field_validator("query", "title", "field")
    @classmethod
    def _placeholders(cls, template: str, info: Any) -> str:
        wanted = {"query": {"query"}, "title": {"title"}, "field": {"field", "value"}}[info.field_name]
        found = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
        if found != wanted:
            raise ValueError(f"the template needs exactly {sorted(wanted)} in braces, found {sorted(found)}")
        return template


class Fusion(Settings):
    """h_item = h_text + h_image; `normalise` L2-normalises each first, else the larger norm silences the other. `mlp`:
    an MLP over [h_text; h_image] in place of the sum (Joint-Que2search)."""

    normalise: bool = True
    mlp: bool = later(False)


class ModelSettings(Settings):
    """`mlp`: widths of MLP_Q's and MLP_I's layers after the input; the last one is the dimension of the service.
    `note`: an MLRM (NoteLLM-2) in place of the two towers; `prompts`, `fusion` and `mlp` are the towers' alone."""

    text: TextSettings = TextSettings()
    image: ImageSettings = ImageSettings()
    prompts: Prompts = Prompts()
    fusion: Fusion = Fusion()
    mlp: Annotated[list[Positive], Field(min_length=1)] = Field(default_factory=lambda: [512, 256, 128])
    note: NoteSettings | None = None
    seed: int = 0

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
