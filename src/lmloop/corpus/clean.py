"""One raw record to a clean one: normalised, masked, judged by the rules, named by its content.

Takes: a record as read. Gives: `Cleaned`, with the rule that drops it, if any, and the text that
near duplicates are found by.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from lmloop.corpus.dedupe import build_shingles
from lmloop.corpus.privacy import mask_personal_data
from lmloop.corpus.rules import find_broken_rule, join_text, normalise_text, normalise_turns
from lmloop.records import Conversation, Document, Record, Turn
from lmloop.sections import PrepareConfig


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A record after cleaning."""

    record: Record
    """Normalised and masked; its id is the SHA-256 of its content, `raw_bytes` is as read."""
    changed: bool
    """Whether normalisation changed the text."""
    emails: int
    phones: int
    dropped: str | None
    """The rule that drops it; None where it may stay."""
    shingles: str
    """Words whose 5-grams are compared; empty where it is dropped."""


def clean_record(record: Record, *, config: PrepareConfig) -> Cleaned:
    """Clean one record; see the module."""
    normal = _normalise(record)
    changed = join_text(normal) != join_text(record)
    emails = phones = 0
    if config.mask_personal_data:
        normal, emails, phones = _mask(normal)
    dropped = find_broken_rule(normal, config)
    return Cleaned(
        record=_name(normal),
        changed=changed,
        emails=emails,
        phones=phones,
        dropped=dropped,
        shingles=build_shingles(join_text(normal)) if dropped is None else "",
    )


def hash_content(record: Record) -> str:
    """SHA-256 of a record's roles and text, as hex; equal content has equal hashes."""
    # Normalised text has no control characters, so these two can separate its parts.
    if isinstance(record, Document):
        content = record.text
    else:
        content = "".join(f"\x1e{turn.role}\x1f{turn.content}" for turn in record.turns)
    return hashlib.sha256(content.encode()).hexdigest()


def _name(record: Record) -> Record:
    content_hash = hash_content(record)
    if isinstance(record, Document):
        return Document(id=content_hash, text=record.text, raw_bytes=record.raw_bytes)
    return Conversation(id=content_hash, turns=record.turns, raw_bytes=record.raw_bytes)


def _normalise(record: Record) -> Record:
    if isinstance(record, Document):
        text = normalise_text(record.text)
        return Document(id=record.id, text=text, raw_bytes=record.raw_bytes)
    turns = normalise_turns(record.turns)
    return Conversation(id=record.id, turns=turns, raw_bytes=record.raw_bytes)


def _mask(record: Record) -> tuple[Record, int, int]:
    if isinstance(record, Document):
        masked = mask_personal_data(record.text)
        document = Document(id=record.id, text=masked.text, raw_bytes=record.raw_bytes)
        return document, masked.emails, masked.phones
    each = [mask_personal_data(turn.content) for turn in record.turns]
    turns = tuple(
        Turn(turn.role, masked.text) for turn, masked in zip(record.turns, each, strict=True)
    )
    conversation = Conversation(id=record.id, turns=turns, raw_bytes=record.raw_bytes)
    return (
        conversation,
        sum(masked.emails for masked in each),
        sum(masked.phones for masked in each),
    )
