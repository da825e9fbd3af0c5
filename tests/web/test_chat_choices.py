"""What a person can choose on the page, and that everybody can use it."""

from __future__ import annotations

import re
import threading

import pytest
from playwright.sync_api import Browser, expect

from .conftest import Chat, watch
from .fake_server import PAGE, Answer, FakeServer

CHINESE = {"locale": "zh-CN"}
DARK = {"color_scheme": "dark"}
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}


def test_language_follows_the_browser_and_a_choice_is_remembered(chat: Chat) -> None:
    root = chat.page.locator("html")
    expect(root).to_have_attribute("lang", "en")
    expect(chat.page.locator("h2").first).to_have_text("What shall we talk about?")
    chat.page.locator("#language").click()
    expect(root).to_have_attribute("lang", "zh-CN")
    expect(chat.prompt).to_have_attribute("placeholder", "输入消息")
    chat.reload()
    expect(root).to_have_attribute("lang", "zh-CN")
    expect(chat.page.locator("h2").first).to_have_text("聊点什么？")


@pytest.mark.parametrize("context_options", [CHINESE])
def test_chinese_browser_gets_a_chinese_page(chat: Chat, fake: FakeServer) -> None:
    expect(chat.page.locator("html")).to_have_attribute("lang", "zh-CN")
    fake.script.append(Answer(["Hello", " there"], end="drop"))
    chat.send("你好")
    expect(chat.answers.last.locator(".notice span")).to_have_text("回答途中连接中断。")
    assert fake.chats()[0]["messages"] == [{"role": "user", "content": "你好"}]
    chat.page.locator("#language").click()
    expect(chat.answers.last.locator(".notice span")).to_have_text(
        "The connection was lost in mid-answer."
    )


def test_change_of_language_in_mid_answer_loses_no_word(chat: Chat, fake: FakeServer) -> None:
    end = threading.Event()
    chat.ask("First")
    chat.tool("pen").click()
    chat.answers.last.locator(".desk textarea").fill("A half-written suggestion")
    fake.script.append(Answer(["One ", end, "two"]))
    chat.send("Go")
    expect(chat.answers.last.locator(".text")).to_have_text("One")
    chat.page.locator("#language").click()
    end.set()
    expect(chat.answers.last.locator(".text")).to_have_text("One two")
    expect(chat.page.locator(".desk textarea")).to_have_value("A half-written suggestion")


def test_both_languages_hold_every_sentence_that_is_used() -> None:
    source = (PAGE / "i18n.js").read_text("utf-8")
    tables = [
        set(re.findall(r"^  (\w+): \"", block, re.MULTILINE))
        for block in re.findall(r"^const (?:ENGLISH|CHINESE) = \{$(.*?)^\};$", source, re.M | re.S)
    ]
    used: set[str] = set()
    for path in PAGE.glob("*.js"):
        used |= set(re.findall(r"\bt\(\"(\w+)\"", path.read_text("utf-8")))
    page = (PAGE / "index.html").read_text("utf-8")
    used |= set(re.findall(r"\"(consent_\w+)\"", (PAGE / "settings.js").read_text("utf-8")))
    used |= set(re.findall(r"data-(?:text|label|placeholder)=\"(\w+)\"", page))
    assert len(tables) == 2
    assert tables[0] == tables[1]
    assert used <= tables[0]
    indirect = {"stop", "you", "answer", "timing", "timing_first", "broken", "broken_with"}
    assert tables[0] - used <= indirect | {"failed", "failed_with"}


def test_theme_follows_the_system_until_a_choice_is_made(chat: Chat) -> None:
    root = chat.page.locator("html")
    expect(root).to_have_attribute("data-theme", "light")
    chat.page.emulate_media(color_scheme="dark")
    expect(root).to_have_attribute("data-theme", "dark")
    chat.page.locator("#theme").click()
    expect(root).to_have_attribute("data-theme", "light")
    chat.reload()
    expect(root).to_have_attribute("data-theme", "light")
    chat.page.locator("#open-settings").click()
    chat.page.get_by_role("radio", name="System").check(force=True)
    expect(root).to_have_attribute("data-theme", "dark")
    assert chat.stored("theme") is None


def test_remembered_theme_stands_before_the_first_paint(chat: Chat) -> None:
    chat.store("theme", "dark")
    chat.page.route("**/chat.js", lambda route: route.abort())
    chat.page.goto(chat.url)
    expect(chat.page.locator("html")).to_have_attribute("data-theme", "dark")


def test_consent_is_off_by_default_sent_only_when_given_and_remembered(
    chat: Chat, fake: FakeServer
) -> None:
    box = chat.page.get_by_label("Share the text of this chat to improve the model")
    expect(box).not_to_be_checked()
    chat.ask("Private")
    note = chat.page.locator("#consent-note")
    expect(note).to_have_text("Off: the server keeps counts, not words.")
    box.check()
    expect(note).to_have_text("On: the server keeps your words and the answers.")
    chat.ask("Shared")
    chat.tool("up").click()
    expect(chat.answers.last.locator(".saved")).to_have_text("Saved")
    chat.reload()
    expect(box).to_be_checked()
    box.uncheck()
    chat.ask("Private again")
    consents = [asked.headers.get("x-lmloop-consent") for asked in fake.asked]
    assert consents == ["no", "full", "full", "no"]


def test_one_person_is_one_user_and_each_chat_is_one_session(chat: Chat, fake: FakeServer) -> None:
    chat.ask("One")
    chat.reload()
    chat.ask("Two")
    chat.page.locator("#new-chat").click()
    chat.ask("Three")
    users = [body["user"] for body in fake.chats()]
    sessions = [asked.headers["x-lmloop-session"] for asked in fake.asked]
    assert len(set(users)) == 1
    assert sessions[0] == sessions[1] != sessions[2]
    assert all(re.fullmatch("[0-9a-f]{24}", each) for each in (*users, *sessions))
    assert set(users).isdisjoint(sessions)


