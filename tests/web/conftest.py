"""What the browser tests share: Debian's Chromium, the scripted server, and a hand on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from .fake_server import FakeServer

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT_MS = 10_000

expect.set_options(timeout=WAIT_MS)


@dataclass
class Chat:
    """The chat page as a person sees it, and what its console said."""

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    visited: list[str] = field(default_factory=list)

    def open(self) -> Chat:
        """Loads the page and waits until it knows the model."""
        self.page.goto(self.url)
        expect(self.page.locator("#model-name")).not_to_be_empty()
        return self

    def reload(self) -> None:
        """Loads the page again, as after closing and reopening it."""
        self.open()

    def send(self, text: str) -> None:
        """Types a message and presses Enter; does not wait for the answer."""
        self.prompt.fill(text)
        self.prompt.press("Enter")

    def ask(self, text: str) -> str:
        """Sends a message, waits for the end of the answer and returns the answer's text."""
        self.send(text)
        self.wait_until_done()
        return self.answers.last.locator(".text").inner_text()

    def wait_until_done(self) -> None:
        """Returns when no answer is under way."""
        expect(self.page.locator("html")).not_to_have_attribute("data-busy", "")

    def stored(self, name: str) -> Any:
        """What the page keeps in the browser under a name."""
        return self.page.evaluate(
            "name => JSON.parse(localStorage.getItem(`lmloop.${name}`))", name
        )

    def store(self, name: str, value: Any) -> None:
        """Puts something where the page keeps what it knows."""
        script = "([name, value]) => localStorage.setItem(`lmloop.${name}`, JSON.stringify(value))"
        self.page.evaluate(script, [name, value])

    def tool(self, name: str) -> Locator:
        """A button under the last answer: copy, up, down, pen or again."""
        return self.answers.last.locator(f".tool.{name}")

    @property
    def prompt(self) -> Locator:
        return self.page.locator("#prompt")

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant")

    @property
    def questions(self) -> Locator:
        return self.page.locator("article.user")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed: the chat page is tested with Debian's Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    server = FakeServer().start()
    yield server
    server.stop()


@pytest.fixture
def context_options() -> dict[str, Any]:
    """How the browser is set up; a test overrides it by parametrising it."""
    return {}


@pytest.fixture
def context(browser: Browser, context_options: dict[str, Any]) -> Iterator[BrowserContext]:
    usual = {"locale": "en-US", "color_scheme": "light", "viewport": {"width": 1280, "height": 800}}
    context = browser.new_context(**{**usual, **context_options})
    context.set_default_timeout(WAIT_MS)
    yield context
    context.close()


@pytest.fixture
def chat(context: BrowserContext, fake: FakeServer) -> Chat:
    return watch(context.new_page(), url=fake.url).open()


def watch(page: Page, *, url: str) -> Chat:
    """A hand on a page that notes console messages and the hosts it talks to."""
    chat = Chat(page, url)
    page.on("console", lambda message: chat.complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: chat.complaints.append(str(error)))
    page.on("request", lambda request: chat.visited.append(host_of(request.url)))
    return chat


def host_of(url: str) -> str:
    """Scheme, host and port of an address."""
    match = re.match(r"\w+:(//[^/]*)?", url)
    return match.group() if match else url
