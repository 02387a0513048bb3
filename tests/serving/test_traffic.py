"""Which run answers: shares, the primary, a client's choice, shadows; and writes to all of them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from functools import partial
from io import StringIO

import httpx
import pytest

from sidray.errors import UserError
from sidray.serving.auth import Keys
from sidray.serving.gateway import create_api
from sidray.serving.messages import Found, Refusal, RunInfo
from sidray.serving.problems import ApiError, overloaded
from sidray.serving.promote import shares_with
from sidray.serving.schemas import Index, IndexKey, SearchRequest
from sidray.serving.settings import GatewaySettings
from sidray.serving.traffic import MAX_SHADOWED, Shares, Traffic
from tests.serving.fakes import HIT, MAX_PIXELS, FakeBackend


class Run(FakeBackend):
    """Answers with its own name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.model_key = name, f"model-{name}"
        self.key = IndexKey(run=name, model_key=f"model-{name}", generation="g", table_version=1)
        self.answer: Found | Refusal = Found([HIT], self.key)
        self.info = RunInfo(1, MAX_PIXELS, ("shop",) if name != "c" else ())
        self.up = True

    async def describe(self) -> Index:
        return (await super().describe()).model_copy(update=self.key.model_dump())


@pytest.fixture
def runs() -> dict[str, Run]:
    return {name: Run(name) for name in "abc"}


def traffic_of(runs: dict[str, Run], shares: Shares) -> Traffic:
    async def connect(name: str) -> Run:
        if not runs[name].up:
            await asyncio.sleep(60)
        return runs[name]

    return Traffic(connect, GatewaySettings(), shares)


async def request(traffic: Traffic, method: str, path: str, body: object = None, run: str = "") -> httpx.Response:
    async def nothing() -> str:
        return ""

    transport = httpx.ASGITransport(create_api(traffic, 8, Keys({}), nothing))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, json=body, headers={"X-Sidray-Run": run} if run else {})


async def test_searches_go_by_weight(runs: dict[str, Run]) -> None:
    random.seed(0)
    traffic = traffic_of(runs, Shares({"a": 9.0, "b": 1.0}))
    seen = Counter([(await traffic.service()).backend.name for _ in range(2000)])  # type: ignore[attr-defined]
    assert set(seen) == {"a", "b"}
    assert 140 < seen["b"] < 260


async def test_the_answer_names_its_run_and_a_client_may_choose_it(runs: dict[str, Run]) -> None:
    traffic = traffic_of(runs, Shares({"a": 0.9, "b": 0.1}, ["c"]))
    for name in "abc":
        answer = await request(traffic, "POST", "/v1/search", {"query": "soup"}, run=name)
        assert answer.json()["index"]["run"] == name
    wrong = await request(traffic, "POST", "/v1/search", {"query": "soup"}, run="d")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "unknown_run")


async def test_a_table_version_is_the_primarys(runs: dict[str, Run]) -> None:
    traffic = traffic_of(runs, Shares({"b": 0.4, "a": 0.6}))
    for _ in range(30):
        answer = await request(traffic, "POST", "/v1/search", {"query": "soup", "min_table_version": 1})
        assert answer.json()["index"]["run"] == "a"
    models = (await request(traffic, "GET", "/v1/models")).json()["data"]
    assert [model["id"] for model in models] == ["model-a", "model-b"]


async def test_shadows_get_copies_and_never_answer(runs: dict[str, Run]) -> None:
    traffic = traffic_of(runs, Shares({"a": 1.0}, ["b", "c"]))
    runs["b"].answer = Refusal(404, "unknown_partition", "not there")  # nobody is told
    for _ in range(5):
        answer = await request(traffic, "POST", "/v1/search", {"query": "soup"})
        assert answer.json()["index"]["run"] == "a"
    await asyncio.gather(*traffic._copies)
    assert [len(runs[name].recalled) for name in "abc"] == [5, 5, 5]


async def test_a_shadow_is_not_asked_for_the_primarys_table_version(runs: dict[str, Run]) -> None:
    traffic = traffic_of(runs, Shares({"a": 1.0}, ["b"]))
    await request(traffic, "POST", "/v1/search", {"query": "soup", "min_table_version": 7})
    await asyncio.gather(*traffic._copies)
    assert [runs[name].recalled[0].min_table_version for name in "ab"] == [7, 0]


async def test_a_vector_goes_to_no_other_model(runs: dict[str, Run]) -> None:
    """The gateway cannot see whose it is: the primary's, or that of the run which the client names."""
    traffic = traffic_of(runs, Shares({"a": 0.6, "b": 0.4}, ["c"]))
    for _ in range(30):
        answer = await request(traffic, "POST", "/v1/search", {"vector": [1, 0, 0, 0]})
        assert answer.json()["index"]["run"] == "a"
    answer = await request(traffic, "POST", "/v1/search", {"vector": [1, 0, 0, 0]}, run="b")
    assert answer.json()["index"]["run"] == "b"
    await asyncio.gather(*traffic._tasks)
    assert [len(runs[name].recalled) for name in "abc"] == [30, 1, 0]


