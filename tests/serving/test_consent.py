"""What a request allows to be kept of its words."""

from __future__ import annotations

import pytest

from lmloop.errors import RequestError
from lmloop.serving.consent import Consent, Content, mask, read_consent


@pytest.mark.parametrize("default", ["off", "redacted", "full"])
def test_a_request_that_says_nothing_follows_the_setting_and_consents_to_nothing(
    default: Content,
) -> None:
    for headers in ({}, {"x-lmloop-consent": ""}, {"x-lmloop-consent": "  "}):
        assert read_consent(headers, default=default) == Consent(content=default, given=False)


@pytest.mark.parametrize("default", ["off", "redacted", "full"])
@pytest.mark.parametrize(
    ("word", "content", "given"),
    [
        ("no", "off", False),
        ("redacted", "redacted", True),
        ("full", "full", True),
        ("yes", "full", True),
        (" Full ", "full", True),
    ],
)
def test_a_request_that_says_something_decides_for_itself(
    default: Content, word: str, content: Content, given: bool
) -> None:
    found = read_consent({"x-lmloop-consent": word}, default=default)
    assert found == Consent(content=content, given=given)


@pytest.mark.parametrize("word", ["true", "yes please", "off", "ful", "1", "no, full", "x" * 9000])
def test_a_word_that_means_nothing_is_refused_with_those_that_do(word: str) -> None:
    with pytest.raises(RequestError, match="send no, redacted or full") as caught:
        read_consent({"x-lmloop-consent": word}, default="full")
    assert (caught.value.status, caught.value.param) == (400, "x-lmloop-consent")
    assert len(str(caught.value)) < 200


def test_masking_leaves_the_rest() -> None:
    text = "I am ann@example.org, call +44 20 7946 0958. <b>你好</b>\x07"
    assert mask(text) == "I am <email>, call <phone>. <b>你好</b>\x07"
