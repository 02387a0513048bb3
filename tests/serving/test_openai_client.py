"""OpenAI's own Python client against the gateway, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sidray.serving.auth import Keys, new_key
from tests.client.servers import under_uvicorn
from tests.serving.fakes import MODEL_KEY, FakeBackend, api_of

openai = pytest.importorskip("openai")
KEY, LINE = new_key("openai")
KEYS = Keys(dict([LINE.split()]))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with under_uvicorn(api_of(FakeBackend(), 8, KEYS)) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"dimensions": 4}, {"user": "u"}])
@pytest.mark.parametrize("given", ["soup", ["soup", "rice"]])
def test_vectors_arrive_as_numbers(client: Any, options: dict[str, Any], given: Any) -> None:
    """By default it asks for base64 and decodes it."""
    answer = client.embeddings.create(model=MODEL_KEY, input=given, **options)
    count = 1 if isinstance(given, str) else 2
    assert [(row.index, row.embedding) for row in answer.data] == [(n, [1, 0, 0, 0]) for n in range(count)]
    assert (answer.model, answer.usage.total_tokens) == (MODEL_KEY, 4 * count)


def test_models(client: Any) -> None:
    assert [(model.id, model.owned_by) for model in client.models.list()] == [(MODEL_KEY, "sidray")]


@pytest.mark.parametrize(
    ("change", "kind", "code", "param"),
    [
        ({"dimensions": 2}, "BadRequestError", "unsupported_dimensions", "dimensions"),
        ({"model": "gpt"}, "NotFoundError", "model_not_found", "model"),
        ({"input": [[1, 2]]}, "BadRequestError", "input_type", "input"),
    ],
)
def test_refusals_become_its_own_errors(client: Any, change: dict[str, Any], kind: str, code: str, param: str) -> None:
    with pytest.raises(getattr(openai, kind)) as caught:
        client.embeddings.create(**{"model": MODEL_KEY, "input": "soup", **change})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_wrong_key(url: str) -> None:
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as made:
        with pytest.raises(openai.AuthenticationError, match="not valid") as caught:
            made.models.list()
        assert caught.value.code == "invalid_api_key"