async def test_a_slow_shadow_is_left_behind(runs: dict[str, Run]) -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    runs["b"].before = wait
    traffic = traffic_of(runs, Shares({"a": 1.0}, ["b"]))
    for _ in range(MAX_SHADOWED + 20):
        traffic.copy(SearchRequest(query="soup"))
        await asyncio.sleep(0)
    assert len(traffic._copies) == MAX_SHADOWED
    gate.set()
    await asyncio.gather(*traffic._copies)
    assert len(runs["b"].embedded) == MAX_SHADOWED


MODELS = ("model-a", "model-b", "model-c")
ITEMS = {"items": [{"item_id": "a1", "title": "Soup"}]}


async def test_writes_go_to_all_and_are_acknowledged_when_all_have_them(runs: dict[str, Run]) -> None:
    traffic = traffic_of(runs, Shares({"b": 0.1, "a": 0.9}, ["c"]))
    runs["a"].written, runs["b"].written = 7, 9
    assert (await request(traffic, "PUT", "/v1/items", ITEMS)).json()["table_version"] == 7
    assert all("a1" in run.items for run in runs.values())
    del runs["c"].items["a1"]
    assert (await request(traffic, "DELETE", "/v1/items/a1")).json()["table_version"] == 7
    assert not any("a1" in run.items for run in runs.values())
    assert (await request(traffic, "DELETE", "/v1/items/a1")).status_code == 404
    runs["b"].written = Refusal(503, "storage_unavailable", "away")
    assert (await request(traffic, "PUT", "/v1/items", ITEMS)).status_code == 503
    runs["b"].items["a1"] = runs["a"].items["a1"]
    assert (await request(traffic, "DELETE", "/v1/items/a1")).status_code == 503


SHOPS = [{"item_id": "a1", "title": "Soup", "shop": "Bar"}, {"item_id": "a2", "title": "Tea"}]


async def test_an_item_that_one_run_refuses_is_not_accepted(runs: dict[str, Run]) -> None:
    """c has no field `shop`; what is wrong with all three is told once. No table has what was not accepted."""
    items = [*SHOPS, {"item_id": "a3", "title": " "}]
    answer = await request(traffic_of(runs, Shares({"a": 0.9, "c": 0.1}, ["b"])), "PUT", "/v1/items", {"items": items})
    found = answer.json()
    assert found["accepted"] == 1
    assert [each["item_id"] for each in found["rejected"]] == ["a1", "a3"]
    assert "unknown field 'shop'" in found["rejected"][0]["reason"]
    assert [set(run.items) for run in runs.values()] == [{"a2"}] * 3


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a gateway logs of its runs."""
    stream, logger = StringIO(), logging.Logger("traffic")
    logger.addHandler(logging.StreamHandler(stream))
    monkeypatch.setattr("sidray.serving.traffic._LOGGER", logger)
    return stream


async def test_what_a_shadow_refuses_is_logged_alone(runs: dict[str, Run], log: StringIO) -> None:
    traffic = traffic_of(runs, Shares({"a": 0.9, "b": 0.1}, ["c"]))
    answer = (await request(traffic, "PUT", "/v1/items", {"items": SHOPS})).json()
    assert (answer["accepted"], answer["rejected"], answer["table_version"]) == (2, [], 4)
    assert [set(run.items) for run in runs.values()] == [{"a1", "a2"}, {"a1", "a2"}, {"a2"}]
    assert "shadow c: 1 of 2 items do not fit; 'a1': unknown field 'shop'" in log.getvalue()


@pytest.mark.parametrize("trouble", ["full", "broken", "down"])
async def test_a_shadow_that_cannot_write_refuses_nothing(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, log: StringIO, trouble: str
) -> None:
    monkeypatch.setattr("sidray.serving.traffic.READY_S", 0.01)

    async def broken() -> None:
        raise UserError("item 'a1' has a vector that is not finite")

    runs["c"].up = trouble != "down"
    runs["c"].before = broken if trouble == "broken" else None
    runs["c"].written = Refusal(503, "storage_unavailable", "away")
    traffic = traffic_of(runs, Shares({"a": 0.9, "b": 0.1}, ["c"]))
    assert (await request(traffic, "PUT", "/v1/items", ITEMS)).json()["accepted"] == 1
    assert (await request(traffic, "DELETE", "/v1/items/a1")).status_code == 200
    assert "shadow c" in log.getvalue()


async def test_a_run_that_is_away_does_not_hold_up_the_others(runs: dict[str, Run]) -> None:
    async def busy() -> None:
        raise ApiError(overloaded())

    runs["b"].before = busy
    traffic = traffic_of(runs, Shares({"a": 1.0}, ["b", "c"]))
    embedded = {
        model: await request(traffic, "POST", "/v1/embeddings", {"model": model, "input": "soup"}) for model in MODELS
    }
    assert [answer.status_code for answer in embedded.values()] == [200, 404, 200]
    models = await request(traffic, "GET", "/v1/models")
    assert [model["id"] for model in models.json()["data"]] == ["model-a", "model-c"]
    runs["a"].before = busy
    assert (await request(traffic, "GET", "/v1/models")).status_code == 503


async def test_embeddings_are_of_the_model_that_is_asked_for(runs: dict[str, Run]) -> None:
    traffic = traffic_of(runs, Shares({"a": 0.9, "b": 0.1}))
    answer = await request(traffic, "POST", "/v1/embeddings", {"model": "model-b", "input": "soup"})
    assert answer.json()["model"] == "model-b"
    assert (len(runs["a"].embedded), len(runs["b"].embedded)) == (0, 1)


async def test_what_a_run_is_is_asked_now_and_then(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve deploy` may put a run with other text fields under the same name."""
    item = {"items": [{"item_id": "a1", "title": "Soup", "maker": "m"}]}

    async def other() -> None:
        runs["a"].info = RunInfo(1, MAX_PIXELS, ("maker",))

    runs["a"].before = other
    traffic = traffic_of(runs, Shares({"a": 1.0}))
    refused = (await request(traffic, "PUT", "/v1/items", item)).json()["rejected"]
    assert "unknown field 'maker'" in refused[0]["reason"]
    monkeypatch.setattr("sidray.serving.traffic.KNOWN_S", -1.0)
    await traffic.service()
    await asyncio.gather(*traffic._tasks)
    assert (await request(traffic, "PUT", "/v1/items", item)).json()["rejected"] == []


