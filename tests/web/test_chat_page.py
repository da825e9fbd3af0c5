"""The chat page in a browser: talking, stopping, rating, and what a reload keeps."""

from __future__ import annotations

import re
import threading

import pytest
from playwright.sync_api import BrowserContext, expect

from .conftest import Chat, watch
from .fake_server import Answer, FakeServer, Refusal


def test_page_loads_without_a_complaint_and_names_the_model(chat: Chat, fake: FakeServer) -> None:
    expect(chat.page.locator("#model-name")).to_have_text("chat")
    expect(chat.page.locator("#model-weights")).to_have_text("3f9c1a7e52d0")
    expect(chat.page.locator(".opener")).to_have_count(4)
    expect(chat.prompt).to_be_focused()
    assert chat.complaints == []
    assert set(chat.visited) == {fake.url.rstrip("/")}


def test_answer_grows_as_it_streams(chat: Chat, fake: FakeServer) -> None:
    middle, end = threading.Event(), threading.Event()
    fake.script.append(Answer(["It was ", middle, "fine, ", end, "thanks."]))
    chat.send("How was your day?")
    answer = chat.answers.last
    expect(answer.locator(".text")).to_have_text("It was")
    expect(answer).to_have_attribute("aria-busy", "true")
    middle.set()
    expect(answer.locator(".text")).to_have_text("It was fine,")
    end.set()
    expect(answer.locator(".text")).to_have_text("It was fine, thanks.")
    expect(answer).to_have_attribute("data-status", "done")
    expect(answer.locator(".timing")).to_have_text(
        re.compile(r"^First token \d+ ms · \d+ tokens/s$")
    )
    expect(chat.page.locator("#announcer")).to_have_text("It was fine, thanks.")
    assert fake.chats()[0]["messages"] == [{"role": "user", "content": "How was your day?"}]
    assert chat.complaints == []


def test_opener_starts_a_chat(chat: Chat, fake: FakeServer) -> None:
    chat.page.locator(".opener").first.click()
    chat.wait_until_done()
    assert fake.chats()[0]["messages"][0]["content"] == "Hi! How was your day?"
    expect(chat.page.locator("#welcome")).to_be_hidden()


def test_later_requests_carry_the_whole_chat(chat: Chat, fake: FakeServer) -> None:
    chat.ask("One")
    chat.ask("Two")
    assert fake.chats()[1]["messages"] == [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "A fine day to you."},
        {"role": "user", "content": "Two"},
    ]


def test_shift_enter_breaks_the_line_and_the_box_grows_to_a_limit(
    chat: Chat, fake: FakeServer
) -> None:
    one_line = chat.prompt.bounding_box()
    chat.prompt.type("one")
    chat.prompt.press("Shift+Enter")
    chat.prompt.type("two")
    two_lines = chat.prompt.bounding_box()
    chat.prompt.fill("line\n" * 60)
    many_lines = chat.prompt.bounding_box()
    assert one_line and two_lines and many_lines
    assert one_line["height"] < two_lines["height"] < many_lines["height"] < 300
    assert fake.chats() == []
    chat.prompt.fill("one\ntwo")
    chat.prompt.press("Enter")
    chat.wait_until_done()
    assert fake.chats()[0]["messages"][0]["content"] == "one\ntwo"


def test_enter_that_chooses_a_candidate_of_an_input_method_does_not_send(
    chat: Chat, fake: FakeServer
) -> None:
    chat.prompt.fill("nihao")
    chat.prompt.dispatch_event("keydown", {"key": "Enter", "isComposing": True})
    expect(chat.prompt).to_have_value("nihao")
    assert fake.chats() == []
    chat.prompt.dispatch_event("keydown", {"key": "Enter"})
    expect(chat.prompt).to_have_value("")


@pytest.mark.parametrize("way", ["button", "Escape"])
def test_stop_keeps_the_partial_answer_and_ends_the_request(
    chat: Chat, fake: FakeServer, way: str
) -> None:
    never = threading.Event()
    fake.script.append(Answer(["Half an ", never, "answer"]))
    chat.send("Go on")
    expect(chat.answers.last.locator(".text")).to_have_text("Half an")
    if way == "button":
        chat.page.locator("#send").click()
    else:
        chat.page.keyboard.press("Escape")
    expect(chat.answers.last).to_have_attribute("data-status", "stopped")
    expect(chat.answers.last.locator(".text")).to_have_text("Half an")
    expect(chat.answers.last.locator(".notice")).to_have_text("Stopped.")
    assert fake.client_left.wait(5)
    assert chat.ask("And now?") == "A fine day to you."
    assert chat.complaints == []


def test_regenerate_replaces_the_last_answer_only(chat: Chat, fake: FakeServer) -> None:
    chat.ask("One")
    fake.script.extend([Answer(["First."]), Answer(["Second."])])
    chat.ask("Two")
    expect(chat.answers.first.locator(".tool.again")).to_be_hidden()
    chat.tool("again").click()
    expect(chat.answers.last.locator(".text")).to_have_text("Second.")
    chat.wait_until_done()
    expect(chat.answers).to_have_count(2)
    assert fake.chats()[1]["messages"] == fake.chats()[2]["messages"]


