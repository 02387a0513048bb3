"""API keys: who comes in, how often, and that nothing of a key is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from sidray.errors import UserError
from sidray.serving import auth
from sidray.serving.auth import Keys, new_key
from tests.serving.fakes import FakeBackend, api_of, client_of

PREFIXES = ["", "/sidray", "/behind/a proxy"]


async def get(keys: Keys, authorization: str | None, path: str = "/v1/index", prefix: str = "") -> httpx.Response:
    async with client_of(FakeBackend(), keys=keys, prefix=prefix) as client:
        return await client.get(path, headers={} if authorization is None else {"Authorization": authorization})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Keys, str, str]:
    (first, line), (second, other) = new_key("search"), new_key("batch")
    (tmp_path / "keys").write_text(f"# clients\n\n{line}\n{other}\n")
    return Keys.load(str(tmp_path / "keys"), 0), first, second


async def test_only_a_known_key_comes_in(two: tuple[Keys, str, str]) -> None:
    keys, first, second = two
    for key in (first, second):
        assert (await get(keys, f"Bearer {key}")).status_code == 200
        assert (await get(keys, f"bearer  {key} ")).status_code == 200
    for wrong, code in [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        (first, "missing_api_key"),
        ("Bearer ", "missing_api_key"),
        (f"Basic {first}", "missing_api_key"),
        (f"Bearer {first}x", "invalid_api_key"),
        (f"Bearer {first[:-1]}", "invalid_api_key"),
        (f"Bearer {auth._hash(first)}", "invalid_api_key"),
    ]:
        answer = await get(keys, wrong)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert first[:-1] not in answer.text


@pytest.mark.parametrize("prefix", PREFIXES)
async def test_probes_and_the_page_need_no_key_and_unknown_routes_do(two: tuple[Keys, str, str], prefix: str) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/", "/page.js"):
        assert (await get(two[0], None, path, prefix)).status_code == 200
    for path in ("/v1/index", "/v1/items/a%2Fb", "/v1/nothing", "/metrics", "/nothing", "/healthz/", "//v1/index"):
        assert (await get(two[0], None, path, prefix)).status_code == 401
    assert (await get(two[0], f"Bearer {two[1]}", "/v1/index", prefix)).status_code == 200


async def test_the_document_says_whether_a_key_is_needed(two: tuple[Keys, str, str]) -> None:
    for keys in (two[0], Keys({})):
        document = (await get(keys, None, "/openapi.json")).json()
        routes = [(path, route) for path, each in document["paths"].items() for route in each.values()]
        asking = {path for path, route in routes if "security" in route}
        assert asking == ({path for path, _ in routes} - {"/healthz", "/readyz"} if keys.needed else set())
        schemes = document["components"].get("securitySchemes", {}).values()
        assert [(each["type"], each["scheme"]) for each in schemes] == [("http", "bearer")] * keys.needed


async def test_two_keys_of_one_name_are_valid_and_share_a_rate(tmp_path: Path) -> None:
    (old, line), (new, other) = new_key("search"), new_key("search")
    (tmp_path / "keys").write_text(f"{line}\n{other}\n")
    keys = Keys.load(str(tmp_path / "keys"), 0)
    assert [keys.refusal(f"Bearer {key}") for key in (old, new)] == [None, None]
    keys = Keys.load(str(tmp_path / "keys"), 1.0)
    assert keys.refusal(f"Bearer {old}") is None
    assert (await get(keys, f"Bearer {new}")).status_code == 429


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one key, "search", at which gateways look every few milliseconds."""
    monkeypatch.setattr(auth, "REREAD_S", 0.005)
    (tmp_path / "keys").write_text(new_key("search")[1])
    return tmp_path / "keys"


@asynccontextmanager
async def running(keys: Keys) -> AsyncIterator[None]:
    """A gateway with these keys, for the block."""
    api = api_of(FakeBackend(), 8, keys)
    async with api.router.lifespan_context(api):
        yield


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_running_gateway_follows_the_file(file: Path) -> None:
    keys = Keys.load(str(file), 0)
    first, line = new_key("search")
    second, other = new_key("search")
    async with running(keys):
        file.write_text(line)
        await until(lambda: keys.refusal(f"Bearer {first}") is None)
        file.write_text(other)
        await until(lambda: keys.refusal(f"Bearer {first}") is not None)
        assert (await get(keys, f"Bearer {first}")).status_code == 401
        assert (await get(keys, f"Bearer {second}")).status_code == 200
    file.write_text(line)
    await asyncio.sleep(0.05)
    assert keys.refusal(f"Bearer {second}") is None  # a gateway that has ended looks no more


@pytest.mark.parametrize("broken", ["", "# none\n", "search zz\n", None])
async def test_a_file_that_breaks_keeps_the_keys_that_are_known(
    file: Path, monkeypatch: pytest.MonkeyPatch, broken: str | None
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(auth._LOGGER, "warning", lambda *args: logged.append(str(args)))
    key, line = new_key("search")
    file.write_text(line)
    keys = Keys.load(str(file), 0)
    async with running(keys):
        if broken is None:
            file.unlink()
        else:
            file.write_text(broken)
        await until(lambda: len(logged) >= 2)
        assert keys.refusal(f"Bearer {key}") is None
        assert keys.refusal("") is not None
        assert str(file) in logged[0]
        later, line = new_key("search")
        file.write_text(line)
        await until(lambda: keys.refusal(f"Bearer {later}") is None)
        assert keys.refusal(f"Bearer {key}") is not None


async def test_without_a_file_everybody_comes_in() -> None:
    assert (await get(Keys.load("", 0), None)).status_code == 200


async def test_a_key_that_asks_too_often_waits_and_others_do_not(
    two: tuple[Keys, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, second = two
    now = [100.0]
    monkeypatch.setattr(auth, "monotonic", lambda: now[0])
    keys = Keys.load(str(tmp_path / "keys"), 2.0)
    assert [keys.refusal(f"Bearer {first}") for _ in range(2)] == [None, None]
    answer = await get(keys, f"Bearer {first}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
    assert answer.headers["retry-after"] == "1"
    assert keys.refusal(f"Bearer {second}") is None
    now[0] += 0.5
    assert keys.refusal(f"Bearer {first}") is None
    assert keys.refusal(f"Bearer {first}") is not None
    now[0] += 60
    assert sum(keys.refusal(f"Bearer {first}") is None for _ in range(10)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("# none\n", "holds no key"),
        ("a b c\n", "line 1"),
        (f"x {'0' * 64}\ny zz\n", "line 2"),
    ],
)
def test_a_file_of_keys_that_is_none(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=says):
        Keys.load(str(tmp_path / "keys"), 0)


def test_keys_are_random_and_their_lines_do_not_tell_them() -> None:
    (key, line), (other, _) = new_key("a"), new_key("a")
    assert key != other
    assert len(key) >= 40
    assert key not in line
    for name in ("", "a b", "#a"):
        with pytest.raises(UserError, match="is no name"):
            new_key(name)
