"""A JSON file of any size, one row at a time.

Takes: an open text file whose top level is a list of rows, an object id → row, or a single row.
Gives: the rows. Only the text of one row and a buffer are in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from lmloop.corpus.rows import KNOWN_KEYS

CHUNK_CHARACTERS = 2**20
ROW_CHARACTERS = 2**28
"""A row longer than this is taken for damage."""


def stream_json(stream: TextIO) -> Iterator[object]:
    """Yield the rows of a JSON file; raise ValueError where it is damaged."""
    scanner = _Scanner(stream)
    opening = scanner.peek()
    if opening == "[":
        yield from _stream_list(scanner)
    elif opening == "{":
        yield from _stream_object(scanner)
    elif opening:
        raise ValueError(f"it begins with {opening!r}, not with a list or an object")
    if scanner.peek():
        raise ValueError(f"more text after the end, at character {scanner.offset}")


def _stream_list(scanner: _Scanner) -> Iterator[object]:
    scanner.take("[")
    while scanner.peek() != "]":
        yield scanner.take_value()
        if scanner.peek() != "]":
            scanner.take(",")
    scanner.take("]")


def _stream_object(scanner: _Scanner) -> Iterator[object]:
    """Yield members that are rows; one row, or an object around a list of rows, is kept whole."""
    members: dict[str, object] = {}
    row_map: bool | None = None
    scanner.take("{")
    while scanner.peek() != "}":
        key = scanner.take_value()
        scanner.take(":")
        value = scanner.take_value()
        if row_map is None:
            row_map = isinstance(value, dict) and str(key).lower() not in KNOWN_KEYS
        if row_map:
            yield value
        else:
            members[str(key)] = value
        if scanner.peek() != "}":
            scanner.take(",")
    scanner.take("}")
    if members:
        yield from _unwrap(members)


def _unwrap(members: Mapping[str, Any]) -> Iterator[object]:
    for value in members.values():
        if isinstance(value, list) and value and all(map(_is_row, value)):
            yield from value
            return
    yield members


def _is_row(value: object) -> bool:
    """Whether this is a row and not one message: messages name their speaker."""
    if not isinstance(value, dict):
        return False
    keys = {str(key).lower() for key in value}
    return bool(keys & KNOWN_KEYS) and not keys & {"role", "from", "sender", "speaker"}


class _Scanner:
    """Takes tokens and values from a stream, holding a buffer of a few values."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._position = 0
        self._passed = 0
        self._ended = False

    @property
    def offset(self) -> int:
        """Characters taken so far."""
        return self._passed + self._position

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._position < len(self._buffer):
                if self._buffer[self._position] not in " \t\r\n":
                    return self._buffer[self._position]
                self._position += 1
            if not self._extend():
                return ""

    def take(self, character: str) -> None:
        """Pass over this character; raise ValueError where another stands."""
        found = self.peek()
        if found != character:
            raise ValueError(
                f"{found or 'the end'!r} where {character!r} belongs, at character {self.offset}"
            )
        self._position += 1

    def take_value(self) -> Any:
        """Decode one value, reading on until it is whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
                # A number at the buffer's end may go on in the next chunk.
                if end < len(self._buffer) or isinstance(value, str | list | dict):
                    self._position = end
                    return value
            except ValueError as error:
                if self._ended or len(self._buffer) - self._position > ROW_CHARACTERS:
                    raise ValueError(f"damaged after character {self.offset}") from error
            if not self._extend():
                raise ValueError(f"cut off after character {self.offset}")

    def _extend(self) -> bool:
        """Read on; each time as much as is there already, so that long rows stay linear."""
        if self._ended:
            return False
        rest = self._buffer[self._position :]
        chunk = self._stream.read(max(CHUNK_CHARACTERS, len(rest)))
        self._ended = not chunk
        self._passed += self._position
        self._buffer, self._position = rest + chunk, 0
        return not self._ended
