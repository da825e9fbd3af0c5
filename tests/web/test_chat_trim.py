"""A long chat on the page: what the model no longer sees is marked, and the page stays quick."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from playwright.sync_api import expect

from .conftest import Chat
from .fake_server import Answer, FakeServer

LINE = "The model no longer sees the messages above this line"


def old_chat(exchanges: int, *, characters: int) -> dict[str, Any]:
    """A chat as the page keeps it, each message of that many characters."""
    messages: list[dict[str, Any]] = []
    for number in range(exchanges):
        for role in ("user", "assistant"):
            content = f"{role} {number} ".ljust(characters, "x")
            messages.append({"role": role, "content": content, "status": "done"})
    return {"messages": messages, "start": 0}


def overlong_refusals(fake: FakeServer) -> int:
    """How many requests were refused because the prompt was too long."""
    return sum(fake.count_tokens(body["messages"]) >= fake.context_length for body in fake.chats())


def test_refused_chat_loses_its_oldest_exchanges_visibly_until_it_fits(
    chat: Chat, fake: FakeServer
) -> None:
    fake.characters_per_token = 1  # the page's first guess is far too low
    fake.context_length = 400
    chat.store("chat", old_chat(6, characters=60))
    chat.reload()
    expect(chat.page.locator(".trim-line")).to_have_count(0)
    assert chat.ask("And what now?") == "A fine day to you."
    sent = fake.chats()[-1]["messages"]
    first = sent[0]["content"].split(" x")[0].strip()
    line = chat.page.locator(".trim-line")
    expect(line).to_have_text(LINE)
    assert overlong_refusals(fake) >= 1
    assert sent[0]["role"] == "user"
    assert line.evaluate("line => line.nextElementSibling.innerText").startswith(first)
    dropped = 12 + 1 - len(sent)
    assert dropped > 0
    expect(chat.page.locator("article[data-unseen]")).to_have_count(dropped)
    assert sent[-1]["content"] == "And what now?"


def test_page_learns_from_usage_and_trims_before_it_is_refused(
    chat: Chat, fake: FakeServer
) -> None:
    fake.characters_per_token = 1
    fake.context_length = 400
    chat.reload()
    fake.default = Answer(["y" * 60])
    for number in range(8):
        chat.ask(f"question {number} ".ljust(60, "x"))
    assert overlong_refusals(fake) == 0
    expect(chat.page.locator(".trim-line")).to_have_text(LINE)
    assert len(fake.chats()[-1]["messages"]) < 15


def test_line_stays_after_a_reload_and_goes_with_a_new_chat(chat: Chat, fake: FakeServer) -> None:
    chat.store("chat", {**old_chat(4, characters=40), "start": 4})
    chat.reload()
    expect(chat.page.locator(".trim-line")).to_have_text(LINE)
    expect(chat.page.locator("article[data-unseen]")).to_have_count(4)
    chat.ask("Next")
    assert fake.chats()[0]["messages"][0]["content"].startswith("user 2 ")
    chat.page.locator("#new-chat").click()
    expect(chat.page.locator(".trim-line")).to_have_count(0)


def test_single_message_that_is_too_long_is_told_and_goes_back_to_the_input(
    chat: Chat, fake: FakeServer
) -> None:
    fake.context_length = 100
    chat.reload()
    text = "word " * 200
    chat.send(text)
    question = chat.questions.last
    expect(question.locator(".notice span")).to_have_text(
        "This message is too long for the model. Shorten it and send it again."
    )
    expect(question.get_by_role("button", name="Try again")).to_have_count(0)
    question.get_by_role("button", name="Edit").click()
    expect(chat.prompt).to_have_value(text.strip())


def test_window_of_turns_is_counted_by_hand(chat: Chat) -> None:
    found = chat.page.evaluate(
        """async () => {
          const { fittingStart, TokenEstimate, turnsOf, withoutOldest } = await import("/trim.js");
          const estimate = new TokenEstimate(0.5);
          const say = (role, content, status = "done") => ({ role, content, status });
          const messages = [
            say("user", "a".repeat(20)), say("assistant", "b".repeat(20)),
            say("user", "lost", "failed"), say("user", "字".repeat(10)), say("assistant", ""),
            say("user", "c".repeat(20)),
          ];
          const common = { system: "", estimate, maxTokens: 8 };
          return {
            all: estimate.count(turnsOf(messages, { start: 0, system: "" })),
            roles: turnsOf(messages, { start: 0, system: "Be kind" }).map((turn) => turn.role),
            starts: [100, 77, 76, 10, null].map((contextLength) =>
              fittingStart(messages, { start: 0, contextLength, ...common })),
            next: [0, 2, 3, 5].map((start) => withoutOldest(messages, start)),
          };
        }"""
    )
    # bytes: 20 + 20 + (30 + 1 + 20) = 91, halved and rounded up 46; (3 turns + 1) x 5 = 20
    assert found["all"] == 66
    assert found["roles"] == ["system", "user", "assistant", "user"]
    # room = context - min(8, context // 4); 100 -> 92 and 77 -> 69 hold 66; 74 would be the edge
    assert found["starts"] == [0, 0, 0, 5, 0]
    assert found["next"] == [2, 3, 5, None]


@pytest.mark.slow
def test_chat_of_forty_turns_stays_quick_and_whole(chat: Chat, fake: FakeServer) -> None:
    fake.default = Answer([f"word{number} " for number in range(20)])
    began = time.monotonic()
    for number in range(40):
        chat.ask(f"Question number {number}, please?")
    took = time.monotonic() - began
    expect(chat.answers).to_have_count(40)
    expect(chat.questions.nth(17).locator(".text")).to_have_text("Question number 17, please?")
    assert overlong_refusals(fake) == 0
    expect(chat.page.locator(".trim-line")).to_have_count(1)
    assert took < 60
    began = time.monotonic()
    chat.reload()
    expect(chat.answers).to_have_count(40)
    assert time.monotonic() - began < 10
    assert distance_to_end(chat) < 2
    assert chat.complaints == []


def test_page_follows_the_answer_only_for_a_person_at_the_bottom(
    chat: Chat, fake: FakeServer
) -> None:
    chat.store("chat", old_chat(20, characters=200))
    chat.reload()
    more, end = threading.Event(), threading.Event()
    fake.script.append(Answer(["a line\n\n" * 10, more, "a line\n\n" * 10, end, "a line\n\n" * 10]))
    chat.send("Tell me a lot")
    text = chat.answers.last.locator(".text")
    expect(text.locator("p")).to_have_count(10)
    assert distance_to_end(chat) < 2
    jump = chat.page.locator("#jump")
    expect(jump).to_be_hidden()
    chat.page.mouse.move(640, 300)
    chat.page.mouse.wheel(0, -600)
    expect(jump).to_be_visible()
    reading = chat.page.locator("#scroller").evaluate("scroller => scroller.scrollTop")
    more.set()
    expect(text.locator("p")).to_have_count(20)
    assert chat.page.locator("#scroller").evaluate("scroller => scroller.scrollTop") == reading
    jump.click()
    expect(jump).to_be_hidden()
    wait_for_end(chat)
    end.set()
    expect(text.locator("p")).to_have_count(30)
    chat.wait_until_done()
    assert distance_to_end(chat) < 2


def distance_to_end(chat: Chat) -> float:
    """Pixels between what is in sight and the end of the chat."""
    return float(
        chat.page.locator("#scroller").evaluate(
            "scroller => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight"
        )
    )


def wait_for_end(chat: Chat) -> None:
    """Returns when the end of the chat is in sight, after a smooth movement perhaps."""
    deadline = time.monotonic() + 5
    while distance_to_end(chat) >= 2:
        assert time.monotonic() < deadline, "the end never came into sight"
