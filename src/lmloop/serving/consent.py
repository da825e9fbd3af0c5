"""What may be kept of a request's words: none, masked ones, or all.

Takes: a request's header and the server's setting. Gives: a `Consent`, and texts as it lets them be
kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lmloop.corpus.privacy import mask_personal_data
from lmloop.errors import RequestError

Content = Literal["off", "redacted", "full"]
"""No words; words in which e-mail addresses and telephone numbers are masked; all words."""

CONSENT_HEADER = "x-lmloop-consent"
_CONTENTS: Mapping[str, Content] = {
    "no": "off",
    "redacted": "redacted",
    "full": "full",
    "yes": "full",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What is kept of one request's words, and whether its sender allowed it."""

    content: Content
    given: bool
    """Whether the request itself allowed keeping, not only the server's setting."""


def read_consent(headers: Mapping[str, str], *, default: Content) -> Consent:
    """What a request's header says, `default` where it says nothing.

    Raises `RequestError` (400) for a word that means nothing: whoever mistypes a wish about their
    words must not be served as if they had none.
    """
    word = headers.get(CONSENT_HEADER, "").strip().lower()
    if not word:
        return Consent(content=default, given=False)
    if word not in _CONTENTS:
        raise RequestError(
            f"The header X-Lmloop-Consent says {word[:40]!r}: send no, redacted or full, or leave "
            "it out.",
            param=CONSENT_HEADER,
            code="invalid_value",
        )
    content = _CONTENTS[word]
    return Consent(content=content, given=content != "off")


def mask(text: str) -> str:
    """The text without e-mail addresses and telephone numbers."""
    return mask_personal_data(text).text
