"""Text to words, and words to numbers: what input vectors are counted and trained on.

Takes: texts of any script. Gives: words in lower case, and a `WordStream` of ids with counts.
Letters of a script that puts spaces between words are split by a pattern; a run of Han characters,
which has none, goes to a segmenter. Thai, Lao, Khmer and Burmese runs stay whole.
Axes: V words, N places of the text, S sentences.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, pre_tokenizers

from lmloop.errors import CorpusError, MissingExtraError

Segmenter = Literal["characters", "jieba"]

CHUNK_WORDS = 1 << 18
"""Words of a text that are worked on at once."""

# A run of Han characters, or letters with their marks and digits; an apostrophe, hyphen or middle
# dot binds only between two letters.
_LETTER = r"(?:(?!\p{Han})[\p{L}\p{M}\p{N}])"
LETTERS = rf"{_LETTER}+(?:['’·-]{_LETTER}+)*"
"""A word of a script that puts spaces between its words."""
_HAN = r"\p{Han}+"


class WordSplitter:
    """Texts to their words; punctuation and symbols are left out."""

    def __init__(self, *, segmenter: Segmenter = "characters", lowercase: bool = True) -> None:
        """`segmenter` cuts runs of Han characters: each for itself, or jieba's words."""
        words = Regex(f"{_HAN}|{LETTERS}")
        self._words = pre_tokenizers.Split(words, behavior="removed", invert=True)
        self._runs = pre_tokenizers.Split(Regex(_HAN), behavior="isolated")
        self._segmenter, self._lowercase = segmenter, lowercase

    @cached_property
    def _segment(self) -> Callable[[str], list[str]]:
        return _load_jieba() if self._segmenter == "jieba" else list

    def split(self, text: str) -> list[str]:
        """The words of a text, in its order.

        Raises `MissingExtraError` where it has Han characters for jieba, which is not installed.
        """
        words: list[str] = []
        for piece, _ in self._words.pre_tokenize_str(text.lower() if self._lowercase else text):
            if _is_han(piece[0]):
                words += self._segment(piece)
            else:
                words.append(piece)
        return words

    def cut(self, text: str) -> list[str]:
        """The whole text in parts: the words of runs of Han characters, and what lies between.

        Raises as `split` does.
        """
        parts: list[str] = []
        for part, _ in self._runs.pre_tokenize_str(text):
            parts += self._segment(part) if _is_han(part[0]) else [part]
        return parts


def _is_han(character: str) -> bool:
    """Whether a word's first character lies in a block of Han characters."""
    code = ord(character)
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x3FFFF
        or 0xF900 <= code <= 0xFAFF
        or 0x2E80 <= code <= 0x2FDF
        or code in (0x3005, 0x3007)
        or 0x3021 <= code <= 0x3029
        or 0x3038 <= code <= 0x303B
    )


def _load_jieba() -> Callable[[str], list[str]]:
    """Jieba's cutter with its dictionary (about a second).

    Its own way of loading keeps a cache among the machine's temporary files, where others may write
    and which is read back as code's own objects; so the dictionary is read from the package.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its sources predate today's rules for escapes
            import jieba
    except ImportError as error:
        raise MissingExtraError(package="jieba", extra="chinese") from error
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    cut: Callable[[str], list[str]] = tokenizer.lcut
    return cut


@dataclass(frozen=True, slots=True)
class WordStream:
    """A text as numbers of its words, most frequent word first."""

    words: tuple[str, ...]
    counts: NDArray[np.int64]
    """[V] how often each word occurs."""
    ids: NDArray[np.int32]
    """[N] the text; words that are not in `words` are left out, and their neighbours close up."""
    starts: NDArray[np.int64]
    """[S + 1] where each sentence begins in `ids`, and the end."""

    def cut(self, begin: int, count: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Up to `count` words from `begin` on, and the number of each one's sentence."""
        words = self.ids[begin : begin + count]
        places = np.arange(begin, begin + len(words))
        return words, np.searchsorted(self.starts, places, side="right")


def index_words(
    sentences: Iterable[Sequence[str]], *, min_count: int = 5, max_words: int | None = None
) -> WordStream:
    """Number the words that occur at least `min_count` times, at most `max_words` of them.

    One pass; words of equal count stand in the order of their first place. Raises `CorpusError`
    where no word is left.
    """
    numbers: dict[str, int] = {}
    raw = array("i")
    ends = array("q", [0])
    for sentence in sentences:
        raw.extend(numbers.setdefault(word, len(numbers)) for word in sentence)
        ends.append(len(raw))
    places = np.frombuffer(raw, dtype=np.int32) if raw else np.zeros(0, dtype=np.int32)
    counts = np.bincount(places, minlength=len(numbers))
    order = np.argsort(-counts, kind="stable")[:max_words]
    order = order[counts[order] >= min_count]
    if not len(order):
        raise CorpusError(
            f"none of {len(numbers)} different words occurs {min_count} times: "
            "add text or lower min_count"
        )
    renumbered = np.full(len(numbers), -1, dtype=np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    ids = renumbered[places]
    kept = ids >= 0
    before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    spelt = list(numbers)
    return WordStream(
        words=tuple(spelt[each] for each in order.tolist()),
        counts=counts[order].astype(np.int64),
        ids=ids[kept],
        starts=before[np.frombuffer(ends, dtype=np.int64)],
    )
