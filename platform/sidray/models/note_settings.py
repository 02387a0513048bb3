"""The section `model.note` of a recipe: an MLRM of NoteLLM-2 in place of the two towers. Light: no torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sidray.config import Settings

Positive = Annotated[int, Field(gt=0)]
NoteInputs = Literal["multimodal", "image", "text"]
PromptStyle = Literal["micl", "basic", "text", "image"]


class ConnectorSettings(Settings):
    """The Q-Former between vision encoder and LM (NoteLLM-2, table 9)."""

    queries: Positive = 16
    """L_c: visual embeddings of a picture."""
    layers: Positive = 6
    """Its layers."""
    cross_attention_every: Positive = 2
    """One layer in so many looks at the picture, the first one included."""
    width: Positive = 768
    """Of its states; a multiple of `heads`."""
    heads: Positive = 12
    """Attention heads of a layer."""
    intermediate: Positive = 3072
    """Width of a layer's feed-forward part."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the states that is set to zero in training."""

    @model_validator(mode="after")
    def _divisible(self) -> ConnectorSettings:
        if self.width % self.heads:
            raise ValueError(f"width={self.width} cannot be divided among {self.heads} heads")
        return self


class NoteSettings(Settings):
    """How a note (an item with its text and its picture) is compressed into one vector (NoteLLM-2, sections 2.2, 3)."""

    inputs: NoteInputs = "multimodal"
    """What the model is shown; `image` with `early: false` is the vision encoder alone."""
    early: bool = True
    """Whether the picture enters the LM, as visual embeddings of the connector."""
    micl: bool = True
    """Whether the prompt compresses the picture first and the whole note after it."""
    late: bool = True
    """Whether a gate mixes the picture's own vector into the compressed word (7)."""
    dimension: Positive = 64
    """Of the vectors."""
    temperature: float = 3.0
    """tau of (1) at the start: similarities are multiplied by exp(tau)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of the compressed words and of the picture's whole where they meet; small catalogues are over-fitted without (the
    paper has none)."""
    standardise: bool = False
    """Whether their mean over notes is taken off and their deviation divided out, as they are before training; where
    few layers are trained, what all notes share is nearly all there is."""
    connector: ConnectorSettings = ConnectorSettings()
    max_words: dict[str, Positive] = Field(default_factory=lambda: {"title": 20, "content": 80})
    """Text column -> words after which it is cut (the paper: title 20, content 80)."""
    opening: str = "Note content: "
    """What stands before the note in every prompt."""
    instruction: str = '. Compress this note into one word:"'
    """What stands after it."""

    @model_validator(mode="after")
    def _possible(self) -> NoteSettings:
        if self.micl and not (self.early and self.inputs == "multimodal"):
            raise ValueError("micl compresses the picture inside the LM: it needs early: true and inputs: multimodal")
        if self.inputs == "text" and (self.early or self.late):
            raise ValueError("inputs: text shows no picture: set early: false and late: false")
        if self.inputs == "multimodal" and not (self.early or self.late):
            raise ValueError("inputs: multimodal needs early: true or late: true, else nothing looks at the picture")
        if self.inputs == "image" and not self.early and self.late:
            raise ValueError("inputs: image with early: false has no compressed word to fuse with: set late: false")
        return self

    def prompt(self, shown: NoteInputs) -> PromptStyle:
        """Which prompt the LM reads when it is shown these parts of a note."""
        if not self.early or shown == "text":
            return "text"
        if shown == "image":
            return "image"
        return "micl" if self.micl else "basic"

    def shown(self, column: NoteInputs) -> NoteInputs:
        """What a model that is shown `inputs` sees where a multimodal note is asked for."""
        return self.inputs if column == "multimodal" else column

    @property
    def reads_text(self) -> bool:
        """Whether the LM runs: not for the vision encoder alone."""
        return self.early or self.inputs != "image"

    @property
    def looks(self) -> bool:
        """Whether pictures are read."""
        return self.inputs != "text"