async def test_a_run_that_does_not_say_what_it_is_goes_on(
    runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> None:
        raise ApiError(Refusal(503, "overloaded", "away"))

    traffic = traffic_of(runs, Shares({"a": 1.0}))
    await traffic.service()
    runs["a"].before = away
    monkeypatch.setattr("sidray.serving.traffic.KNOWN_S", -1.0)
    assert (await traffic.service()).backend is runs["a"]
    await asyncio.gather(*traffic._tasks)


async def test_a_run_that_is_not_up_is_503(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidray.serving.traffic.READY_S", 0.01)
    runs["a"].up = False
    answer = await request(traffic_of(runs, Shares({"a": 1.0})), "GET", "/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")


async def test_readiness_is_the_primarys_and_shared(runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes need no key: whoever asks often or names a run costs the runs nothing."""
    monkeypatch.setattr("sidray.serving.traffic.READINESS_S", 60.0)
    asked: list[str] = []

    async def ask(name: str) -> None:
        asked.append(name)
        await asyncio.sleep(0.01)

    for name, run in runs.items():
        run.before = partial(ask, name)
    traffic = traffic_of(runs, Shares({"a": 0.9, "b": 0.1}))
    answers = await asyncio.gather(*(request(traffic, "GET", "/readyz", run=name) for name in ("", "b", "d")))
    answers.append(await request(traffic, "GET", "/readyz"))
    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"status": "ready"})] * 4
    assert asked == ["a"]
    runs["a"].model_key = "model-z"
    monkeypatch.setattr("sidray.serving.traffic.READINESS_S", -1.0)
    assert (await request(traffic, "GET", "/readyz")).status_code == 503
    monkeypatch.setattr("sidray.serving.traffic.READINESS_S", 60.0)
    assert (await request(traffic, "GET", "/readyz")).status_code == 503
    assert asked == ["a", "a"]


@pytest.mark.parametrize(
    ("before", "weight", "shadow", "weights", "shadows"),
    [
        (Shares({"a": 1.0}), 0.1, False, {"a": 0.9, "n": 0.1}, []),
        (Shares({"a": 3.0, "b": 1.0}, ["c"]), 0.2, False, {"a": 0.6, "b": 0.2, "n": 0.2}, ["c"]),
        (Shares({"a": 0.9, "n": 0.1}, ["c"]), 1.0, False, {"n": 1.0}, []),
        (Shares({"a": 0.9, "n": 0.1}), 0.0, False, {"a": 1.0}, []),
        (Shares({"a": 1.0}), 0.0, True, {"a": 1.0}, ["n"]),
        (Shares({"a": 1.0}, ["n", "c"]), 0.5, False, {"a": 0.5, "n": 0.5}, ["c"]),
        (Shares({"n": 1.0}), 0.3, False, {"n": 1.0}, []),
    ],
)
def test_new_shares(before: Shares, weight: float, shadow: bool, weights: dict[str, float], shadows: list[str]) -> None:
    after = shares_with(before, "n", weight, shadow)
    assert after.weights == pytest.approx(weights)
    assert after.shadows == shadows


def test_the_only_run_cannot_be_ended() -> None:
    for shadow in (False, True):
        with pytest.raises(UserError, match="the only run that is served"):
            shares_with(Shares({"n": 1.0}), "n", 0.0, shadow)
