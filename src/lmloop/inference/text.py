"""Ids that arrive one by one become text: no half characters, no stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from lmloop.tokens.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
LONGEST_CUT = 3
"""Replacements that one cut character may show as: some decoders give one for each byte."""


class TextAssembler:
    """Turns an answer's ids into text pieces that can be shown at once."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        """Ids from the last one on whose text was whole."""
        self._shown = 0
        """Characters of their text that were handed on already."""
        self._held = ""
        """Text that may be the beginning of a stop string."""

    def add(self, token: int) -> tuple[str, bool]:
        """Take one id; give the text that is certain now, and whether a stop string was met."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        # The last character may be cut in two by the id's end: it waits for what follows.
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), LONGEST_CUT)
        whole = text[: len(text) - held]
        new, self._shown = whole[self._shown :], len(whole)
        if whole == text:
            self._ids, self._shown = [], 0
        return self._release(new)

    def finish(self) -> str:
        """The text that was held back, now that nothing follows."""
        rest = self._tokenizer.decode(self._ids)[self._shown :]
        self._ids, self._shown = [], 0
        text, _ = self._release(rest)
        held, self._held = self._held, ""
        return text + held

    def _release(self, text: str) -> tuple[str, bool]:
        text = self._held + text
        cuts = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if cuts:
            self._held = ""
            return text[: min(cuts)], True
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
