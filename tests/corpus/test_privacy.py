from __future__ import annotations

import time

import pytest

from lmloop.corpus.privacy import mask_personal_data, mask_phones


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to a@b.com.", "write to <email>."),
        ("<John.Doe+x@mail.example.co.uk>", "<<email>>"),
        ("\u8054\u7cfbme_1@x.cn\u8c22\u8c22", "\u8054\u7cfb<email>\u8c22\u8c22"),
    ],
)
def test_email_addresses_are_masked(text: str, masked: str) -> None:
    assert mask_personal_data(text) == (masked, 1, 0)


@pytest.mark.parametrize("text", ["@name", "a @ b", "user@localhost", "a@b", "@@", "3@1.5"])
def test_what_only_looks_like_an_address_stays(text: str) -> None:
    assert mask_personal_data(text) == (text, 0, 0)


@pytest.mark.parametrize(
    "number",
    [
        "+1 415 555 2671",
        "+14155552671",
        "+44 (0)20 7946 0958",
        "0044 20 7946 0958",
        "+86 138 1234 5678",
        "+49 30 901820",
        "+55 11 91234-5678",
        "(808) 782-1557",
        "808-782-1557",
        "808.782.1557",
        "1-808-782-1557",
        "020 7946 0958",
        "(020) 7946 0958",
        "07911 123456",
        "07911123456",
        "13812345678",
        "138-1234-5678",
        "010-62345678",
    ],
)
@pytest.mark.parametrize(
    "frame", ["{}", "at {}, ok?", "\u7535\u8bdd{}\uff0c\u8c22\u8c22", "tel:{}."]
)
def test_telephone_numbers_are_masked(number: str, frame: str) -> None:
    assert mask_personal_data(frame.format(number)) == (frame.format("<phone>"), 0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "in 2018 and 2019, or 2018-2019",
        "2018-05-02T19:38:15Z",
        "02/05/2018 12:30:45",
        "1525289915 and 1525289915000",
        "$1,234,567.89",
        "1 000 000 000",
        "1.2.3.4 and 192.168.100.254 and 10.15.7.1234",
        "3.14159265358979",
        "my order number is 4155552671",
        "order 20240115123456, card 1234 5678 9012 3456",
        "isbn 978-3-16-148410-0",
        "0011010010110100101",
        "http://x.org/4155552671?id=13812345678",
        "1 2 3 4 5 6 7 8 9 10 11",
        "4 8 15 16 23 42",
        "\u20ac4155552671",
        "100-200-300",
        "+1000000000",
    ],
)
def test_other_numbers_stay(text: str) -> None:
    assert mask_personal_data(text) == (text, 0, 0)


def test_ten_bare_digits_are_a_number_where_the_words_say_so() -> None:
    for text in ("call me at {}", "my number is {}", "\u6211\u7684\u53f7\u7801\u662f{}"):
        assert mask_personal_data(text.format("4155552671")).text == text.format("<phone>")
    assert mask_personal_data("about 4155552671 stars").phones == 0


def test_numbers_that_follow_each_other_are_told_apart() -> None:
    text = "+44 20 7946 0958 2018 +1 808 782 1557"
    assert mask_personal_data(text) == ("<phone> 2018 <phone>", 0, 2)


def test_regions_decide_which_national_forms_are_known() -> None:
    assert mask_phones("808-782-1557", regions=("CN",)) == ("808-782-1557", 0)
    assert mask_phones("+1 808 782 1557", regions=()) == ("<phone>", 1)


def test_masking_again_changes_nothing() -> None:
    once = mask_personal_data("a@b.com, 808-782-1557").text
    assert mask_personal_data(once) == (once, 0, 0)


@pytest.mark.parametrize(
    "text",
    [
        "+1" * 100_000,
        "+" + "1" * 200_000,
        "+1 (" * 50_000,
        "0" * 200_000,
        "1 " * 100_000,
        "(808) " * 30_000,
        "1-" * 100_000,
        "a@" * 100_000,
        "a" * 200_000 + "@",
        "a@" + "b." * 100_000,
        "a@" + "b" * 200_000,
    ],
)
def test_masking_takes_linear_time(text: str) -> None:
    start = time.process_time()
    mask_personal_data(text)
    assert time.process_time() - start < 2
