"""The embedder: texts, pictures and items to unit vectors, batched across concurrent requests on one model thread.

A plain class; app.py makes it a Serve deployment. Queries, pictures and items wait in queues of their own, each with at
most one batch in the thread, so that a bulk client cannot starve searches: a search waits for one batch of each.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from sidray.embedding.encoded import load_model
from sidray.finished import RunFolder
from sidray.models.lengths import of_similar_length
from sidray.serving.autoscaling import STAT
from sidray.serving.batcher import Batcher
from sidray.serving.messages import Embedded, EncodedItems, NewItem, Refusal, Times, Vector
from sidray.serving.metrics import BatchMetrics
from sidray.serving.schemas import Model
from sidray.serving.settings import EmbedderSettings

T = TypeVar("T")
R = TypeVar("R")
MAX_INPUT_TOKENS = 8192
STALLED_S = 120.0
MAX_FAILED = 5  # calls of the model in a row, before it is asked something that it must be able to read


@dataclass(frozen=True)
class _Computed:
    """A row of a batch; `started` on the monotonic clock, the times in seconds."""

    vector: Vector
    tokens: int
    started: float
    tokenise_s: float
    infer_s: float


class Embedder:
    """Loads the model of a run and answers once with it, so that the first client does not pay for that."""

    def __init__(self, run: RunFolder, settings: EmbedderSettings) -> None:
        # The one thread that touches the model; the number of torch's threads belongs to the thread that uses them.
        self._executor = executor = ThreadPoolExecutor(1, "model", torch.set_num_threads, (settings.threads,))
        self._model = executor.submit(load_model, run).result()
        executor.submit(self._answer_something).result()
        self._failed = 0  # calls in a row
        self._run = run.name
        self._images = self._model.reads_pictures
        self._max_query_tokens = run.recipe.model.text.max_query_tokens
        self._padding = settings.padding
        self._metrics = BatchMetrics()

        def lane(name: str, compute: Callable[[list[T]], Sequence[R]], budget: int) -> Batcher[T, R]:
            def timed(rows: list[T]) -> Sequence[R]:
                started = time.monotonic()
                self._failed += 1
                try:
                    answers = compute(rows)
                    self._failed = 0
                    return answers
                finally:
                    self._metrics.computed(name, len(rows), time.monotonic() - started)

            return Batcher(timed, executor, budget, settings.batch_wait_ms / 1000)

        self._texts = lane("queries", partial(self._read, "queries"), settings.batch_tokens)
        self._bulk = lane("bulk", partial(self._read, "bulk"), max(1, settings.batch_tokens // 4))
        self._pictures = lane("pictures", self._look, settings.batch_pictures)
        self._items = lane("items", self._encode, settings.batch_items)
        self._lanes: list[Batcher[Any, Any]] = [self._texts, self._bulk, self._pictures, self._items]

    async def embed(self, query: str, image: bytes | None) -> Embedded | Refusal:
        """A query (unless ""), a picture (unless None), or the direction of their sum. `image` was checked."""
        return await self._embed(self._texts, query, image)

    async def embed_all(self, inputs: list[tuple[str, bytes | None]]) -> list[Embedded | Refusal]:
        """Each as `embed` would, behind the searches."""
        return list(await asyncio.gather(*(self._embed(self._bulk, text, image) for text, image in inputs)))

    async def encode_items(self, items: list[NewItem]) -> EncodedItems:
        """Vectors and SIDs of new or changed items, each as if it were alone."""
        answers = await asyncio.gather(*(self._items.submit(item) for item in items))
        vectors = np.stack([vector for vector, _ in answers])
        return EncodedItems(vectors, [sids for _, sids in answers], self._model.model_key)

    async def describe(self) -> Model:
        return Model(
            id=self._model.model_key,
            run=self._run,
            dimension=self._model.dimension,
            max_query_tokens=self._max_query_tokens,
            images=self._images,
        )

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """A picture or an item counts as its share of a batch."""
        parts = (lane.outstanding / lane.budget for lane in self._lanes)
        return {STAT: self._texts.budget * sum(parts)}

    async def check_health(self) -> None:
        """Serve replaces a replica whose model thread hangs, and one whose model fails whatever it reads, as after an
        error of its GPU. It is not enough that rows fail: a client may send such rows alone."""
        busy_s = max(lane.busy_s for lane in self._lanes)
        if busy_s > STALLED_S:
            raise RuntimeError(f"the model has been busy with one batch for {busy_s:.0f} s")
        if self._failed >= MAX_FAILED:
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, self._answer_something)
            except Exception as error:
                raise RuntimeError(f"the model fails with sound input: {error!r}") from error
            self._failed = 0

    def _answer_something(self) -> None:
        if self._model.reads_text:
            self._model.queries(["warm-up"])
        else:
            self._model.pictures([_blank_picture()])

    async def _embed(
        self, texts: Batcher[str, _Computed | Refusal], query: str, image: bytes | None
    ) -> Embedded | Refusal:
        if image is not None and not self._images:
            message = "this run's model reads no picture without its text; search by text"
            return Refusal(422, "no_image_model", message, "image")
        if query and not self._model.reads_text:
            message = "this run's model reads pictures alone; search by picture"
            return Refusal(422, "no_text_model", message, "query")
        submitted = time.monotonic()
        parts: list[Coroutine[Any, Any, _Computed | Refusal]] = []
        if query:
            parts.append(texts.submit(query, self._cost(query)))
        if image is not None:
            parts.append(self._pictures.submit(image))
        total, done = np.zeros(self._model.dimension, np.float32), []
        for answer in await asyncio.gather(*parts):
            if isinstance(answer, Refusal):
                return answer
            total += answer.vector
            done.append(answer)
        vector = np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), np.float32)
        return Embedded(vector, self._model.model_key, sum(part.tokens for part in done), _times(submitted, done))

    def _cost(self, query: str) -> int:
        """Tokens, estimated from above by bytes: a longer query is cut."""
        return min(len(query.encode()), self._max_query_tokens)

    def _read(self, lane: str, texts: list[str]) -> list[_Computed | Refusal]:
        started = time.monotonic()
        refusals = [self._too_long(text) for text in texts]
        kept = [text for text, refusal in zip(texts, refusals, strict=True) if refusal is None]
        ids = self._model.tokenised_queries(kept)
        tokenised = time.monotonic()
        vectors = self._encoded(lane, ids)
        times = (started, tokenised - started, time.monotonic() - tokenised)
        computed = iter([_Computed(vector, len(own) + 1, *times) for vector, own in zip(vectors, ids, strict=True)])
        return [next(computed) if refusal is None else refusal for refusal in refusals]

    def _encoded(self, lane: str, ids: list[list[int]]) -> Vector:
        """The vectors of tokenised texts, [n, d]; texts of similar length are read in one call."""
        lengths = [len(own) + 1 for own in ids]
        vectors = np.empty((len(ids), self._model.dimension), np.float32)
        for rows in of_similar_length(lengths, self._padding):
            vectors[rows] = self._model.encoded_queries([ids[row] for row in rows])
            self._metrics.padded(lane, [lengths[row] for row in rows])
        return vectors

    def _look(self, images: list[bytes]) -> list[_Computed | Refusal]:
        started = time.monotonic()
        vectors = self._model.pictures(images)
        return [_Computed(vector, 0, started, 0.0, time.monotonic() - started) for vector in vectors]

    def _encode(self, items: list[NewItem]) -> list[tuple[Vector, list[int]]]:
        encoded = self._model.items([{**item.fields, "title": item.title, "image": item.image} for item in items])
        return list(zip(encoded.vectors, encoded.sids, strict=True))

    def _too_long(self, text: str) -> Refusal | None:
        """A token has at least one byte, so that only long texts are counted."""
        if len(text.encode()) <= MAX_INPUT_TOKENS:
            return None
        count = len(self._model.tokenizer(text, add_special_tokens=False)["input_ids"])
        if count <= MAX_INPUT_TOKENS:
            return None
        message = f"the query has {count:,} tokens, more than {MAX_INPUT_TOKENS:,}"
        return Refusal(413, "query_too_long", message, "query")


def _blank_picture() -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stored, "PNG")
    return stored.getvalue()


def _times(submitted: float, parts: list[_Computed]) -> Times:
    """Of a query and its picture, which wait side by side and are computed one after the other."""
    queue = min(part.started for part in parts) - submitted
    tokenise, infer = sum(part.tokenise_s for part in parts), sum(part.infer_s for part in parts)
    return Times(round(1000 * queue, 3), round(1000 * tokenise, 3), round(1000 * infer, 3))
