"""What makes text clean: how it is normalised, and the rules by which a record is dropped.

Takes: text and records. Gives: normalised text, and the name of the first rule that a record
breaks. Pure functions; a rule is called after the recipe's key that sets it.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import ftfy

from lmloop.records import Conversation, Document, Record, Turn
from lmloop.sections import PrepareConfig

NGRAM = 5
"""Words of the n-grams that repetition and near duplicates are measured on."""

# Scripts written without spaces: Han, kana, Thai, Lao, Burmese, Khmer; each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_UNSPACED += "\U00020000-\U0003ffff"
_UNSPACED_CHARACTER = re.compile(f"([{_UNSPACED}])")
_WORD = re.compile(r"\w+")
_LINE_BREAK = re.compile("\r\n?|[\x85\u2028\u2029]")
# Control characters but tab and line feed; the byte order mark and the zero-width space.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]")
_SPACES = re.compile(r"(?<=\S)(?:[ \t\xa0\u3000]{2,}|[\t\xa0])(?=\S)")
_BLANK_LINES = re.compile(r"\n{4,}")
# All that normalisation changes inside ASCII text, so that clean text is passed over in one look.
_UNTIDY = re.compile("[\x00-\x09\x0b-\x1f\x7f]|  | \n|\n{4}")


def normalise_text(text: str) -> str:
    """Repair mojibake, compose Unicode (NFC), unify line breaks, spaces and blank lines.

    Indentation stays; quotes, full-width and other characters stay as the author chose them.
    """
    if not text.isascii():
        text = "\n".join(map(_repair_line, text.split("\n")))
    elif not _UNTIDY.search(text):
        return text.strip()
    text = _CONTROL.sub("", _LINE_BREAK.sub("\n", text))
    text = "\n".join(map(str.rstrip, text.split("\n")))
    return _BLANK_LINES.sub("\n\n\n", _SPACES.sub(" ", text)).strip()


def _repair_line(line: str) -> str:
    return line if line.isascii() else unicodedata.normalize("NFC", ftfy.fix_encoding(line))


def normalise_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Normalise every turn; empty ones vanish, and neighbours of one role become one turn."""
    clean = [Turn(turn.role, normalise_text(turn.content)) for turn in turns]
    return tuple(
        Turn(role, "\n".join(turn.content for turn in group))
        for role, group in itertools.groupby(
            (turn for turn in clean if turn.content), key=lambda turn: turn.role
        )
    )


def split_words(text: str) -> list[str]:
    """Lower-cased words without punctuation; of scripts without spaces, single characters."""
    text = text.lower()
    if not text.isascii():
        text = _UNSPACED_CHARACTER.sub(r" \1 ", text)
    return _WORD.findall(text)


def join_text(record: Record) -> str:
    """All text of a record; the turns of a conversation on lines of their own."""
    if isinstance(record, Document):
        return record.text
    return "\n".join(turn.content for turn in record.turns)


def measure_repetition(text: str) -> float:
    """How much of a text repeats itself, from 0 to 1.

    The larger of two shares: of characters in lines that stood there before, and of word 5-grams
    that did (both after Gopher, Rae et al. 2021, table A1).
    """
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    repeated = (total - sum(map(len, set(lines)))) / total if total else 0.0
    words = split_words(text)
    ngrams = list(zip(*(words[start:] for start in range(NGRAM)), strict=False))
    return max(repeated, 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)


def is_empty(record: Record, _config: PrepareConfig) -> bool:
    """Nothing is left of it after normalisation."""
    return not join_text(record)


def has_too_few_turns(record: Record, config: PrepareConfig) -> bool:
    """A conversation with fewer than `min_turns` turns of user and assistant."""
    if not isinstance(record, Conversation):
        return False
    return sum(turn.role != "system" for turn in record.turns) < config.min_turns


def is_too_short(record: Record, config: PrepareConfig) -> bool:
    """Fewer than `min_characters` characters."""
    return len(join_text(record)) < config.min_characters


def is_too_long(record: Record, config: PrepareConfig) -> bool:
    """More than `max_characters` characters."""
    return len(join_text(record)) > config.max_characters


def is_repetitive(record: Record, config: PrepareConfig) -> bool:
    """More than `max_repetition` of it repeats what stood before."""
    return measure_repetition(join_text(record)) > config.max_repetition


RULES: Mapping[str, Callable[[Record, PrepareConfig], bool]] = {
    "empty": is_empty,
    "min_turns": has_too_few_turns,
    "min_characters": is_too_short,
    "max_characters": is_too_long,
    "max_repetition": is_repetitive,
}
"""Each rule under the name that the report counts it by, in the order in which they are asked."""


def find_broken_rule(record: Record, config: PrepareConfig) -> str | None:
    """The first rule that a normalised record breaks, or None where it may stay."""
    return next((name for name, breaks in RULES.items() if breaks(record, config)), None)
