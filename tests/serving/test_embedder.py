"""The embedder over a model whose answers are known."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sidray.finished import RunFolder
from sidray.serving import embedder as module
from sidray.serving.embedder import Embedder
from sidray.serving.messages import Embedded, Refusal
from sidray.serving.settings import EmbedderSettings
from tests.serving.runs import MODEL_KEY, tiny_run

Vectors = npt.NDArray[np.float32]


class FakeModel:
    """A query points by its length, a picture upwards; tokens are characters."""

    model_key, dimension = MODEL_KEY, 3

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.threads: set[tuple[str, int]] = set()
        self.tokenizer = lambda text, add_special_tokens: {"input_ids": list(text)}
        self.reads_text = self.reads_pictures = True

    def queries(self, texts: Sequence[str]) -> Vectors:
        return self.encoded_queries(self.tokenised_queries(texts))

    def tokenised_queries(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]

    def encoded_queries(self, ids: Sequence[Sequence[int]]) -> Vectors:
        self.asked.append(["".join(map(chr, own)) for own in ids])
        self.threads.add((threading.current_thread().name, torch.get_num_threads()))
        return np.array([[np.cos(len(own)), np.sin(len(own)), 0] for own in ids], np.float32)

    def pictures(self, images: Sequence[bytes]) -> Vectors:
        if b"broken" in images:
            raise ValueError("damaged")
        return np.array([[0, 0, 1]] * len(images), np.float32)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(module, "load_model", lambda run: fake)
    return fake


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return tiny_run(tmp_path_factory.mktemp("run"))


async def test_a_query_a_picture_and_both(model: FakeModel, run: RunFolder) -> None:
    embedder = Embedder(run, EmbedderSettings())
    text, image, both = [
        await embedder.embed(query, picture) for query, picture in (("ab", None), ("", b"png"), ("ab", b"png"))
    ]
    assert isinstance(text, Embedded) and isinstance(image, Embedded) and isinstance(both, Embedded)  # noqa: PT018
    direction = np.array([np.cos(2), np.sin(2), 0])
    np.testing.assert_allclose(text.vector, direction, rtol=1e-6)
    np.testing.assert_allclose(image.vector, [0, 0, 1])
    np.testing.assert_allclose(both.vector, (direction + np.array([0, 0, 1])) / np.sqrt(2), rtol=1e-6)
    assert {text.model_key, image.model_key, both.model_key} == {MODEL_KEY}


async def test_concurrent_queries_are_one_batch_on_one_thread(model: FakeModel, run: RunFolder) -> None:
    embedder = Embedder(run, EmbedderSettings(threads=1, padding=8))
    answers = await asyncio.gather(*(embedder.embed("x" * n, None) for n in range(1, 9)))
    for length, answer in enumerate(answers, 1):
        assert isinstance(answer, Embedded)
        np.testing.assert_allclose(answer.vector, [np.cos(length), np.sin(length), 0], rtol=1e-5)
    assert [len(batch) for batch in model.asked] == [1, 8]  # the warm-up, then all
    assert len(model.threads) == 1
    assert next(iter(model.threads))[1] == 1


async def test_queries_of_similar_length_are_read_together(model: FakeModel, run: RunFolder) -> None:
    """Padding 10 %: three of one token, end token aside, and two of 20 make two calls; each gets its own vector."""
    embedder = Embedder(run, EmbedderSettings(batch_wait_ms=20))
    padded: list[tuple[str, list[int]]] = []
    embedder._metrics.padded = lambda lane, lengths: padded.append((lane, list(lengths)))  # type: ignore[method-assign]
    lengths = (20, 1, 1, 19, 1)
    answers = await asyncio.gather(*(embedder.embed("x" * n, None) for n in lengths))
    for length, answer in zip(lengths, answers, strict=True):
        assert isinstance(answer, Embedded)
        np.testing.assert_allclose(answer.vector, [np.cos(length), np.sin(length), 0], rtol=1e-5)
    assert padded == [("queries", [2, 2, 2]), ("queries", [20, 21])]


async def test_too_many_tokens_are_refused_beside_neighbours_that_are_not(model: FakeModel, run: RunFolder) -> None:
    embedder = Embedder(run, EmbedderSettings())
    long, exact, short = await asyncio.gather(*(embedder.embed("x" * n, None) for n in (8193, 8192, 3)))
    assert isinstance(long, Refusal)
    assert (long.status, long.code) == (413, "query_too_long")
    assert "8,193 tokens" in long.message
    assert isinstance(exact, Embedded)
    assert isinstance(short, Embedded)
    np.testing.assert_allclose(short.vector, [np.cos(3), np.sin(3), 0], rtol=1e-5)


async def test_long_text_of_few_tokens_is_taken(model: FakeModel, run: RunFolder) -> None:
    model.tokenizer = lambda text, add_special_tokens: {"input_ids": text.split()}
    answer = await Embedder(run, EmbedderSettings()).embed("long-word " * 2000, None)
    assert isinstance(answer, Embedded)


async def test_a_run_without_pictures_refuses_them(model: FakeModel, run: RunFolder) -> None:
    model.reads_pictures = False
    embedder = Embedder(run, EmbedderSettings())
    answer = await embedder.embed("ab", b"png")
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code, answer.param) == (422, "no_image_model", "image")
    assert (await embedder.describe()).images is False
    assert isinstance(await embedder.embed("ab", None), Embedded)


async def test_a_run_that_reads_pictures_alone_refuses_words(model: FakeModel, run: RunFolder) -> None:
    model.reads_text = False
    embedder = Embedder(run, EmbedderSettings())
    assert model.asked == []  # no warm-up by a text
    answer = await embedder.embed("ab", None)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.code, answer.param) == (422, "no_text_model", "query")
    assert isinstance(await embedder.embed("", b"png"), Embedded)


async def test_a_picture_that_breaks_the_model_breaks_no_other(model: FakeModel, run: RunFolder) -> None:
    embedder = Embedder(run, EmbedderSettings())
    bad, good = await asyncio.gather(embedder.embed("", b"broken"), embedder.embed("", b"png"), return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert isinstance(good, Embedded)


async def test_health_fails_when_the_model_thread_hangs(
    model: FakeModel, run: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    embedder = Embedder(run, EmbedderSettings(batch_wait_ms=0))
    gate, inside = threading.Event(), threading.Event()

    def hangs(texts: Sequence[Sequence[int]]) -> Vectors:
        inside.set()
        gate.wait(5)
        return np.zeros((len(texts), 3), np.float32)

    monkeypatch.setattr(model, "encoded_queries", hangs)
    monkeypatch.setattr(module, "STALLED_S", 0.0)
    await embedder.check_health()
    waiting = asyncio.create_task(embedder.embed("ab", None))
    while not inside.is_set():
        await asyncio.sleep(0.001)
    with pytest.raises(RuntimeError, match="busy with one batch"):
        await embedder.check_health()
    gate.set()
    await waiting
    await embedder.check_health()


async def test_health_fails_when_the_model_fails_whatever_it_reads(
    model: FakeModel, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(ids: Sequence[Sequence[int]]) -> Vectors:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    embedder = Embedder(run, EmbedderSettings(batch_wait_ms=0))
    with monkeypatch.context() as patched:
        patched.setattr(model, "encoded_queries", fails)
        for _ in range(module.MAX_FAILED):
            await embedder.check_health()
            with pytest.raises(RuntimeError, match="CUDA"):
                await embedder.embed("ab", None)
        for _ in range(3):  # Serve asks more than once
            with pytest.raises(RuntimeError, match=r"fails with sound input.*CUDA"):
                await embedder.check_health()
    await embedder.check_health()


@pytest.mark.parametrize("reads_text", [True, False])
async def test_input_that_the_model_cannot_read_leaves_the_replica_healthy(
    model: FakeModel, run: RunFolder, reads_text: bool
) -> None:
    model.reads_text = reads_text
    embedder = Embedder(run, EmbedderSettings(batch_wait_ms=0))
    for _ in range(2 * module.MAX_FAILED):
        with pytest.raises(ValueError, match="damaged"):
            await embedder.embed("", b"broken")
        await embedder.check_health()
    assert isinstance(await embedder.embed("", b"png"), Embedded)


async def test_what_is_outstanding_is_reported_in_tokens(model: FakeModel, run: RunFolder) -> None:
    """A picture counts as its share of a batch: a quarter of 80 tokens."""
    embedder = Embedder(run, EmbedderSettings(batch_tokens=80, batch_pictures=4, batch_wait_ms=50))
    waiting = [asyncio.create_task(embedder.embed(*each)) for each in (("abc", None), ("", b"png"))]
    await asyncio.sleep(0.01)
    assert await embedder.record_autoscaling_stats() == {"outstanding_tokens": 23}
    await asyncio.gather(*waiting)
    assert await embedder.record_autoscaling_stats() == {"outstanding_tokens": 0}
