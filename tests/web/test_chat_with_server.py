"""The chat page against lmloop's own server: what is said and rated arrives in the database."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from playwright.sync_api import BrowserContext, expect

from lmloop.store.database import ratings_table, requests_table

from .conftest import Chat, watch
from .real_server import CONTEXT_LENGTH, SENTENCE, RealServer, run_real_server

WAIT_SECONDS = 10


@pytest.fixture(scope="module")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    with run_real_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def talk(context: BrowserContext, real_server: RealServer) -> Chat:
    return watch(context.new_page(), url=real_server.url).open()


def wait_for_row(server: RealServer, table: sa.Table, **wanted: object) -> Any:
    """The row of this answer, once the server's writer has put it there."""
    key = next(iter(table.primary_key.columns))
    query = sa.select(table).where(key == wanted.pop("answer"))
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        with server.database.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is not None and all(row[name] == value for name, value in wanted.items()):
            return row
        time.sleep(0.02)
    raise AssertionError(f"{table.name} holds {row}, not {wanted}")


def last_answer_id(talk: Chat) -> str:
    """The id under which the server knows the last answer."""
    return str(talk.stored("chat")["messages"][-1]["responseId"])


def test_message_is_streamed_answered_and_rated_into_the_database(
    talk: Chat, real_server: RealServer
) -> None:
    talk.page.evaluate(  # a busy machine skips frames: here each piece is drawn as it is read
        """() => {
          window.lengths = [];
          window.requestAnimationFrame = (draw) => {
            draw();
            const text = document.querySelector("article.assistant .text");
            if (text) window.lengths.push(text.textContent.length);
          };
        }"""
    )
    assert talk.ask("Good morning!") == SENTENCE
    lengths = talk.page.evaluate("window.lengths")
    assert lengths == sorted(lengths)
    assert len({length for length in lengths if 0 < length < len(SENTENCE)}) >= 2
    talk.tool("up").click()
    expect(talk.answers.last.locator(".saved")).to_have_text("Saved")
    answer = last_answer_id(talk)
    wait_for_row(real_server, ratings_table, answer=answer, rating=1, correction=None)
    request = wait_for_row(real_server, requests_table, answer=answer, finish_reason="stop")
    assert (request["consent"], request["prompt"], request["answer"]) == (False, None, None)
    talk.tool("pen").click()
    talk.answers.last.locator(".desk textarea").fill("Good morning to you!")
    talk.answers.last.get_by_role("button", name="Save", exact=True).click()
    expect(talk.answers.last.locator(".suggestion p")).to_have_text("Good morning to you!")
    wait_for_row(
        real_server, ratings_table, answer=answer, rating=1, correction="Good morning to you!"
    )
    talk.tool("up").click()
    expect(talk.tool("up")).to_have_attribute("aria-pressed", "false")
    wait_for_row(real_server, ratings_table, answer=answer, rating=None)
    assert talk.complaints == []


def test_text_is_kept_only_after_consent(talk: Chat, real_server: RealServer) -> None:
    talk.page.get_by_label("Share the text of this chat").check()
    talk.ask("Keep this, please.")
    row = wait_for_row(real_server, requests_table, answer=last_answer_id(talk), consent=True)
    assert json.loads(row["prompt"]) == [{"role": "user", "content": "Keep this, please."}]
    assert row["answer"] == SENTENCE


def test_chat_longer_than_the_context_goes_on_with_the_line_drawn(talk: Chat) -> None:
    expect(talk.page.locator("#fact-context")).to_have_text(f"{CONTEXT_LENGTH} tokens")
    for number in range(8):
        assert talk.ask(f"This is question number {number}.") == SENTENCE
    expect(talk.page.locator(".trim-line")).to_be_visible()
    assert talk.complaints == []


def test_page_that_was_closed_can_still_rate_its_answers(
    talk: Chat, real_server: RealServer
) -> None:
    talk.ask("Hello")
    talk.reload()
    talk.tool("down").click()
    expect(talk.answers.last.locator(".saved")).to_have_text("Saved")
    wait_for_row(real_server, ratings_table, answer=last_answer_id(talk), rating=-1)
