"""What a request's row says, and what it does not."""

from __future__ import annotations

import base64
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from lmloop.serving.rows import build_rating_row, build_request_row
from lmloop.serving.schemas import CompletionRequest, Feedback
from lmloop.store.database import ratings_table, requests_table

from .rows_made import chat_request, request_row, served

SECRETS = ("ann@example.org", "+44 20 7946 0958", "138-1234-5678")
WORDS = "I am ann@example.org, +44 20 7946 0958."
EMBEDDING = np.arange(64, dtype="<f2")
SIGNALS = {
    "prompt_nats": 3.25,
    "log_probability": -1.5,
    "entropy": 2.0,
    "embedding": base64.b64encode(EMBEDDING.tobytes()).decode(),
}


def complete(*prompts: Any) -> CompletionRequest:
    return CompletionRequest.model_validate({"model": "m", "prompt": list(prompts)})


def test_a_row_has_every_column_and_no_other() -> None:
    assert set(request_row()) == {column.name for column in requests_table.columns}
    rating = build_rating_row(Feedback(response_id="a"), created=1.0, content="off")
    assert set(rating) == {column.name for column in ratings_table.columns}


def test_what_is_known_already_is_passed_on() -> None:
    row = request_row(arm="shadow", shadow_of="b", weights="w", created=7.0)
    found = (row["arm"], row["shadow_of"], row["weights"], row["created"])
    assert found == ("shadow", "b", "w", 7.0)
    assert (row["user_hash"], row["session_hash"]) == ("u" * 32, "s" * 32)


def test_without_leave_no_word_is_kept() -> None:
    row = build_request_row(served(chat_request(WORDS), WORDS, measured=True))
    assert (row["content"], row["consent"], row["prompt"], row["answer"]) == (
        *("off", False, None, None),
    )
    assert not any(secret in str(row) for secret in SECRETS)


def test_redacted_words_are_masked_in_every_message_and_in_the_answer() -> None:
    request = chat_request(WORDS, "what is 138-1234-5678?")
    row = build_request_row(served(request, WORDS, content="redacted", given=True, measured=True))
    masked = "I am <email>, <phone>."
    assert json.loads(row["prompt"]) == [
        {"role": "user", "content": masked},
        {"role": "user", "content": "what is <phone>?"},
    ]
    assert (row["answer"], row["content"], row["consent"]) == (masked, "redacted", True)
    assert not any(secret in str(row) for secret in SECRETS)


def test_full_words_are_kept_as_they_are() -> None:
    row = build_request_row(served(chat_request("<b>你好</b>"), WORDS, content="full", given=True))
    assert json.loads(row["prompt"]) == [{"role": "user", "content": "<b>你好</b>"}]
    assert (row["answer"], row["content"], row["consent"]) == (WORDS, "full", True)


def test_what_a_setting_keeps_is_no_consent() -> None:
    row = build_request_row(served(content="full"))
    assert (row["content"], row["consent"], row["answer"]) == ("full", False, "hello")


def test_prompts_as_token_ids_are_kept_in_full_only() -> None:
    request = complete("mail ann@example.org", [1, 2])
    kept = build_request_row(served(request, content="full"))
    assert json.loads(kept["prompt"]) == ["mail ann@example.org", [1, 2]]
    redacted = build_request_row(served(request, content="redacted"))
    assert json.loads(redacted["prompt"]) == ["mail <email>", None]


def test_signals_are_those_of_the_words_and_of_the_engine() -> None:
    request = chat_request("What do you like to eat in the morning?")
    answer = "As an AI language model I cannot eat anything at all."
    row = build_request_row(
        served(request, answer, measured=True, length_stop=True, engine_signals=SIGNALS)
    )
    assert json.loads(row["signals"]) == {
        "prompt_characters": 39,
        "answer_characters": 53,
        "language": "en",
        "answer_language": "en",
        "repetition": 0.0,
        "refusal": True,
        "length_stop": True,
        "prompt_nats": 3.25,
        "log_probability": -1.5,
        "entropy": 2.0,
    }
    assert np.array_equal(np.frombuffer(row["embedding"], "<f2"), EMBEDDING)


def test_what_the_engine_did_not_measure_is_absent() -> None:
    row = build_request_row(served(measured=True))
    signals = json.loads(row["signals"])
    found = [signals[name] for name in ("prompt_nats", "log_probability", "entropy")]
    assert found == [None] * 3
    assert (signals["language"], row["embedding"]) == (None, None)
    one_token = {**SIGNALS, "prompt_nats": None, "embedding": None}
    row = build_request_row(served(measured=True, engine_signals=one_token))
    assert json.loads(row["signals"])["prompt_nats"] is None
    assert row["embedding"] is None


def test_numbers_that_json_cannot_say_are_absent() -> None:
    broken = {**SIGNALS, "entropy": math.nan, "log_probability": -math.inf}
    signals = json.loads(
        build_request_row(served(measured=True, engine_signals=broken))["signals"],
        parse_constant=pytest.fail,
    )
    assert (signals["entropy"], signals["log_probability"]) == (None, None)


def test_signals_that_nobody_wants_are_not_measured() -> None:
    row = build_request_row(served(engine_signals=SIGNALS))
    assert (row["signals"], row["embedding"]) == (None, None)


def test_of_a_plain_text_the_first_prompt_is_measured() -> None:
    row = build_request_row(served(complete("abc", "defg"), measured=True))
    assert json.loads(row["signals"])["prompt_characters"] == 3
    row = build_request_row(served(complete([1, 2, 3]), measured=True))
    assert json.loads(row["signals"])["prompt_characters"] == 0


def test_warming_up_opens_what_measuring_needs() -> None:
    code = """
import sys
from lmloop.serving.rows import warm_up
assert "fasttext" not in sys.modules
warm_up()
assert "fasttext" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_size_of_what_waits_is_that_of_its_words() -> None:
    assert served(chat_request("abc", "de"), "fghi").characters == 9
    assert served(complete("abc", [1, 2]), "").characters == 5


@pytest.mark.parametrize(
    ("content", "kept"),
    [("off", "I am <email>, <phone>."), ("redacted", "I am <email>, <phone>."), ("full", WORDS)],
)
def test_corrections_and_comments_are_masked_unless_all_words_may_be_kept(
    content: Any, kept: str
) -> None:
    feedback = Feedback(response_id="a", rating=-1, correction=WORDS, comment=WORDS)
    row = build_rating_row(feedback, created=2.5, content=content)
    assert row == {
        "request_id": "a",
        "created": 2.5,
        "rating": -1,
        "correction": kept,
        "comment": kept,
    }


def test_a_rating_without_words_has_none() -> None:
    row = build_rating_row(Feedback(response_id="a", rating=1), created=1.0, content="redacted")
    assert (row["correction"], row["comment"]) == (None, None)
