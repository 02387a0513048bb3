"""The search page as a reader has it, in headless Chromium: what is seen, typed, dropped and pasted."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


class Page:
    """The page as a reader has it."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def open(self, query: str = "") -> None:
        self.driver.get(f"{self.address}/{query}")

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    def until(self, condition: Callable[[], Any]) -> Any:
        wait = WebDriverWait(self.driver, 10, 0.02, [StaleElementReferenceException])
        return wait.until(lambda _: condition())

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.run(_TEXTS, selector)
        return found

    def shows(self, *titles: str) -> None:
        self.until(lambda: self.texts("#hits .title") == list(titles))

    def says(self, part: str) -> str:
        """The message in the place of results."""
        self.until(lambda: part in self.find("#message").text)
        return self.find("#message").text

    def type(self, *keys: str) -> None:
        """As a keyboard does: to whatever has the focus."""
        ActionChains(self.driver, 0).send_keys(*keys).perform()

    def search(self, query: str) -> None:
        box = self.find("#query")
        box.clear()
        box.send_keys(query, Keys.ENTER)

    def focused(self) -> str:
        text: str = self.run("return document.activeElement.id || document.activeElement.innerText.split('\\n')[0]")
        return text

    def give(self, event: str, name: str, media_type: str, data: bytes | int) -> None:
        """A file by drop or paste; `data`: its bytes, or how many there are."""
        content = base64.b64encode(data).decode() if isinstance(data, bytes) else data
        self.run(_GIVE, event, name, media_type, content)


_TEXTS = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"
WIDTHS = "return [...document.querySelectorAll('#hits img')].map((e) => e.naturalWidth)"
_GIVE = """
const [event, name, type, content] = arguments;
const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
const data = typeof content === "number" ? new Uint8Array(content) : bytes(content);
const transfer = new DataTransfer();
transfer.items.add(new File([data], name, { type }));
const common = { bubbles: true, cancelable: true };
document.body.dispatchEvent(event === "drop"
  ? new DragEvent("drop", { ...common, dataTransfer: transfer })
  : new ClipboardEvent("paste", { ...common, clipboardData: transfer }));
"""
