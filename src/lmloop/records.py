"""The records that travel from a file to a batch.

Takes: nothing. Gives: a document of plain text, or a conversation of turns that keeps its roles.
"""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """One utterance: who speaks (one of `ROLES`) and what is said."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order. `raw_bytes` counts the UTF-8 bytes of the utterances as they were read."""

    id: str
    turns: tuple[Turn, ...]
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text without roles. `raw_bytes` counts its UTF-8 bytes as they were read."""

    id: str
    text: str
    raw_bytes: int


Record = Conversation | Document
