"""A database to fill with rated exchanges, a line each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from lmloop.records import Conversation, Turn
from lmloop.store.database import database_url, open_database, ratings_table, requests_table
from lmloop.store.events import write_events
from lmloop.updating.exchanges import Exchange
from lmloop.upkeep import CollectConfig

OPEN = CollectConfig(review=False, min_exchanges=1, max_user_share=1.0, max_per_user=1000)
"""Takes all that passes the rules."""

_PLACES = ("Vornholm", "Adalun", "Kesmar", "Treveny", "Oslund", "Pyrell", "Quarn", "Istabor")
_THINGS = ("ferry", "museum", "library", "bakery", "market", "harbour", "tower", "garden")


def ask(number: int) -> str:
    """A question like no other."""
    return f"When does the {_THINGS[number % 8]} of {_PLACES[number // 8 % 8]} open, {number}?"


def reply(number: int) -> str:
    """An answer like no other, too short to share a run of 13 words with anything."""
    place, thing = _PLACES[number // 8 % 8], _THINGS[number % 8]
    return f"{place}'s {thing} number {number * 7919} opens at {number * 104729}."


def conversation(*contents: str) -> Conversation:
    """User and assistant in turns."""
    roles = ("user", "assistant") * len(contents)
    turns = tuple(map(Turn, roles, contents))
    return Conversation("x", turns, sum(len(text.encode()) for text in contents))


def exchange(**changes: Any) -> Exchange:
    """An exchange whose answer was corrected."""
    fields: dict[str, Any] = {
        "request_id": "chatcmpl-1",
        "rated": 100.0,
        "user": "ann",
        "session": None,
        "turns": (Turn("user", "Where is the ferry?"),),
        "answer": "I do not know.",
        "correction": "At the old pier.",
        "content_sha": "0" * 64,
        "state": "pending",
    }
    return Exchange(**(fields | changes))


class Feedback:
    """Requests and ratings of the model `chat`."""

    def __init__(self, place: Path | sa.Engine) -> None:
        """In a folder, or in an open database."""
        if isinstance(place, Path):
            place = open_database(database_url(place))
        self.engine = place
        self._rows: list[tuple[sa.Table, Mapping[str, Any]]] = []
        self._count = 0

    def request(
        self,
        prompt: str | Sequence[Mapping[str, Any]] | None,
        answer: str | None = "I do not know.",
        **changes: Any,
    ) -> str:
        """A served request; a prompt that is a text is one user turn. Gives its id."""
        self._count += 1
        identity = changes.pop("id", f"chatcmpl-{self._count:048x}")
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        row = {
            "id": identity,
            "created": float(self._count),
            "endpoint": "chat",
            "model": "chat",
            "weights": "f" * 64,
            "stream": True,
            "prompt_tokens": 5,
            "completion_tokens": 7,
            "finish_reason": "stop",
            "total_seconds": 0.5,
            "consent": True,
            "prompt": None if prompt is None else json.dumps(prompt, ensure_ascii=False),
            "answer": answer,
            "arm": "live",
            "user_hash": "ann",
            "content": "full",
        }
        self._rows.append((requests_table, row | changes))
        return str(identity)

    def rate(
        self, request_id: str, rating: int | None = None, correction: str | None = None
    ) -> str:
        """A rating, after all requests so far; gives the request's id."""
        row = {"request_id": request_id, "created": 1e6, "rating": rating, "correction": correction}
        self._rows.append((ratings_table, {**row, "comment": None}))
        return request_id

    def correct(self, prompt: Any, correction: str, **changes: Any) -> str:
        """A request whose answer was corrected; gives its id."""
        return self.rate(self.request(prompt, **changes), -1, correction)

    def praise(self, prompt: Any, answer: str, **changes: Any) -> str:
        """A request whose answer was rated up; gives its id."""
        return self.rate(self.request(prompt, answer, **changes), 1)

    def correct_many(self, count: int, *, start: int = 0, users: int = 1) -> None:
        """Corrections like no others, by `users` users in turn."""
        for number in range(start, start + count):
            self.correct(ask(number), reply(number), user_hash=f"user-{number % users:02}")

    def write(self, *, backwards: bool = False) -> sa.Engine:
        """Write what was not written yet; `backwards` in the other order."""
        write_events(self.engine, self._rows[::-1] if backwards else self._rows)
        self._rows = []
        return self.engine
