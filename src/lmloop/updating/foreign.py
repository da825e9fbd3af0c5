"""Other people's text: corrections that give away what somebody else said or was told.

Takes: candidates, and the stored requests. Gives: those candidates whose correction has a run of 13
words that stood in another person's exchange before, and in none of the corrector's own words.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from lmloop.corpus.decontaminate import Words, cut_runs
from lmloop.store.database import requests_table
from lmloop.updating.exchanges import ROWS_AT_ONCE
from lmloop.updating.screening import Candidate


def find_foreign(engine: sa.Engine, candidates: Sequence[Candidate]) -> set[str]:
    """Request ids of the candidates whose correction repeats another person's text.

    Reads all stored text once, unless no correction is long enough to repeat anything. What was
    said after the correction does not count: the other may have it from there.
    """
    wanted: dict[Words, list[Candidate]] = {}
    for candidate in candidates:
        for run in _list_runs(candidate):
            wanted.setdefault(run, []).append(candidate)
    if not wanted:
        return set()
    found: set[str] = set()
    with engine.connect().execution_options(yield_per=ROWS_AT_ONCE) as connection:
        for row in connection.execute(_select_text()).mappings():
            for run in _row_runs(row):
                for candidate in wanted.get(run, ()):
                    if _is_others(row, candidate):
                        found.add(candidate.exchange.request_id)
    return found


def _list_runs(candidate: Candidate) -> set[Words]:
    """What of a correction could be another's: it is neither in the question nor in the answer."""
    exchange = candidate.exchange
    if exchange.correction is None:
        return set()
    own = [*(turn.content for turn in exchange.turns), exchange.answer]
    return set(cut_runs(exchange.correction)).difference(*map(cut_runs, own))


def _select_text() -> sa.Select[Any]:
    names = ("id", "created", "user_hash", "session_hash", "prompt", "answer")
    columns = [requests_table.c[name] for name in names]
    return sa.select(*columns).where(requests_table.c.prompt.is_not(None))


def _row_runs(row: Mapping[Any, Any]) -> Iterator[Words]:
    for text in (*_read_texts(row["prompt"]), row["answer"] or ""):
        yield from cut_runs(text)


def _read_texts(prompt: str) -> Iterable[str]:
    """All that a stored prompt says, whatever its form."""
    try:
        waiting = [json.loads(prompt)]
    except (ValueError, RecursionError):
        return [prompt]
    texts = []
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, list | dict):
            waiting += value.values() if isinstance(value, dict) else value
    return texts


def _is_others(row: Mapping[Any, Any], candidate: Candidate) -> bool:
    person = row["user_hash"] or row["session_hash"] or ""
    earlier = bool(row["created"] < candidate.exchange.rated)
    return earlier and person != candidate.exchange.person
