"""Rated exchanges, read from the database: what was asked, answered and said about the answer.

Takes: the rows of requests and ratings of one model. Gives: an `Exchange` for each from which
something could be learnt, and for every other rating why it is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import sqlalchemy as sa

from lmloop.records import Turn
from lmloop.store.database import ratings_table, requests_table, reviews_table
from lmloop.upkeep import CollectConfig

State = Literal["pending", "accepted", "rejected"]

LEFT_OUT: Mapping[str, str] = {
    "no_request": "of answers that are in no row: deleted, or never given",
    "shadow": "of answers that nobody saw",
    "not_chat": "of plain completions",
    "no_consent": "whose sender did not allow learning from it",
    "no_content": "whose text was not kept",
    "only_comment": "with neither thumb nor correction",
    "rated_down": "down without a correction: they tell what is wrong, not what is right",
    "rated_up": "up, which collect.thumbs = false leaves out",
}
"""Why a rating teaches nothing, in the order in which it is asked; none of these looks at text."""

ROWS_AT_ONCE = 256
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A rated answer with all that led to it, as it is stored."""

    request_id: str
    rated: float
    """When the rating came, seconds since the epoch."""
    user: str | None
    """Pseudonym of who asked; None where the request named nobody."""
    session: str | None
    turns: tuple[Turn, ...]
    """What the model was shown; empty where that cannot be read or is far too long."""
    answer: str
    correction: str | None
    content_sha: str
    """SHA-256 over the three: a review is bound to it."""
    state: State
    """What a review of exactly this content said."""
    fault: str | None = None
    """`unreadable` or `max_characters`, where the text was not even taken apart."""

    @property
    def taught(self) -> str:
        """What the model would learn to say."""
        return self.answer if self.correction is None else self.correction

    @property
    def person(self) -> str:
        """Who asked, as far as one can tell people apart."""
        return self.user or self.session or ""


def read_exchanges(
    engine: sa.Engine, *, name: str, config: CollectConfig
) -> Iterator[Exchange | str]:
    """Every rating of the model `name`: an exchange, or the reason of `LEFT_OUT` against it.

    In no order. Ratings of answers without a row belong to no model and come with every one.
    """
    requests, ratings, reviews = requests_table, ratings_table, reviews_table
    names = ("id", "endpoint", "arm", "consent", "prompt", "answer", "user_hash", "session_hash")
    query = (
        sa.select(
            *(requests.c[column] for column in names),
            ratings.c.rating,
            ratings.c.correction,
            ratings.c.created.label("rated"),
            reviews.c.state.label("review"),
            reviews.c.content_sha.label("reviewed_sha"),
        )
        .select_from(ratings.outerjoin(requests, requests.c.id == ratings.c.request_id))
        .outerjoin(reviews, reviews.c.request_id == ratings.c.request_id)
        .where(sa.or_(requests.c.model == name, requests.c.id.is_(None)))
    )
    options = {"yield_per": ROWS_AT_ONCE}
    with engine.connect().execution_options(**options) as connection:
        for row in connection.execute(query).mappings():
            yield _read_row(row, config)


def stamp_feedback(engine: sa.Engine) -> tuple[float | None, ...]:
    """Figures that change with every rating and review; cheap: made to be polled.

    Where they are as before there is nothing new to select.
    """
    with engine.connect() as connection:
        figures: list[float | None] = []
        for column in (ratings_table.c.created, reviews_table.c.decided):
            figures += connection.execute(sa.select(sa.func.count(), sa.func.max(column))).one()
    return tuple(figures)


def read_messages(text: str) -> tuple[Turn, ...]:
    """The messages of a stored prompt; raises ValueError where they are none."""
    try:
        messages = json.loads(text)
        turns = tuple(Turn(ROLES[each["role"]], _as_text(each["content"])) for each in messages)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"these are no messages of a chat: {type(error).__name__}") from error
    if not turns:
        raise ValueError("there is no message")
    return turns


def _as_text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError("a message's content is its text")
    # Half a surrogate pair is valid JSON and no Unicode; it could not be written.
    content.encode()
    return content


def _read_row(row: Mapping[Any, Any], config: CollectConfig) -> Exchange | str:
    correction = row["correction"]
    # A form that was sent empty corrects nothing.
    if correction is not None and not correction.strip() and row["rating"] is not None:
        correction = None
    reason = _leave_out(row, correction, config)
    return _build(row, correction, config) if reason is None else reason


def _leave_out(row: Mapping[Any, Any], correction: str | None, config: CollectConfig) -> str | None:
    learnable = correction is not None or row["rating"] == 1
    found = {
        "no_request": row["id"] is None,
        "shadow": row["arm"] not in ("live", "canary"),
        "not_chat": row["endpoint"] != "chat",
        "no_consent": config.require_consent and not row["consent"],
        "no_content": row["prompt"] is None or row["answer"] is None,
        "only_comment": row["rating"] is None and correction is None,
        "rated_down": not learnable,
        "rated_up": correction is None and not config.thumbs,
    }
    return next((reason for reason in LEFT_OUT if found[reason]), None)


def _build(row: Mapping[Any, Any], correction: str | None, config: CollectConfig) -> Exchange:
    prompt, answer = row["prompt"], row["answer"]
    content = json.dumps([prompt, answer, correction]).encode()
    content_sha = hashlib.sha256(content).hexdigest()
    turns: tuple[Turn, ...] = ()
    fault = None
    # Normalising only shortens, and JSON lengthens: so much cannot come to an end in bounds.
    bound = 8 * config.max_characters + 1000
    if len(prompt) + len(answer) + len(correction or "") > bound:
        fault = "max_characters"
        prompt, answer = prompt[:bound], answer[:bound]
        correction = correction and correction[:bound]
    else:
        try:
            turns = read_messages(prompt)
            (answer + (correction or "")).encode()
        except ValueError:
            fault = "unreadable"
    return Exchange(
        request_id=row["id"],
        rated=row["rated"],
        user=row["user_hash"],
        session=row["session_hash"],
        turns=turns,
        answer=answer,
        correction=correction,
        content_sha=content_sha,
        state=cast(State, row["review"]) if row["reviewed_sha"] == content_sha else "pending",
        fault=fault,
    )
