"""Small figures about texts and samples: what counts as a word, variety, repetition, intervals.

Takes: texts or numbers. Gives: numbers. Nothing here knows of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

COPY_WORDS = 8
"""An answer that shares more words in a row than this with the training text counts as copied."""
T = TypeVar("T")
Figure = tuple[str, str, Callable[[Sequence[T]], float | None], str]
"""Name, unit, how it is measured, and a line of explanation."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Chinese and Japanese put no spaces: there a character counts as a word.
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of a report."""

    name: str
    value: float | None
    """None where the held-out text has nothing to measure it on."""
    unit: str
    """bits, share, words or ratio."""
    explanation: str
    """One line for somebody who meets the figure for the first time."""
    interval: tuple[float, float] | None = None
    """95 % interval."""
    base: float | None = None
    """The same of the pre-trained model."""
    reference: float | None = None
    """What the figure is to be compared with."""
    reference_name: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As written into `report.json`."""
        return asdict(self)


def words(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    return _WORD.findall(text.lower())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n neighbouring words."""
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def distinct(texts: Sequence[str], *, n: int) -> float | None:
    """Different n-grams over all n-grams of all texts; None where there are none.

    Source: Li et al. 2016, A Diversity-Promoting Objective Function, section 5.
    """
    found = [gram for text in texts for gram in ngrams(words(text), n)]
    return len(set(found)) / len(found) if found else None


def repeats(text: str, *, n: int = 4) -> bool:
    """Whether some run of n words occurs twice in the text."""
    grams = ngrams(words(text), n)
    return len(set(grams)) < len(grams)


def share(flags: Sequence[bool]) -> float | None:
    """The share of True; None of nothing."""
    return sum(flags) / len(flags) if flags else None


def bootstrap_ratio(
    parts: NDArray[Any], wholes: NDArray[Any], *, seed: int, rounds: int = 2000
) -> tuple[float, float]:
    """95 % interval of sum(parts) / sum(wholes), units drawn again with replacement; both [units].

    A unit is what was sampled independently (a document, a conversation), not a token or question.
    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentiles).
    """
    draws = np.random.default_rng(seed).integers(len(parts), size=(rounds, len(parts)))
    ratios = parts[draws].sum(axis=1) / wholes[draws].sum(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def _mean_words(texts: Sequence[str]) -> float | None:
    return sum(len(words(text)) for text in texts) / len(texts) if texts else None


def _longest(lengths: Sequence[int]) -> float | None:
    return max(lengths, default=None)


TEXT_FIGURES: tuple[Figure[str], ...] = (
    (
        "empty_share",
        "share",
        lambda texts: share([not text.strip() for text in texts]),
        "answers without any text; lower is better",
    ),
    ("answer_words", "words", _mean_words, "mean length of an answer"),
    *(
        (
            f"distinct_{n}",
            "ratio",
            partial(distinct, n=n),
            f"different over all {name}; low means always the same phrases",
        )
        for n, name in ((1, "words"), (2, "pairs of words"), (3, "runs of three words"))
    ),
    (
        "repetition_share",
        "share",
        lambda texts: share([repeats(text) for text in texts]),
        "answers in which four words in a row occur twice; lower is better",
    ),
)
"""What is measured on a set of texts."""

COPY_FIGURES: tuple[Figure[int], ...] = (
    (
        "longest_copy",
        "words",
        _longest,
        "longest run of words of any answer that the training text contains",
    ),
    (
        "copy_share",
        "share",
        lambda lengths: share([length > COPY_WORDS for length in lengths]),
        f"answers with more than {COPY_WORDS} words in a row from training; lower is better",
    ),
)
"""What is measured on the lengths of the longest runs copied from training."""
