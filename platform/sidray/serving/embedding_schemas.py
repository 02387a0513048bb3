"""POST /v1/embeddings: OpenAI's shapes, with pictures as a further kind of input."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from sidray.serving.schemas import Body, Text

MAX_INPUTS = 256


class TextOrImage(Body):
    """A text, a picture, or both: then the direction of their sum, as in a search."""

    text: Text | None = None
    image: str | None = Field(None, description="a JPEG, PNG or WebP picture: base64 or a data URL")

    @model_validator(mode="after")
    def _something(self) -> TextOrImage:
        if not (self.text and self.text.strip()) and self.image is None:
            raise PydanticCustomError("empty_input", "an input is empty: give text, image, or both")
        return self


def _kind(value: Any) -> str:
    kinds = {"str": "text", "list": "list", "dict": "object", "TextOrImage": "object"}
    return kinds.get(type(value).__name__, "")


def _one_of(message: str) -> Discriminator:
    """Tells by the JSON type which kind of input it is, so that an error is about that kind alone."""
    return Discriminator(_kind, custom_error_type="input_type", custom_error_message=message)


Input = Annotated[
    Annotated[Text, Tag("text")] | Annotated[TextOrImage, Tag("object")],
    _one_of("an input is a text or an object {text, image}; lists of token ids are not taken"),
]
Inputs = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[Input], Field(min_length=1, max_length=MAX_INPUTS), Tag("list")],
    _one_of("input is a text, or a list of texts and of objects {text, image}"),
]


class EmbeddingsRequest(Body):
    model: Text = Field(description="id of a served model: GET /v1/models lists them")
    input: Inputs = Field(description="what becomes vectors, in this order")
    dimensions: int | None = Field(None, description="only the model's own dimension: it was trained for no other")
    encoding_format: Literal["float", "base64"] = "float"
    user: Text | None = Field(None, description="accepted as OpenAI's clients send it; has no effect")

    @property
    def inputs(self) -> list[TextOrImage]:
        given = self.input if isinstance(self.input, list) else [self.input]
        return [TextOrImage(text=each) if isinstance(each, str) else each for each in given]

    @model_validator(mode="after")
    def _no_empty_text(self) -> EmbeddingsRequest:
        assert self.inputs  # an empty text raises while it becomes a TextOrImage
        return self


class Embedding(BaseModel):
    """`embedding`: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
