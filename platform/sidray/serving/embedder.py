"""The query embedder: texts and pictures to unit vectors, batched across concurrent requests on one model thread.

A plain class; app.py makes it a Serve deployment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from sidray.embedding.runtime import RunModel
from sidray.finished import RunFolder
from sidray.serving.batcher import Batcher
from sidray.serving.messages import Embedded, Refusal, Vector
from sidray.serving.schemas import Model
from sidray.serving.settings import EmbedderSettings

MAX_INPUT_TOKENS = 8192
STALLED_S = 120.0


class Embedder:
    """Loads the model of a run and answers once with it, so that the first client does not pay for that."""

    def __init__(self, run: RunFolder, settings: EmbedderSettings) -> None:
        # The one thread that touches the model; the number of torch's threads belongs to the thread that uses them.
        executor = ThreadPoolExecutor(1, "model", torch.set_num_threads, (settings.threads,))
        self._model = executor.submit(RunModel.load, run).result()
        executor.submit(self._model.queries, ["warm-up"]).result()
        self._images = "image-weights" in run.steps
        self._max_query_tokens = run.recipe.model.text.max_query_tokens
        wait_s = settings.batch_wait_ms / 1000
        self._texts: Batcher[str, Vector | Refusal] = Batcher(self._encode, executor, settings.batch_tokens, wait_s)
        self._pictures: Batcher[bytes, Vector | Refusal] = Batcher(
            self._look, executor, settings.batch_pictures, wait_s
        )

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        """A query (unless ""), a picture (unless None), or the direction of their sum. `image` was checked."""
        if image is not None and not self._images:
            return Refusal(422, "no_image_model", "this run was trained without pictures; search by text", "image")
        parts: list[Coroutine[Any, Any, Vector | Refusal]] = []
        if query:
            parts.append(self._texts.submit(query, self._cost(query)))
        if image is not None:
            parts.append(self._pictures.submit(image))
        total = np.zeros(self._model.dimension, np.float32)
        for answer in await asyncio.gather(*parts):
            if isinstance(answer, Refusal):
                return answer
            total += answer
        vector = np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)
        return Embedded(vector, self._model.model_key)

    async def describe(self) -> Model:
        return Model(
            id=self._model.model_key,
            dimension=self._model.dimension,
            max_query_tokens=self._max_query_tokens,
            images=self._images,
        )

    async def check_health(self) -> None:
        """Serve replaces a replica whose model thread hangs."""
        busy_s = max(self._texts.busy_s, self._pictures.busy_s)
        if busy_s > STALLED_S:
            raise RuntimeError(f"the model has been busy with one batch for {busy_s:.0f} s")

    def _cost(self, query: str) -> int:
        """Tokens, estimated from above by bytes: a longer query is cut."""
        return min(len(query.encode()), self._max_query_tokens)

    def _encode(self, texts: list[str]) -> list[Vector | Refusal]:
        refusals = [self._too_long(text) for text in texts]
        kept = [text for text, refusal in zip(texts, refusals, strict=True) if refusal is None]
        vectors = iter(self._model.queries(kept) if kept else [])
        return [next(vectors) if refusal is None else refusal for refusal in refusals]

    def _look(self, images: list[bytes]) -> list[Vector | Refusal]:
        return list(self._model.pictures(images))

    def _too_long(self, text: str) -> Refusal | None:
        """A token has at least one byte, so that only long texts are counted."""
        if len(text.encode()) <= MAX_INPUT_TOKENS:
            return None
        count = len(self._model.prompter.tokenizer(text, add_special_tokens=False)["input_ids"])
        if count <= MAX_INPUT_TOKENS:
            return None
        message = f"the query has {count:,} tokens, more than {MAX_INPUT_TOKENS:,}"
        return Refusal(413, "query_too_long", message, "query")
