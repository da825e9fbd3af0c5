"""Reviews: a person looks at what could be learnt, and says what may be.

Takes: the database. Gives: what waits, as plain data that is safe to show, and decisions as rows.
A decision is bound to what was shown: when the correction changes afterwards, it waits again, and
the id under which it was shown is no longer known.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from lmloop.corpus.privacy import mask_personal_data
from lmloop.errors import UpdateError
from lmloop.store.database import reviews_table, transaction
from lmloop.updating.candidates import find_candidates
from lmloop.updating.exchanges import State
from lmloop.updating.screening import Candidate
from lmloop.upkeep import CollectConfig

MIN_PREFIX = 4
"""Characters of an id that have to be given."""
SHOWN_ID = 10
"""Characters of an id that are shown."""
_SPACES = "\xa0\u3000"


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """One exchange to be looked at; personal data is masked, control characters are escaped."""

    id: str
    """64 hex characters that stand for exactly this content; the first few will do."""
    user: str | None
    """The beginning of the user's pseudonym."""
    earlier_turns: int
    """Turns before the question."""
    question: str
    """The last turn that the model was shown."""
    answer: str
    """What it said."""
    correction: str | None
    """What it should say; None where the answer itself was rated up."""
    state: State
    dropped: str | None
    """The rule that keeps it from being learnt, whatever the review says."""


def pending(engine: sa.Engine, *, name: str, config: CollectConfig) -> list[Review]:
    """What nobody has decided upon: first what waits for it, oldest first, then what is dropped."""
    found = list_reviews(engine, name=name, config=config)
    undecided = [each for each in found if each.state == "pending"]
    return sorted(undecided, key=lambda each: each.dropped is not None)


def list_reviews(engine: sa.Engine, *, name: str, config: CollectConfig) -> list[Review]:
    """All that could be learnt, was dropped or was decided upon, oldest first."""
    found = find_candidates(engine, name=name, config=config).all
    return [_show(each) for each in sorted(found, key=lambda each: (each.exchange.rated, each.id))]


def decide(
    engine: sa.Engine,
    ids: Iterable[str] | None,
    *,
    name: str,
    config: CollectConfig,
    state: Literal["accepted", "rejected"],
    reason: str | None = None,
) -> list[Review]:
    """Write a decision upon exchanges: those whose ids begin so, or with None all that wait.

    A second decision replaces the first. Gives what was decided upon; raises `UpdateError`, and
    writes nothing, where an id is not that of exactly one exchange.
    """
    candidates = find_candidates(engine, name=name, config=config).all
    if ids is None:
        chosen = [each for each in candidates if _waits(each)]
    else:
        chosen = list({each.id: each for each in (_find(candidates, i) for i in ids)}.values())
    table = reviews_table
    with transaction(engine) as connection:
        for each in chosen:
            row = {
                "request_id": each.exchange.request_id,
                "content_sha": each.exchange.content_sha,
                "state": state,
                "reason": reason,
                "decided": time.time(),
            }
            connection.execute(table.delete().where(table.c.request_id == row["request_id"]))
            connection.execute(table.insert().values(row))
    return [_show(each) for each in chosen]


def escape(text: str) -> str:
    """Text on one line in which every character shows: what prints nothing becomes `\\x1b` etc."""
    return "".join(
        each if each.isprintable() or each in _SPACES else each.encode("unicode_escape").decode()
        for each in text
    )


def _waits(candidate: Candidate) -> bool:
    """Whether a decision is due: not upon what is dropped anyway."""
    return candidate.exchange.state == "pending" and candidate.dropped is None


def _find(candidates: Sequence[Candidate], identity: str) -> Candidate:
    prefix = identity.strip().lower()
    if len(prefix) < MIN_PREFIX:
        raise UpdateError(
            f"{escape(identity)!r} is too short for an id: give at least {MIN_PREFIX} of its "
            "characters"
        )
    found = [each for each in candidates if each.id.startswith(prefix)]
    if not found:
        raise UpdateError(
            f"no exchange has an id that begins with {escape(prefix)!r}: list them again, its "
            "correction may have changed since"
        )
    if len(found) > 1:
        raise UpdateError(f"{len(found)} exchanges have ids that begin with {prefix}: give more")
    return found[0]


def _show(candidate: Candidate) -> Review:
    exchange = candidate.exchange
    question = exchange.turns[-1].content if exchange.turns else ""
    return Review(
        id=candidate.id,
        user=exchange.user and exchange.user[:8],
        earlier_turns=max(0, len(exchange.turns) - 1),
        question=_clean(question),
        answer=_clean(exchange.answer),
        correction=None if exchange.correction is None else _clean(exchange.correction),
        state=exchange.state,
        dropped=candidate.dropped,
    )


def _clean(text: str) -> str:
    return escape(mask_personal_data(text).text)
