"""POST /v1/embeddings: OpenAI's route over the query side of the model."""

from __future__ import annotations

import asyncio
import base64

from sidray.serving.embedding_schemas import Embedding, EmbeddingsRequest, EmbeddingsResponse, TextOrImage, Usage
from sidray.serving.messages import Embedded, Refusal, Vector
from sidray.serving.problems import ApiError
from sidray.serving.service import Service, accepted, check_length, deadline
from sidray.serving.traffic import Traffic


async def embeddings(traffic: Traffic, request: EmbeddingsRequest) -> EmbeddingsResponse:
    """By the run that has the model. ApiError 400 for a dimension that it does not have."""
    async with deadline(traffic.settings.write_timeout_s):
        service, model = await traffic.with_model(request.model)
        if request.dimensions not in (None, model.dimension):
            message = f"{model.id} was trained for {model.dimension} dimensions alone"
            raise ApiError(Refusal(400, "unsupported_dimensions", message, "dimensions"))
        inputs = list(await asyncio.gather(*(_input(service, each) for each in request.inputs)))
        answers = [accepted(answer) for answer in await service.backend.embed_all(inputs)]
        tokens = sum(answer.tokens for answer in answers)
        return EmbeddingsResponse(
            data=[_embedding(n, answer, request.encoding_format) for n, answer in enumerate(answers)],
            model=model.id,
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens),
        )


async def _input(service: Service, given: TextOrImage) -> tuple[str, bytes | None]:
    text = given.text if given.text and given.text.strip() else ""
    check_length(text, "input")
    return text, None if given.image is None else await service.picture(given.image)


def _embedding(index: int, answer: Embedded, encoding: str) -> Embedding:
    return Embedding(index=index, embedding=_base64(answer.vector) if encoding == "base64" else answer.vector.tolist())


def _base64(vector: Vector) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
