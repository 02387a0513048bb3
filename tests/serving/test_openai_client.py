"""OpenAI's own Python client against the shapes of /v1/embeddings, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.servers import Fault, Scripted, serving

openai = pytest.importorskip("openai")


@pytest.fixture
def server() -> Iterator[Scripted]:
    """Reads EmbeddingsRequest, answers EmbeddingsResponse."""
    with serving(Scripted()) as scripted:
        yield scripted


@pytest.fixture
def client(server: Scripted) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="geheim", max_retries=0) as made:
        yield made


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 2}, {"user": "u"}])
def test_vectors_arrive_as_numbers(client: Any, options: dict[str, Any]) -> None:
    """By default it asks for base64 and decodes it."""
    answer = client.embeddings.create(model="m-1", input=["7", "8"], **options)
    rows = sorted(answer.data, key=lambda row: row.index)
    assert [row.embedding for row in rows] == [[7, pytest.approx(0.1)], [8, pytest.approx(0.1)]]
    assert (answer.model, answer.usage.total_tokens) == ("m-1", 3)


def test_what_it_sends(client: Any, server: Scripted) -> None:
    client.embeddings.create(model="m-1", input="7")
    client.embeddings.create(model="m-1", input=["7"], dimensions=2)
    assert [seen.json for seen in server.seen] == [
        {"model": "m-1", "input": "7", "encoding_format": "base64"},
        {"model": "m-1", "input": ["7"], "encoding_format": "base64", "dimensions": 2},
    ]
    assert server.seen[0].headers["authorization"] == "Bearer geheim"


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["m-1"]
    assert client.models.list().data[0].owned_by == "sidray"


@pytest.mark.parametrize(("status", "kind"), [(400, "BadRequestError"), (429, "RateLimitError")])
def test_refusals_become_its_own_errors(client: Any, server: Scripted, status: int, kind: str) -> None:
    error = {"type": "invalid_request_error", "code": "bad", "message": "not so", "param": "dimensions"}
    server.script.append(Fault(status, json.dumps({"error": error}).encode()))
    with pytest.raises(getattr(openai, kind), match="not so") as caught:
        client.embeddings.create(model="m-1", input=["7"], dimensions=3)
    assert (caught.value.code, caught.value.param, caught.value.type) == ("bad", "dimensions", "invalid_request_error")
