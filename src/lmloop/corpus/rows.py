"""What a row of data means: a conversation, a question with its answer, or a plain document.

Takes: rows as JSON, CSV and Parquet give them. Gives: a `Conversation` or a `Document` as read, or
the reason why the row is skipped.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmloop.records import Conversation, Document, Record, Turn

CONVERSATION_KEYS = ("messages", "conversations", "conversation", "turns")
SPEAKER_KEYS = ("role", "from", "sender", "speaker")
MESSAGE_KEYS = ("content", "value", "text")
TEXT_KEYS = ("text", "content")
PAIR_KEYS = (("prompt", "completion"), ("instruction", "output"), ("question", "answer"))
KNOWN_KEYS = frozenset((*CONVERSATION_KEYS, *TEXT_KEYS, *itertools.chain(*PAIR_KEYS), "input"))

ROLE_NAMES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "customer": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "agent": "assistant",
}
"""Speakers whose part is known by name; others are told apart by the order in which they appear."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not read, and why."""

    reason: str
    whole_file: bool = False
    """Whether nothing more can be read from the file."""


def parse_row(row: object, *, record_id: str) -> Record | Skipped:
    """The record in one row: conversation before question and answer before plain text.

    `raw_bytes` of the result are the UTF-8 bytes of the utterances as they stand in the row.
    """
    if isinstance(row, list):
        return _parse_conversation(row, record_id)
    if not isinstance(row, Mapping):
        return Skipped("not an object with named columns")
    columns = {str(key).strip().lower(): value for key, value in row.items()}
    for key in CONVERSATION_KEYS:
        if columns.get(key) is not None:
            return _parse_conversation(columns[key], record_id)
    for question, answer in PAIR_KEYS:
        if isinstance(columns.get(question), str) and isinstance(columns.get(answer), str):
            return _parse_pair(columns, question, answer, record_id)
    if "role" in columns:
        return Skipped("a single message: a row must hold the whole conversation")
    for key in TEXT_KEYS:
        if isinstance(columns.get(key), str):
            return _build_document(columns[key], record_id)
    return Skipped("none of the known columns")


def _parse_pair(
    columns: Mapping[str, Any], question: str, answer: str, record_id: str
) -> Conversation | Skipped:
    asked = [columns[question]]
    if question == "instruction" and isinstance(columns.get("input"), str) and columns["input"]:
        asked.append(columns["input"])
    said = [("user", text) for text in asked]
    return _build_conversation([*said, ("assistant", columns[answer])], record_id)


def _parse_conversation(value: object, record_id: str) -> Conversation | Skipped:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return Skipped("a conversation that is no list of messages")
    if not isinstance(value, list):
        return Skipped("a conversation that is no list of messages")
    messages = itertools.chain.from_iterable(
        each if isinstance(each, list) else [each] for each in value
    )
    said: list[tuple[str, str]] = []
    for message in messages:
        utterance = _parse_message(message)
        if isinstance(utterance, Skipped):
            return utterance
        said.append(utterance)
    return _build_conversation(said, record_id)


def _parse_message(message: object) -> tuple[str, str] | Skipped:
    if not isinstance(message, Mapping):
        return Skipped("a message that is no object")
    speaker = next((message[key] for key in SPEAKER_KEYS if message.get(key) is not None), None)
    value = next((message[key] for key in MESSAGE_KEYS if message.get(key) is not None), None)
    if isinstance(value, list):
        value = _join_parts(value)
    if speaker is None or isinstance(speaker, list | dict):
        return Skipped("a message without a speaker")
    if not isinstance(value, str):
        return Skipped("a message without text")
    return str(speaker), value


def _join_parts(parts: list[object]) -> str | None:
    """The text of OpenAI's content parts; None where one of them is no text."""
    texts = [
        part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        for part in parts
    ]
    return None if None in texts else "\n".join(map(str, texts))


def _build_conversation(said: list[tuple[str, str]], record_id: str) -> Conversation | Skipped:
    roles = _assign_roles([speaker for speaker, _ in said])
    if isinstance(roles, Skipped):
        return roles
    turns = tuple(
        Turn(role=role, content="\n".join(content for _, content in group))
        for role, group in itertools.groupby(
            ((roles[speaker], content) for speaker, content in said), key=lambda each: each[0]
        )
    )
    try:
        raw_bytes = sum(len(content.encode()) for _, content in said)
    except UnicodeEncodeError:
        return Skipped("no valid Unicode (half a surrogate pair)")
    if not raw_bytes:
        return Skipped("empty")
    return Conversation(id=record_id, turns=turns, raw_bytes=raw_bytes)


def _assign_roles(speakers: list[str]) -> dict[str, str] | Skipped:
    """Roles by name; of unknown speakers the first one is the user, the second answers."""
    names = dict.fromkeys(speakers)
    roles = {
        name: ROLE_NAMES[name.strip().lower()]
        for name in names
        if name.strip().lower() in ROLE_NAMES
    }
    free = [role for role in ("user", "assistant") if role not in roles.values()]
    for name in names:
        if name not in roles:
            if not free:
                return Skipped("more than two speakers")
            roles[name] = free.pop(0)
    return roles


def _build_document(text: str, record_id: str) -> Document | Skipped:
    try:
        raw_bytes = len(text.encode())
    except UnicodeEncodeError:
        return Skipped("no valid Unicode (half a surrogate pair)")
    if not raw_bytes:
        return Skipped("empty")
    return Document(id=record_id, text=text, raw_bytes=raw_bytes)
