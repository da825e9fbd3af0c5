"""Personal data in text: e-mail addresses and telephone numbers are found, masked and counted.

Takes: text. Gives: the same text with `<email>` and `<phone>`. Patterns find what has the form of a
number, `phonenumbers` then says whether it is one; every pattern runs in linear time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import phonenumbers

EMAIL_MASK = "<email>"
PHONE_MASK = "<phone>"
REGIONS = ("US", "GB", "CN")
"""Whose national forms are known; numbers in the international form need no region."""

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)

_INTERNATIONAL = (
    r"\+[1-9](?:[ .()-]{0,2}\d){6,14}"
    r"|00(?=[1-9]\d{0,2}[ (-])[1-9](?:[ ()-]{0,2}\d){6,14}"
)
_NATIONAL: Mapping[str, str] = {
    "US": r"(?:1[ .-])?(?:\(\d{3}\)[ -]?|\d{3}[ .-])\d{3}[ .-]\d{4}",
    "GB": r"\(?0\d{2,5}\)?[ -]\d{3,8}(?:[ -]\d{3,4})?|07\d{9}",
    "CN": r"1[3-9]\d(?:[ -]?\d{4}){2}|\(?0\d{2,3}\)?[ -]\d{7,8}",
}
# Ten digits in a row are a telephone number only where the words before them say so.
_BARE = {"US": r"1?[2-9]\d{9}"}
_CONTEXT = re.compile(
    r"\b(?:phone|telephone|tel|call|text|cell|mobile|whatsapp|dial|ring|sms"
    r"|(?:my|your|his|her|their|new|contact) number)\b"
    r"|电话|手机|号码|联系|微信|致电",
    re.IGNORECASE,
)
_CONTEXT_CHARACTERS = 30

# No digit, letter, currency sign or part of a path, name or decimal may touch the number.
_BEFORE = r"(?<![0-9A-Za-z_$€£¥/#&=@+-])(?<![0-9][.,:])"
_AFTER = r"(?![0-9A-Za-z_%€£¥@]|[-./,:][0-9])"
_CANDIDATE = re.compile(
    _BEFORE
    + "(?:"
    + "|".join(
        f"(?P<{name}>{pattern})"
        for name, pattern in [
            ("international", _INTERNATIONAL),
            *_NATIONAL.items(),
            *((f"bare_{region}", pattern) for region, pattern in _BARE.items()),
        ]
    )
    + ")"
    + _AFTER
)
_LAST_GROUP = re.compile(r"[ .()-]*[+0-9]+$")
# Cheap: nearly all text has no such run of digits.
_MANY_DIGITS = re.compile(r"\d(?:[ .()-]{0,3}\d){6}")


class Masked(NamedTuple):
    """Text without personal data, and how much of it was masked."""

    text: str
    emails: int
    phones: int


def mask_personal_data(text: str, *, regions: Sequence[str] = REGIONS) -> Masked:
    """Replace e-mail addresses by `<email>` and telephone numbers by `<phone>`."""
    emails = phones = 0
    if "@" in text:
        text, emails = _EMAIL.subn(EMAIL_MASK, text)
    if _MANY_DIGITS.search(text):
        text, phones = mask_phones(text, regions=regions)
    return Masked(text, emails, phones)


def mask_phones(text: str, *, regions: Sequence[str] = REGIONS) -> tuple[str, int]:
    """Replace telephone numbers by `<phone>`; give the text and how many they were."""
    pieces: list[str] = []
    end = position = 0
    while match := _CANDIDATE.search(text, position):
        position = match.end()
        if length := _measure_phone(match, regions):
            position = match.start() + length
            pieces += (text[end : match.start()], PHONE_MASK)
            end = position
    return "".join((*pieces, text[end:])), len(pieces) // 2


def _measure_phone(match: re.Match[str], regions: Sequence[str]) -> int:
    """Characters of the telephone number that a match begins with; 0 where it is none."""
    number = match.group()
    if match.lastgroup != "international":
        return len(number) if _is_national(match, regions) else 0
    # Numbers may follow each other: the last groups of digits can belong to something else.
    while number and not _is_valid(f"+{number.removeprefix('+').removeprefix('00')}", None):
        number = _LAST_GROUP.sub("", number)
    return len(number)


def _is_national(match: re.Match[str], regions: Sequence[str]) -> bool:
    form, number = match.lastgroup or "", match.group()
    if form.startswith("bare_"):
        before = match.string[max(0, match.start() - _CONTEXT_CHARACTERS) : match.start()]
        region = form.removeprefix("bare_")
        return region in regions and bool(_CONTEXT.search(before)) and _is_valid(number, region)
    # The forms of two countries can look alike: any that fits will do.
    return any(
        region in regions and re.fullmatch(pattern, number) and _is_valid(number, region)
        for region, pattern in _NATIONAL.items()
    )


def _is_valid(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
