"""How often one answer may be rated anew.

Takes: ids of answers. Gives: yes so many times, then no. What is remembered is bounded: of many
answers that are rated, the ones rated longest ago are forgotten first.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_CHANGES = 20
"""Ratings of one answer that are taken while a server runs."""
MAX_ANSWERS = 20_000
"""Answers whose ratings are counted."""


class RatingLimit:
    """Counts the ratings of each answer."""

    def __init__(self, *, max_changes: int = MAX_CHANGES, max_answers: int = MAX_ANSWERS) -> None:
        self._max_changes = max_changes
        self._max_answers = max_answers
        self._taken: OrderedDict[str, int] = OrderedDict()

    def take(self, response_id: str) -> bool:
        """Count one more rating of an answer; False where it had its share."""
        taken = self._taken.get(response_id, 0)
        self._taken[response_id] = min(taken + 1, self._max_changes)
        self._taken.move_to_end(response_id)
        if len(self._taken) > self._max_answers:
            self._taken.popitem(last=False)
        return taken < self._max_changes
