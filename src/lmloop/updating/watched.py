"""Exchanges of an update that early stopping watches and that are not learnt.

Takes: the collected exchanges. Gives: those to learn and those to watch, of which neither can be
read in the others. The content alone decides, whatever the order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from lmloop.corpus.decontaminate import Decontaminator, Words, read_words
from lmloop.errors import UpdateError
from lmloop.records import Conversation, Record

WATCHED_SHARE = 0.2
"""Of the exchanges."""


def set_aside(feedback: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """What is learnt and what is watched, each in the order in which it came.

    Exchanges with one question, or whose answers share text, stay together. Groups of them are
    watched in the order of their hashes until `WATCHED_SHARE` is, as near as whole groups come from
    below, but one at least. Raises `UpdateError` where all are one group.
    """
    groups = sorted(_group(feedback), key=lambda group: _place(feedback, group))
    if len(groups) == 1:
        raise UpdateError(
            f"patience by loss or accuracy watches collected exchanges that are not learnt, and "
            f"all {len(groups[0])} here have one question or share text: collect more, or set "
            "update.patience_metric = 'validation'"
        )
    wanted = round(WATCHED_SHARE * len(feedback))
    watched: set[int] = set()
    for group in groups:
        if len(watched) + len(group) <= wanted:
            watched |= group
    if groups and not watched:
        watched = min(groups, key=len)
    learnt = [each for number, each in enumerate(feedback) if number not in watched]
    return learnt, [feedback[number] for number in sorted(watched)]


def _group(feedback: Sequence[Record]) -> list[set[int]]:
    """Places of the exchanges that belong together; those without an answer are in no group."""
    asked = Decontaminator({"all": feedback})
    first: dict[Words, int] = {}
    groups: list[set[int]] = []
    for number, question in _read_questions(feedback):
        own = {number, first.setdefault(question, number)}
        for hit in asked.hits(feedback[number]).values():
            own |= hit.members
        near = [group for group in groups if group & own]
        groups = [group for group in groups if not group & own]
        groups.append(own.union(*near))
    return groups


def _read_questions(feedback: Sequence[Record]) -> Iterator[tuple[int, Words]]:
    """Place and question of every exchange with an answer: what was said before the last one."""
    for number, record in enumerate(feedback):
        turns = record.turns if isinstance(record, Conversation) else ()
        answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
        if answers:
            place = answers[-1]
            yield number, read_words(turns[place - 1].content) if place else ()


def _place(feedback: Sequence[Record], group: set[int]) -> str:
    """Where a group stands in the order: its first record by hash, salted unlike other draws."""
    ids = (f"watched {feedback[number].id}" for number in group)
    return min(hashlib.sha256(each.encode()).hexdigest() for each in ids)
