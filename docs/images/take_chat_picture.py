"""Takes the README's picture of the chat page: a short talk with the model that is being served.

Takes: the URL of a running server (`make demo` leaves one). Gives: chat.png beside this file.
Run: python docs/images/take_chat_picture.py http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

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
PICTURE = Path(__file__).with_name("chat.png")
WIDTH, HEIGHT = 1280, 800
LARGEST_BYTES = 200_000
QUESTIONS = (
    "Hi! How was your day?",
    "What do you like to do on weekends?",
    "Have you seen any good movies lately?",
)


def talk(page: Page, url: str) -> None:
    """Hold the talk and rate its first answer."""
    page.goto(url)
    expect(page.locator("#model-name")).not_to_be_empty()
    for question in QUESTIONS:
        page.locator("#prompt").fill(question)
        page.locator("#prompt").press("Enter")
        expect(page.locator("html")).not_to_have_attribute("data-busy", "", timeout=60_000)
    page.locator("article.assistant .tool.up").first.click()
    expect(page.locator("article.assistant .saved").first).to_be_empty(timeout=20_000)
    page.locator("#scroller").evaluate("scroller => scroller.scrollTo(0, 0)")
    page.locator("#prompt").focus()
    page.mouse.move(1, HEIGHT // 2)


def take_picture(url: str, picture: Path) -> int:
    """Write the picture and return its size in bytes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT},
            color_scheme="light",
            reduced_motion="reduce",
            locale="en-US",
        )
        talk(page, url)
        page.screenshot(path=picture)
        browser.close()
    return picture.stat().st_size


def main() -> None:
    """Read the arguments and take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="address of a running server")
    parser.add_argument("--out", type=Path, default=PICTURE, help="file to write")
    options = parser.parse_args()
    size = take_picture(options.url, options.out)
    if size > LARGEST_BYTES:
        parser.error(f"{options.out} has {size} bytes, more than {LARGEST_BYTES}: shorten the talk")


if __name__ == "__main__":
    main()
