"""Names that cannot be read back."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from lmloop.store.identity import pseudonym

SECRET = bytes(range(32))


def test_a_pseudonym_is_half_an_hmac() -> None:
    whole = hmac.new(SECRET, "Jörg 张".encode(), hashlib.sha256).hexdigest()
    assert pseudonym(SECRET, "Jörg 张") == whole[:32]


def test_it_stays_the_same_and_differs_by_name_and_by_secret() -> None:
    names = ["", "a", "A", "a ", "alice@example.org", "b" * 100_000]
    found = {pseudonym(secret, name) for name in names for secret in (SECRET, SECRET[::-1])}
    assert len(found) == 12
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in found)
    assert pseudonym(SECRET, "a") == pseudonym(SECRET, "a")


@pytest.mark.parametrize("name", ["\0", "\ud800", "a\nb", "<script>"])
def test_any_text_has_one(name: str) -> None:
    assert len(pseudonym(SECRET, name)) == 32
