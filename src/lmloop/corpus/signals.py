"""What the words of an exchange show of its health, measured without a model.

Takes: what was asked and what was answered. Gives: lengths, languages, repetition, and whether the
answer refuses. Pure functions of text; 60 microseconds for an exchange of small talk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from lmloop.corpus.language import identify
from lmloop.corpus.rules import measure_repetition
from lmloop.records import Turn

MAX_MEASURED_CHARACTERS = 4_000
"""So much of an answer is measured: its cost stays bounded."""
REFUSAL_CHARACTERS = 200
"""A refusal stands in the first sentences of an answer."""

_REFUSALS = (
    r"\bi(?:'m| am) (?:sorry|afraid)\b[^.!?]{0,40}\b(?:i|but)\b[^.!?]{0,20}"
    r"\b(?:can(?:'t|not| not)|won't|unable|not able)\b",
    r"\bi (?:can(?:'t|not| not)|won't|will not|could(?:n't| not)) (?:\w+ )?"
    r"(?:help|assist|answer|provide|comply|discuss|share|fulfil+|do that|generate|create)\b",
    r"\bi(?:'m| am) (?:\w+ )?(?:unable|not (?:able|allowed|permitted)) to\b",
    r"\bi must (?:decline|refuse)\b",
    r"\bi (?:have to|need to|respectfully) (?:decline|refuse)\b",
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b[^.!?]{0,60}"
    r"\b(?:can(?:'t|not| not)|don't|do not|unable|not able)\b",
    r"\bagainst my (?:guidelines|policy|policies|programming)\b",
    r"(?:抱歉|对不起|很遗憾)[^。！？]{0,20}(?:不能|无法|没有办法|没办法|不可以|不便)",
    r"我(?:不能|无法|没有办法|没办法|不可以|不便)[^。！？]{0,6}"
    r"(?:帮|协助|回答|提供|讨论|满足|生成|继续|参与|告诉)",
    r"作为(?:一个|一款|一名)?(?:ai|人工智能|语言模型|大语言模型)[^。！？]{0,30}(?:不能|无法|不会)",
)
"""How models refuse in English and Chinese, in small letters. A table finds these wordings only."""
_REFUSAL = re.compile("|".join(_REFUSALS))
# No refusal is without one of these, nearly all other text is without any, and to look is cheap.
_DENIAL = re.compile("n't|not|decline|refuse|unable|against|不|无法|没")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSignals:
    """What the words of one exchange show."""

    prompt_characters: int
    """Of all that was given to the model."""
    answer_characters: int
    language: str | None
    """ISO 639-1 code of what was asked, None where it cannot be told."""
    answer_language: str | None
    repetition: float
    """Share of the answer that repeats itself, 0 to 1 (see `measure_repetition`)."""
    refusal: bool
    """Whether the answer declines to answer."""


def measure_exchange(turns: Sequence[Turn], answer: str) -> TextSignals:
    """Measure one exchange: everything that was given to the model, and one answer."""
    return TextSignals(
        prompt_characters=sum(len(turn.content) for turn in turns),
        answer_characters=len(answer),
        language=identify_asked(turns),
        answer_language=identify(answer),
        repetition=round(measure_repetition(answer[:MAX_MEASURED_CHARACTERS]), 4),
        refusal=is_refusal(answer),
    )


def identify_asked(turns: Sequence[Turn]) -> str | None:
    """The language of the user's newest turn; where that cannot be told, of the one before it."""
    for turn in reversed(turns):
        if turn.role == "user" and (language := identify(turn.content)):
            return language
    return None


def is_refusal(answer: str) -> bool:
    """Whether an answer begins by declining, in English or Chinese."""
    begin = answer[:REFUSAL_CHARACTERS].replace("\u2019", "'").lower()
    return bool(_DENIAL.search(begin) and _REFUSAL.search(begin))
