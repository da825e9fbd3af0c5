"""Where words begin in a text of ids: what whole-word masking hides together.

Takes: a byte-level tokenizer. Gives: for each id whether it can be the middle of a word. Ideographs
and kana are words by themselves: no space says where one of several ends. Letters right behind a
character that is cut between ids count as one word with it.
Axes: N tokens, V ids.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmloop.errors import TokenizerError
from lmloop.tokens.tokenizer import Tokenizer

_CUT = "\ufffd"
_OWN_LETTERS = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
"""Bytes that GPT-2's letters spell as the character of that number; the others follow from 256."""


@dataclass(frozen=True, slots=True)
class WordEdges:
    """Which ids words begin and end with, both [V]."""

    opens: NDArray[np.bool_]
    """Whether the id begins with something that no word goes on with, such as a space."""
    closes: NDArray[np.bool_]
    """Whether it ends with something that no word goes on from."""

    def starts(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where words begin in ids [N]."""
        starts: NDArray[np.bool_] = self.opens[ids]
        starts[1:] |= self.closes[ids[:-1]]
        starts[:1] = True
        return starts


def find_word_edges(tokenizer: Tokenizer) -> WordEdges:
    """The edges of all ids; raise `TokenizerError` where ids do not stand for bytes."""
    names = tokenizer.byte_names
    if names is None:
        raise TokenizerError(
            "where words begin is known of byte-level tokenizers only: set pretrain.mask_words "
            "to false"
        )
    letters = _spell_bytes()
    pieces = [bytes(letters.get(letter, 0xFF) for letter in name) for name in names]
    return WordEdges(
        opens=np.array([_opens(piece) for piece in pieces]),
        closes=np.array([_closes(piece) for piece in pieces]),
    )


def _spell_bytes() -> dict[str, int]:
    """The byte of each of GPT-2's letters."""
    others = [byte for byte in range(0x100) if byte not in _OWN_LETTERS]
    return {chr(byte): byte for byte in _OWN_LETTERS} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def _opens(piece: bytes) -> bool:
    first = piece.decode("utf-8", "replace")[:1]
    if first != _CUT:
        return not _goes_on(first)
    # Cut inside a character: what follows its first byte goes on, and so do alphabets' letters.
    return 0xE3 <= piece[0] <= 0xE9 or piece[0] >= 0xF0


def _closes(piece: bytes) -> bool:
    last = piece.decode("utf-8", "replace")[-1:]
    return last != _CUT and not _goes_on(last)


def _goes_on(character: str) -> bool:
    """Whether a word may go on before and behind the character."""
    if not character or unicodedata.category(character)[0] not in "LM":
        return False
    number = ord(character)
    return not (0x2E80 <= number < 0xA000 or 0xF900 <= number < 0xFB00 or number >= 0x20000)