def test_a_browser_that_remembers_nothing_is_somebody_new_each_time(
    chat: Chat, fake: FakeServer
) -> None:
    chat.ask("One")
    chat.store("user", {"not": "an id"})
    chat.reload()
    chat.ask("Two")
    users = [body["user"] for body in fake.chats()]
    assert users[0] != users[1]
    assert chat.stored("user") == users[1]


def test_settings_travel_with_the_request_are_kept_and_can_be_reset(
    chat: Chat, fake: FakeServer
) -> None:
    page = chat.page
    chat.ask("Before")
    page.locator("#open-settings").click()
    page.locator("#temperature").fill("1.2")
    page.locator("#top_p").fill("0.5")
    page.locator("#max_tokens").fill("32")
    page.locator("#seed").fill("7")
    page.locator("#system").fill("Be brief.")
    expect(page.locator("#temperature-value")).to_have_text("1.20")
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    chat.ask("During")
    chat.reload()
    page.locator("#open-settings").click()
    expect(page.locator("#seed")).to_have_value("7")
    page.locator("#reset-settings").click()
    page.locator("#close-settings").click()
    chat.ask("After")
    names = ("temperature", "top_p", "max_tokens", "seed")
    sent = [tuple(body.get(name) for name in names) for body in fake.chats()]
    assert sent == [(0.7, 0.9, 128, None), (1.2, 0.5, 32, 7), (0.7, 0.9, 128, None)]
    roles = [body["messages"][0]["role"] for body in fake.chats()]
    assert roles == ["user", "system", "user"]


def test_page_works_by_keyboard_alone(chat: Chat, fake: FakeServer) -> None:
    page = chat.page
    page.keyboard.type("Hello")
    page.keyboard.press("Enter")
    chat.wait_until_done()
    chat.tool("copy").focus()
    page.keyboard.press("Tab")
    expect(chat.tool("up")).to_be_focused()
    page.keyboard.press("Space")
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "true")
    outline = chat.tool("up").evaluate("e => getComputedStyle(e).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Control+A")
    page.keyboard.type("Good day!")
    page.keyboard.press("Control+Enter")
    expect(chat.answers.last.locator(".suggestion p")).to_have_text("Good day!")
    assert [item.get("correction") for item in fake.feedback()] == [None, "Good day!"]


@pytest.mark.parametrize("context_options", [{}, CHINESE])
def test_every_control_has_a_name(chat: Chat) -> None:
    chat.ask("Hello")
    chat.tool("pen").click()
    chat.page.locator("#open-settings").click()
    nameless = chat.page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea")]
          .filter((e) => e.id !== "toast-action")
          .filter((e) => !e.getAttribute("aria-label") && !e.textContent)
          .filter((e) => !e.labels?.[0]?.textContent)
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.parametrize("context_options", [PHONE, {**PHONE, **CHINESE, **DARK}])
def test_phone_of_360_pixels_needs_no_sideways_scrolling(chat: Chat, fake: FakeServer) -> None:
    assert overflow(chat) == 0
    fake.script.append(Answer(["W" * 200, " ```\n" + "x" * 200 + "\n```", "\n```\n" + "y" * 300]))
    chat.ask("V" * 200)
    chat.tool("pen").click()
    assert overflow(chat) == 0
    send = chat.page.locator("#send").bounding_box()
    assert send is not None
    assert send["x"] + send["width"] <= 360
    assert send["y"] + send["height"] <= 640
    chat.page.locator("#open-settings").click()
    assert overflow(chat) == 0
    expect(chat.page.locator("#close-settings")).to_be_in_viewport()


def overflow(chat: Chat) -> int:
    """Pixels by which the page is wider than the screen."""
    widest = "Math.max(document.documentElement.scrollWidth, scroller.scrollWidth)"
    return int(chat.page.evaluate(f"{widest} - document.documentElement.clientWidth"))


def test_nothing_moves_for_people_who_asked_for_calm(browser: Browser, fake: FakeServer) -> None:
    with browser.new_context(reduced_motion="reduce") as context:
        chat = watch(context.new_page(), url=fake.url).open()
        chat.ask("Hello")
        moving = chat.page.evaluate("document.getAnimations().length")
    assert moving == 0


def test_colours_of_both_themes_have_contrast_enough_to_read() -> None:
    source = (PAGE / "theme.css").read_text("utf-8")
    light, dark = re.findall(r"\{\s*color-scheme: \w+;(.*?)\}", source, re.S)
    for block in (light, dark):
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for ground in ("paper", "surface", "sunken", "bubble", "accent-soft"):
            assert contrast(colour["ink"], colour[ground]) >= 7
        for ground in ("paper", "surface", "sunken", "raised"):
            assert contrast(colour["ink"], colour[ground]) >= 4.5
        for ground in ("paper", "surface", "sunken"):
            assert contrast(colour["muted"], colour[ground]) >= 4.5
            assert contrast(colour["accent"], colour[ground]) >= 4.5
        assert contrast(colour["muted"], colour["bubble"]) >= 4.5
        assert contrast(colour["on-accent"], colour["accent"]) >= 4.5
        assert contrast(colour["danger"], colour["danger-soft"]) >= 4.5
        assert contrast(colour["accent-strong"], colour["accent-soft"]) >= 4.5
        assert contrast(colour["edge"], colour["paper"]) >= 3


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2, relative luminance)."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