@pytest.mark.parametrize(
    "context_options", [{"permissions": ["clipboard-read", "clipboard-write"]}]
)
def test_copy_puts_the_answer_as_written_on_the_clipboard(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Answer(["Use `x`.\n\n", "```\ny = 1\n```"]))
    chat.ask("How?")
    chat.tool("copy").click()
    expect(chat.answers.last.locator(".saved")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "Use `x`.\n\n```\ny = 1\n```"


def test_rating_is_posted_shown_kept_over_a_reload_and_taken_back(
    chat: Chat, fake: FakeServer
) -> None:
    chat.ask("Hello")
    chat.tool("up").click()
    expect(chat.answers.last.locator(".saved")).to_have_text("Saved")
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "true")
    chat.reload()
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "true")
    chat.tool("down").click()
    expect(chat.tool("down")).to_have_attribute("aria-pressed", "true")
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "false")
    expect(chat.answers.last.locator(".saved")).to_have_text("Saved")
    chat.tool("down").click()
    expect(chat.tool("down")).to_have_attribute("aria-pressed", "false")
    expect(chat.answers.last.locator(".saved")).to_have_text("Saved")
    assert fake.feedback() == [
        {"response_id": "chatcmpl-1", "rating": 1},
        {"response_id": "chatcmpl-1", "rating": -1},
        {"response_id": "chatcmpl-1", "rating": None},
    ]


def test_suggestion_is_posted_beside_the_rating_and_shown_after_a_reload(
    chat: Chat, fake: FakeServer
) -> None:
    chat.ask("Hello")
    chat.tool("down").click()
    expect(chat.tool("down")).to_have_attribute("aria-pressed", "true")
    chat.tool("pen").click()
    editor = chat.answers.last.locator(".desk textarea")
    expect(editor).to_be_focused()
    expect(editor).to_have_value("A fine day to you.")
    editor.fill("Good morning!")
    chat.answers.last.get_by_role("button", name="Save", exact=True).click()
    expect(editor).to_have_count(0)
    expect(chat.answers.last.locator(".suggestion p")).to_have_text("Good morning!")
    expect(chat.tool("pen")).to_be_focused()
    assert fake.feedback()[-1] == {
        "response_id": "chatcmpl-1",
        "rating": -1,
        "correction": "Good morning!",
    }
    chat.reload()
    expect(chat.answers.last.locator(".suggestion p")).to_have_text("Good morning!")


def test_refused_rating_is_told_and_not_shown_as_saved(chat: Chat, fake: FakeServer) -> None:
    chat.ask("Hello")
    fake.feedback_script.append(Refusal(404, "This answer is unknown."))
    chat.tool("up").click()
    expect(chat.answers.last.locator(".saved")).to_have_text("Not saved: This answer is unknown.")
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "false")


def test_chat_and_draft_survive_a_reload(chat: Chat, fake: FakeServer) -> None:
    chat.ask("Hello")
    chat.prompt.fill("half a thou")
    chat.reload()
    expect(chat.questions.last.locator(".text")).to_have_text("Hello")
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")
    expect(chat.prompt).to_have_value("half a thou")


def test_reload_in_mid_answer_keeps_what_had_come(chat: Chat, fake: FakeServer) -> None:
    never = threading.Event()
    fake.script.append(Answer(["As far as ", never, "this"]))
    chat.send("Go on")
    expect(chat.answers.last.locator(".text")).to_have_text("As far as")
    chat.reload()
    expect(chat.answers.last.locator(".text")).to_have_text("As far as")
    expect(chat.answers.last).to_have_attribute("data-status", "broken")
    chat.answers.last.get_by_role("button", name="Try again").click()
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")


def test_new_chat_clears_and_can_be_undone(chat: Chat, fake: FakeServer) -> None:
    chat.ask("Hello")
    chat.page.locator("#new-chat").click()
    expect(chat.page.locator("article")).to_have_count(0)
    expect(chat.page.locator("#welcome")).to_be_visible()
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")
    chat.page.locator("#new-chat").click()
    chat.ask("Again")
    assert len(fake.chats()[-1]["messages"]) == 1


def test_new_chat_in_mid_answer_leaves_nothing_of_the_old_one(chat: Chat, fake: FakeServer) -> None:
    never = threading.Event()
    fake.script.append(Answer(["Old ", never, "words"]))
    chat.send("Old")
    expect(chat.answers.last.locator(".text")).to_have_text("Old")
    chat.page.locator("#new-chat").click()
    chat.wait_until_done()
    assert chat.stored("chat")["messages"] == []
    assert chat.ask("New") == "A fine day to you."
    assert [message["content"] for message in chat.stored("chat")["messages"]] == [
        "New",
        "A fine day to you.",
    ]
    assert chat.complaints == []


def test_second_tab_shows_what_the_first_one_said(
    chat: Chat, fake: FakeServer, context: BrowserContext
) -> None:
    other = watch(context.new_page(), url=fake.url).open()
    end = threading.Event()
    fake.script.append(Answer(["A fine ", end, "day."]))
    chat.send("Hello")
    expect(other.questions.last.locator(".text")).to_have_text("Hello")
    expect(other.answers.last).to_have_attribute("data-status", "streaming")
    end.set()
    expect(other.answers.last.locator(".text")).to_have_text("A fine day.")
    expect(other.answers.last).to_have_attribute("data-status", "done")


def test_store_that_holds_nonsense_gives_an_empty_chat(chat: Chat) -> None:
    chat.store("chat", {"messages": [{"role": "system"}, 7, None], "start": "x"})
    chat.store("settings", [1, 2])
    chat.reload()
    expect(chat.page.locator("#welcome")).to_be_visible()
    assert chat.ask("Hello") == "A fine day to you."
    assert chat.complaints == []
