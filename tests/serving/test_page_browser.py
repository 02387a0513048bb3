"""The search page in headless Chromium, over a service of the tests' own (page_server.py)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from sidray.serving.messages import Refusal
from sidray.serving.problems import overloaded
from tests.client.servers import under_uvicorn
from tests.data.makers import picture
from tests.serving.page_server import FakeService, api_of, hit

pytest.importorskip("selenium", reason="no selenium: pip install '.[dev]'")
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from tests.serving.browser import ARGUMENTS, CHROMIUM, DRIVER, WIDTHS, Page

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on PATH: apt-get install chromium chromium-driver"
)
HOSTILE = '<img src=x onerror="window.owned = 1"><script>window.owned = 1</script>'
SOUPS = [
    hit("s/1 ?#%", "Noodle soup", 0.9125, sids=[3, 17, 250]),
    hit("s2", "Tomato soup", 0.5),
    hit("s3", HOSTILE, -0.25, partition=""),
]
ALIKE = [hit("b1", "Ramen bowl"), hit("b2", "Hot pot")]
PNG = picture("teal")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in (*ARGUMENTS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[FakeService, str]]:
    fake = FakeService()
    with under_uvicorn(api_of(fake)) as address:
        yield fake, address


@pytest.fixture
def fake(server: tuple[FakeService, str]) -> FakeService:
    """As new, with a few soups."""
    fake = server[0]
    fake.__init__(hits={"soup": SOUPS, "": ALIKE}, similar={"s/1 ?#%": ALIKE, "b1": SOUPS[:1]})  # type: ignore[misc]
    fake.pictures = {"s/1 ?#%": picture("red"), "s2": picture("orange", kind="JPEG"), "b1": picture("brown")}
    return fake


@pytest.fixture
def page(driver: webdriver.Chrome, server: tuple[FakeService, str], fake: FakeService) -> Iterator[Page]:
    page = Page(driver, server[1])
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", _screen(1280, 900))
    page.open()
    yield page
    fake.release.set()
    page.run("sessionStorage.clear()")


def _screen(width: int, height: int, phone: bool = False) -> dict[str, Any]:
    return {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}


def test_a_query_shows_pictures_titles_scores_sids_and_times(page: Page, fake: FakeService) -> None:
    page.says("1,234 items to search")
    page.type("soup", Keys.ENTER)  # the box has the focus
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert page.texts("#hits .score") == ["0.912", "0.500", "-0.250"]
    assert page.texts("#hits .sids") == ["3-17-250", "", ""]
    assert page.texts("#hits .partition") == ["food", "food", ""]
    page.until(lambda: page.run(WIDTHS) == [24, 24, 0])
    page.until(lambda: page.run("return document.querySelectorAll('#hits [data-picture=none] .icon').length") == 1)
    assert page.find("#status").text == "3 items"
    assert page.find("#times").text == "total 12 ms · embed 9.5 ms · recall 1.3 ms"
    assert page.find("#served").text == "run smgr-test-1a2b · model m-1 · generation index-1 · table version 3"
    (asked,) = fake.searched
    assert (asked.query, asked.image, asked.partition, asked.with_fields) == ("soup", None, None, ["sids"])
    assert page.find("#message").text == ""
    assert page.driver.title == "soup – sidray search"


def test_a_title_is_text_and_nothing_of_it_runs(page: Page, fake: FakeService) -> None:
    fake.similar["s3"] = ALIKE
    page.open("?q=soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert page.run("return document.querySelectorAll('.title *').length") == 0
    page.find("#hits li:nth-child(3) a").click()
    page.shows("Ramen bowl", "Hot pot")
    assert page.find("#seed-title").text == HOSTILE
    assert page.run("return document.querySelectorAll('#seed-title *').length") == 0
    assert page.run("return window.owned") is None


def test_a_click_shows_similar_items_and_back_returns(page: Page, fake: FakeService) -> None:
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.find("#hits a").click()
    page.shows("Ramen bowl", "Hot pot")
    assert page.find("h1").text == "Similar to Noodle soup"
    page.until(lambda: page.run("return document.querySelector('#seed-picture').naturalWidth") == 24)
    assert fake.alike[0].item_ids == ["s/1 ?#%"]
    assert fake.alike[0].with_fields == ["sids"]
    assert fake.alike[0].exclude_seen
    page.driver.back()
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert not page.find("#seed").is_displayed()
    assert len(fake.searched) == 1  # kept, not asked again
    page.driver.back()
    page.says("1,234 items to search")
    assert page.find("#query").get_property("value") == ""
    page.driver.forward()
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert page.find("#query").get_property("value") == "soup"


def test_a_picture_that_does_not_decode_leaves_its_place(page: Page, fake: FakeService) -> None:
    fake.pictures["s2"] = b"no picture"
    page.open("?q=soup")
    page.until(lambda: page.run("return document.querySelectorAll('#hits [data-picture=none]').length") == 2)
    assert page.run(WIDTHS) == [24, 0, 0]


def test_a_search_can_be_linked(page: Page, fake: FakeService) -> None:
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    link = page.find("#hits a").get_property("href")
    assert page.driver.current_url == f"{page.address}/?q=soup"
    page.driver.get(link)
    page.shows("Ramen bowl", "Hot pot")
    assert page.find("h1").text == "Similar to s/1 ?#%"  # no title is known here
    page.find("#back").click()  # nothing lies behind: to the search of the link
    page.shows("Noodle soup", "Tomato soup", HOSTILE)


def test_the_partition_is_sent(page: Page, fake: FakeService) -> None:
    page.find("#partition").send_keys("food")
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.find("#hits a").click()
    page.shows("Ramen bowl", "Hot pot")
    assert (fake.searched[0].partition, fake.alike[0].partition) == ("food", "food")
    assert page.driver.current_url == f"{page.address}/?q=soup&partition=food&similar=s%2F1+%3F%23%25"
    assert page.run("return [...document.querySelectorAll('#partitions option')].map(e => e.value)") == ["food"]


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_picture_is_searched_for_and_can_be_removed(page: Page, fake: FakeService, event: str) -> None:
    page.says("1,234 items to search")
    page.give(event, "mine.png", "image/png", PNG)
    page.shows("Ramen bowl", "Hot pot")
    (asked,) = fake.searched
    assert asked.query is None
    assert asked.image == "data:image/png;base64," + base64.b64encode(PNG).decode()
    page.until(lambda: page.run("return document.querySelector('#thumbnail').naturalWidth") == 24)
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert (fake.searched[1].query, fake.searched[1].image) == ("soup", asked.image)
    page.find("#remove").click()
    page.until(lambda: len(fake.searched) == 3)
    assert (fake.searched[2].query, fake.searched[2].image) == ("soup", None)
    assert not page.find("#picture").is_displayed()
    page.driver.back()
    page.until(lambda: page.find("#picture").is_displayed())


def test_a_picture_does_not_outlive_its_tab(page: Page) -> None:
    page.give("drop", "mine.png", "image/png", PNG)
    page.shows("Ramen bowl", "Hot pot")
    page.find("#hits a").click()
    page.shows("Noodle soup")
    page.driver.refresh()
    page.shows("Noodle soup")  # what is similar needs no picture
    page.driver.back()
    page.says("The picture is gone")
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)


@pytest.mark.parametrize(
    ("name", "media_type", "data", "reason"),
    [
        ("notes.pdf", "application/pdf", b"%PDF", "notes.pdf is not a JPEG, PNG or WebP picture."),
        ("broken.png", "image/png", b"no picture", "broken.png cannot be read as a picture."),
        (
            "huge.png",
            "image/png",
            23 * 2**20 + 1,
            "huge.png is larger than 23 MiB, the most that one request holds.",
        ),
    ],
)
def test_what_is_no_picture_is_refused_in_the_page(
    page: Page, fake: FakeService, name: str, media_type: str, data: bytes | int, reason: str
) -> None:
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.give("drop", name, media_type, data)
    page.until(lambda: page.find("#note").text == reason)
    assert page.find("#note").get_attribute("role") == "alert"
    assert len(page.texts("#hits .title")) == 3
    assert len(fake.searched) == 1


def test_a_busy_service_is_shown_and_asked_again(page: Page, fake: FakeService) -> None:
    page.says("1,234 items to search")
    fake.refusal = overloaded("the embedder's queue is full")
    page.search("soup")
    message = page.says("The service is busy")
    assert "the embedder's queue is full" in message
    assert "It asks to wait 1 s" in message
    assert "503 overloaded" in message
    assert page.texts("#hits li") == []
    fake.refusal = None
    page.find("#message button").click()
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert page.focused() == "Noodle soup"  # the button is gone; the reader is not sent to the top


@pytest.mark.parametrize(
    ("refusal", "title"),
    [
        (Refusal(422, "unknown_field", "no field is called 'sids'", "with_fields"), "The service refused this request"),
        (Refusal(404, "unknown_partition", "no partition is called 'Mens'", "partition"), "Not found"),
        (Refusal(415, "not_an_image", "the picture does not decode", "image"), "Not a picture"),
    ],
)
def test_a_refusal_is_shown_in_the_services_words(page: Page, fake: FakeService, refusal: Refusal, title: str) -> None:
    page.says("1,234 items to search")
    fake.refusal = refusal
    page.search("soup")
    message = page.says(title)
    assert refusal.message.lower() in message.lower()
    assert f"{refusal.status} {refusal.code}" in message
    assert not page.find("#message button").is_displayed()  # it would be refused again
    invalid = page.find("#partition").get_attribute("aria-invalid")
    assert invalid == ("true" if refusal.param == "partition" else None)


def test_a_service_that_is_gone_is_shown(page: Page) -> None:
    page.says("1,234 items to search")
    page.driver.set_network_conditions(offline=True, latency=0, throughput=0)
    try:
        page.search("soup")
        page.says("The service cannot be reached")
    finally:
        page.driver.delete_network_conditions()
    page.find("#message button").click()
    page.shows("Noodle soup", "Tomato soup", HOSTILE)


def test_a_picture_that_the_service_was_too_busy_for_comes_later(page: Page, fake: FakeService) -> None:
    page.says("1,234 items to search")
    fake.busy_pictures = 1
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.until(lambda: page.run(WIDTHS) == [24, 24, 0])


def test_no_hits_are_said(page: Page, fake: FakeService) -> None:
    page.search("nothing like it")
    page.says("Nothing found")
    assert page.find("#status").text == "0 items"
    assert page.find("#times").text.startswith("total 12 ms")
    assert page.texts("#hits li") == []


def test_a_search_that_was_overtaken_is_dropped(page: Page, fake: FakeService) -> None:
    fake.held, fake.hits["slow"] = "slow", ALIKE
    page.search("slow")
    page.until(lambda: len(fake.searched) == 1)
    assert page.run("return document.querySelectorAll('#hits .waiting').length") > 0
    assert "loading" in page.find("body").get_attribute("class")
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    fake.release.set()
    page.until(lambda: fake.answered == ["soup", "slow"])
    page.driver.execute_async_script("fetch('v1/index').then(r => r.json()).then(arguments[0])")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    assert page.find("body").get_attribute("class") == ""


def test_a_key_is_asked_for_and_sent_with_everything(page: Page, fake: FakeService) -> None:
    fake.key = "k-123"
    page.search("soup")
    page.says("needs an API key")
    page.type("wrong", Keys.ENTER)
    assert "the API key is missing or wrong" in page.says("The API key was refused")
    page.type("k-123", Keys.ENTER)
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.until(lambda: page.run("return document.querySelector('#hits img').naturalWidth") == 24)
    page.until(lambda: page.run("return document.querySelectorAll('#hits [data-picture=none]').length") == 1)
    assert page.run("return [sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    page.driver.refresh()
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.find("#forget").click()
    page.says("needs an API key")
    assert page.run("return sessionStorage.length") == 0


def test_everything_goes_by_keyboard(page: Page, fake: FakeService) -> None:
    fake.similar["s2"] = ALIKE
    page.type("soup", Keys.ENTER)
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.type(Keys.ARROW_DOWN)
    assert page.focused() == "Noodle soup"
    page.type(Keys.ARROW_RIGHT)
    assert page.focused() == "Tomato soup"
    page.type(Keys.END)
    page.type(Keys.HOME)
    assert page.focused() == "Noodle soup"
    page.type(Keys.ARROW_UP)
    assert page.focused() == "query"
    page.type(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    page.shows("Ramen bowl", "Hot pot")
    page.until(lambda: page.focused() == "Ramen bowl")
    page.type(Keys.ESCAPE)
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.until(lambda: page.focused() == "Tomato soup")  # where the reader was
    page.type("/")
    assert page.focused() == "query"
    page.type("pot")  # replaces what is selected
    assert page.find("#query").get_property("value") == "pot"


def test_a_phone_needs_no_scrolling_sideways(page: Page, fake: FakeService) -> None:
    fake.hits["soup"] = [hit("long", "Donaudampfschifffahrt" * 9, partition="p" * 60, sids=[250] * 12), *SOUPS] * 3
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", _screen(390, 844, phone=True))
    for query in ("", "?q=soup", "?q=nothing", "?similar=unknown", "?similar=b1"):
        page.open(query)
        page.until(lambda: page.find("#message").text or page.texts("#hits .title"))
        assert page.run("return document.documentElement.scrollWidth") == 390
        assert page.run("return [...document.querySelectorAll('*')].filter(e => e.clientWidth > 390).length") == 0
    page.open("?q=soup")
    page.until(lambda: len(page.texts("#hits .title")) == 12)
    assert page.run("return getComputedStyle(document.querySelector('#hits')).gridTemplateColumns").count("px") == 2


def test_nothing_leaves_the_origin(page: Page) -> None:
    """Neither in any test above nor when something in the page tries to."""
    page.search("soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    sent = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    addresses = {each["params"]["request"]["url"] for each in sent if each["method"] == "Network.requestWillBeSent"}
    elsewhere = {url for url in addresses if not url.startswith((page.address + "/", "data:", "blob:", "chrome:"))}
    assert f"{page.address}/v1/search" in addresses
    assert elsewhere == set()
    refused = page.driver.execute_async_script(
        """const done = arguments[0], refused = [];
        addEventListener("securitypolicyviolation", (event) => {
          refused.push(event.effectiveDirective);
          if (refused.length === 3) done(refused.sort());
        });
        fetch("http://127.0.0.1:9/").catch(() => 0);
        document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/" }));
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.owned = 1" }));"""
    )
    assert refused == ["connect-src", "img-src", "script-src-elem"]
    assert page.run("return window.owned") is None


def test_the_browser_has_nothing_to_complain_about(page: Page) -> None:
    page.driver.get_log("browser")  # of the tests before
    page.open("?q=soup")
    page.shows("Noodle soup", "Tomato soup", HOSTILE)
    page.until(lambda: page.run("return document.querySelectorAll('#hits [data-picture]').length") == 3)
    complaints = [entry["message"] for entry in page.driver.get_log("browser")]
    assert [each for each in complaints if "/image" not in each] == []  # an item without a picture answers 404
