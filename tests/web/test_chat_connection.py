"""The chat page when the server goes away, refuses or breaks off: nothing typed is lost."""

from __future__ import annotations

from playwright.sync_api import expect

from .conftest import Chat
from .fake_server import Answer, FakeServer, Refusal


def test_lost_server_is_noticed_and_awaited_and_the_message_can_be_sent_again(
    chat: Chat, fake: FakeServer
) -> None:
    chat.ask("Hello")
    fake.stop()
    chat.send("Are you there?")
    failed = chat.questions.last
    expect(failed).to_have_attribute("data-status", "failed")
    expect(failed.locator(".text")).to_have_text("Are you there?")
    expect(chat.page.locator("#connection")).to_be_visible()
    chat.send("typed while away")
    expect(chat.prompt).to_have_value("typed while away")
    fake.start()
    expect(chat.page.locator("#connection")).to_be_hidden()
    failed.get_by_role("button", name="Try again").click()
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")
    expect(failed).to_have_attribute("data-status", "done")
    expect(chat.prompt).to_have_value("typed while away")
    assert [turn["role"] for turn in fake.chats()[-1]["messages"]] == ["user", "assistant", "user"]


def test_failed_message_can_be_taken_back_into_the_input(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Refusal(500, "Something broke."))
    chat.send("My long thought")
    expect(chat.questions.last.locator(".notice span")).to_have_text(
        "Not answered: Something broke."
    )
    chat.questions.last.get_by_role("button", name="Edit").click()
    expect(chat.questions).to_have_count(0)
    expect(chat.prompt).to_have_value("My long thought")
    expect(chat.page.locator("#welcome")).to_be_visible()


def test_message_that_failed_is_left_out_of_later_requests(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Refusal(500, "Something broke."))
    chat.send("Lost")
    expect(chat.questions.last).to_have_attribute("data-status", "failed")
    chat.ask("Found")
    assert [turn["content"] for turn in fake.chats()[-1]["messages"]] == ["Found"]
    expect(chat.questions.first.get_by_role("button")).to_have_count(0)


def test_page_opened_while_the_server_is_away_wakes_up_with_it(
    chat: Chat, fake: FakeServer
) -> None:
    fake.ready = False
    chat.page.route("**/info", lambda route: route.abort())
    chat.page.goto(chat.url)
    expect(chat.page.locator("#connection")).to_be_visible()
    chat.page.unroute("**/info")
    fake.ready = True
    expect(chat.page.locator("#connection")).to_be_hidden()
    expect(chat.page.locator("#model-name")).to_have_text("chat")


def test_engine_that_restarts_is_awaited_through_ready(chat: Chat, fake: FakeServer) -> None:
    fake.ready = False
    fake.script.append(Refusal(503, "The engine is starting."))
    chat.send("Hello?")
    expect(chat.page.locator("#connection")).to_be_visible()
    expect(chat.page.locator("html")).to_have_attribute("data-offline", "")
    fake.ready = True
    expect(chat.page.locator("#connection")).to_be_hidden()
    chat.questions.last.get_by_role("button", name="Try again").click()
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")


def test_busy_server_that_is_ready_does_not_look_lost(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Refusal(503, "The queue is full."))
    chat.send("Hello?")
    expect(chat.questions.last.locator(".notice span")).to_have_text(
        "Not answered: The queue is full."
    )
    chat.questions.last.get_by_role("button", name="Try again").click()
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")
    expect(chat.page.locator("#connection")).to_be_hidden()


def test_dropped_connection_keeps_the_partial_answer_and_offers_another(
    chat: Chat, fake: FakeServer
) -> None:
    fake.script.append(Answer(["So far ", "so good"], end="drop"))
    chat.send("Tell me")
    answer = chat.answers.last
    expect(answer).to_have_attribute("data-status", "broken")
    expect(answer.locator(".text")).to_have_text("So far so good")
    expect(answer.locator(".notice span")).to_have_text("The connection was lost in mid-answer.")
    answer.get_by_role("button", name="Try again").click()
    expect(chat.answers.last.locator(".text")).to_have_text("A fine day to you.")
    expect(chat.answers).to_have_count(1)


def test_error_in_mid_stream_is_told_and_the_partial_answer_stays(
    chat: Chat, fake: FakeServer
) -> None:
    fake.script.append(Answer(["So far "], end="error", message="The engine <b>stopped</b>."))
    chat.send("Tell me")
    answer = chat.answers.last
    expect(answer).to_have_attribute("data-status", "broken")
    expect(answer.locator(".notice span")).to_have_text(
        "The answer broke off: The engine <b>stopped</b>."
    )
    assert chat.complaints == []


def test_answer_cut_at_the_limit_says_so(chat: Chat, fake: FakeServer) -> None:
    chat.page.evaluate("localStorage.setItem('lmloop.settings', '{\"max_tokens\": 2}')")
    chat.reload()
    fake.script.append(Answer(["One ", "two"], end="length"))
    chat.ask("Count")
    expect(chat.answers.last.locator(".notice")).to_have_text("Cut at the longest answer allowed.")
    fake.script.append(Answer(["One"], end="length"))
    chat.ask("Count")
    expect(chat.answers.last.locator(".notice")).to_have_text("Cut: the model's context is full.")


def test_answer_without_a_word_says_so_and_leaves_no_hole(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Answer([]))
    chat.send("Hm?")
    expect(chat.answers.last.locator(".notice")).to_have_text("The model answered with nothing.")
    chat.ask("And now?")
    assert fake.chats()[-1]["messages"] == [{"role": "user", "content": "Hm?\nAnd now?"}]


def test_rating_that_could_not_be_sent_can_be_given_later(chat: Chat, fake: FakeServer) -> None:
    chat.ask("Hello")
    fake.stop()
    chat.tool("up").click()
    expect(chat.answers.last.locator(".saved")).to_contain_text("Not saved")
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "false")
    fake.start()
    expect(chat.page.locator("#connection")).to_be_hidden()
    chat.tool("up").click()
    expect(chat.tool("up")).to_have_attribute("aria-pressed", "true")
    expect(chat.answers.last.locator(".saved")).to_have_text("Saved")
    assert fake.feedback() == [{"response_id": "chatcmpl-1", "rating": 1}]


def test_new_weights_are_named_after_a_restart(chat: Chat, fake: FakeServer) -> None:
    fake.weights = "77aa0000bbbb"
    fake.ready = False
    fake.script.append(Refusal(503, "The engine is starting."))
    chat.send("Hello?")
    expect(chat.page.locator("#connection")).to_be_visible()
    fake.ready = True
    expect(chat.page.locator("#model-weights")).to_have_text("77aa0000bbbb")


def test_new_weights_are_named_after_their_first_answer(chat: Chat, fake: FakeServer) -> None:
    fake.weights = "88cc0000dddd"
    chat.ask("Who are you?")
    expect(chat.page.locator("#model-weights")).to_have_text("88cc0000dddd")


def test_page_opened_while_the_engine_loads_waits_for_it(chat: Chat, fake: FakeServer) -> None:
    fake.ready = False
    chat.reload()
    expect(chat.page.locator("#connection")).to_be_visible()
    fake.ready = True
    expect(chat.page.locator("#connection")).to_be_hidden()
    expect(chat.page.locator("#fact-context")).to_have_text("512 tokens")
