"""Seals: what other hands change does not hold."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from lmloop.store.seal import is_sealed, seal

SECRET = bytes(range(32))
FIELDS = {"name": "chat", "generation": 3, "changed": 1795332056.25, "phase": None}


def test_a_seal_is_an_hmac_of_sorted_json() -> None:
    text = '{"changed": 1795332056.25, "generation": 3, "name": "chat", "phase": null}'
    assert seal(SECRET, FIELDS) == hmac.new(SECRET, text.encode(), hashlib.sha256).hexdigest()


def test_the_order_of_the_fields_does_not_matter() -> None:
    assert is_sealed(SECRET, dict(reversed(FIELDS.items())), seal(SECRET, FIELDS))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "chaf"},
        {"generation": 4},
        {"generation": "3"},
        {"changed": 1795332056.2500002},
        {"phase": "shadow"},
        {"more": 1},
        {"name": b"chat"},
    ],
)
def test_any_other_field_breaks_it(change: dict[str, object]) -> None:
    assert not is_sealed(SECRET, {**FIELDS, **change}, seal(SECRET, FIELDS))


@pytest.mark.parametrize("found", [None, "", "é", b"", 3, seal(SECRET[::-1], FIELDS)])
def test_what_is_no_seal_holds_nothing(found: object) -> None:
    assert not is_sealed(SECRET, FIELDS, found)
