"""The search page's files: headers, tags, what lies in the package."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from sidray.serving.auth import Keys, new_key
from tests.serving.fakes import FakeBackend, client_of

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/service.js": ("service.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
WEB = files("sidray.serving").joinpath("web")


@pytest.mark.parametrize("path", FILES)
async def test_a_file_of_the_page_comes_with_its_policy(path: str) -> None:
    name, media_type = FILES[path]
    async with client_of(FakeBackend()) as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.content == WEB.joinpath(name).read_bytes()
    assert answer.headers["content-type"] == media_type
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-cache"
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' data: blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


@pytest.mark.parametrize("path", FILES)
async def test_a_file_that_the_browser_has_is_not_sent_again(path: str) -> None:
    async with client_of(FakeBackend()) as client:
        tag = (await client.get(path)).headers["etag"]
        assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
        for known in (tag, f"W/{tag}", f'"older", {tag}', "*"):
            answer = await client.get(path, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
            assert "content-security-policy" in answer.headers
        assert (await client.get(path, headers={"If-None-Match": '"older"'})).status_code == 200


async def test_tags_differ_and_head_is_answered() -> None:
    async with client_of(FakeBackend()) as client:
        tags = {(await client.head(path)).headers["etag"] for path in FILES}
        assert len(tags) == len(FILES)
        assert (await client.post("/")).status_code == 405


async def test_the_page_itself_needs_no_key() -> None:
    name, value = new_key("team")[1].split()
    async with client_of(FakeBackend(), keys=Keys({name: value})) as client:
        assert (await client.get("/v1/index")).status_code == 401
        assert {(await client.get(path)).status_code for path in FILES} == {200}


async def test_the_page_is_no_part_of_the_api() -> None:
    async with client_of(FakeBackend()) as client:
        assert set((await client.get("/openapi.json")).json()["paths"]) & set(FILES) == set()


def test_the_package_holds_these_files_and_the_page_asks_for_no_others() -> None:
    assert {file.name for file in WEB.iterdir()} == {name for name, _ in FILES.values()}
    page = WEB.joinpath("index.html").read_text("utf-8")
    linked = re.findall(r'<(?:script|link|img|use)\b[^>]*(?:src|href)="([^"]*)"', page)
    local = [address for address in linked if not address.startswith(("data:", "#"))]
    assert sorted(local) == ["page.css", "page.js"]
    assert " style=" not in page  # the policy would drop it


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_has_contrast_in_light_and_in_dark() -> None:
    """WCAG AA: 4.5 to 1."""
    css = WEB.joinpath("page.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    pairs = [(text, ground) for text in ("text", "muted", "accent", "bad") for ground in ("ground", "surface")]
    for colours in (light, light | dark):
        for text, ground in [*pairs, ("on-accent", "accent"), ("accent", "wash")]:
            low, high = sorted((_luminance(colours[text]), _luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground, colours[text], colours[ground])
