"""How much of an answer is copied: its longest run of words that stands in the training text.

Takes: answers and the training records. Gives: a length in words an answer, exact. Runs of n words
are numbered from runs of n - 1, for the answers; the training text, a block at a time, keeps the
places that still match, and both sides shrink from step to step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lmloop.evaluation.metrics import words
from lmloop.records import Conversation, Record

WORDS_AT_ONCE = 1 << 20
"""Training words compared at once: bounds the memory."""
_BREAK = -1
"""Stands between texts and for words that no answer has: nothing matches across it."""


def longest_copies(answers: Sequence[str], training: Iterable[Record]) -> list[int]:
    """Words in the longest run of each answer that some training utterance or document contains."""
    numbers: dict[str, int] = {}
    rows: list[int] = []
    owners: list[int] = []
    for owner, answer in enumerate(answers):
        found = words(answer)
        rows += [numbers.setdefault(word, len(numbers)) for word in found] + [_BREAK]
        owners += [owner] * (len(found) + 1)
    longest = np.zeros(len(answers), dtype=np.int64)
    stream, owner_of = np.array(rows, dtype=np.int64), np.array(owners, dtype=np.int64)
    for block in _blocks(training, numbers):
        _match(stream, owner_of, block, longest)
    return [int(length) for length in longest]


def _blocks(records: Iterable[Record], numbers: dict[str, int]) -> Iterator[NDArray[np.int64]]:
    """The training words as numbers, cut between texts."""
    block: list[int] = []
    for text in _texts(records):
        block += [numbers.get(word, _BREAK) for word in words(text)]
        block.append(_BREAK)
        if len(block) >= WORDS_AT_ONCE:
            yield np.array(block, dtype=np.int64)
            block = []
    if block:
        yield np.array(block, dtype=np.int64)


def _texts(records: Iterable[Record]) -> Iterator[str]:
    for record in records:
        if isinstance(record, Conversation):
            yield from (turn.content for turn in record.turns)
        else:
            yield record.text


def _match(
    stream: NDArray[np.int64],
    owners: NDArray[np.int64],
    block: NDArray[np.int64],
    longest: NDArray[np.int64],
) -> None:
    """Raise `longest` [answers] to the runs that `block` and the answers in `stream` share."""
    places, theirs = np.flatnonzero(stream != _BREAK), np.flatnonzero(block != _BREAK)
    ours_run, their_run = stream[places], block[theirs]
    length = 1
    while len(places) and len(theirs):
        known, ours_run = np.unique(ours_run, return_inverse=True)
        found = np.minimum(np.searchsorted(known, their_run), len(known) - 1)
        hits = known[found] == their_run
        theirs, their_run = theirs[hits], found[hits]
        seen = np.zeros(len(known), dtype=np.bool_)
        seen[their_run] = True
        kept = seen[ours_run]
        places, ours_run = places[kept], ours_run[kept]
        np.maximum.at(longest, owners[places], length)
        places, ours_run = _extend(stream, places, ours_run, length)
        theirs, their_run = _extend(block, theirs, their_run, length)
        length += 1


def _extend(
    text: NDArray[np.int64], places: NDArray[np.int64], runs: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places whose run of `length` words goes on, and a number for the run with the next word."""
    places, runs = places[places + length < len(text)], runs[places + length < len(text)]
    following = text[places + length]
    goes_on = following != _BREAK
    # Word numbers stay below 2**31, so a pair has one number of its own.
    return places[goes_on], (runs[goes_on] << 31) | following[goes_on]
