"""All that could be learnt of one model's ratings, with what speaks against each.

Takes: the database. Gives: every rated exchange as a `Candidate` after all rules that need no
test set: its own faults, other people's text, copies. What is drawn from it is the same in whatever
order the rows come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa

from lmloop.updating.copies import find_copies
from lmloop.updating.exchanges import read_exchanges
from lmloop.updating.foreign import find_foreign
from lmloop.updating.screening import Candidate, screen
from lmloop.upkeep import CollectConfig

FOREIGN_TEXT = "foreign_text"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Every rating of a model, accounted for."""

    all: tuple[Candidate, ...]
    """In the order of their ids; those with `dropped` cannot be learnt."""
    left_out: Mapping[str, int]
    """Ratings that teach nothing, by the reasons of `exchanges.LEFT_OUT`."""

    @property
    def passed(self) -> list[Candidate]:
        """Those that no rule drops; they may still wait for a review."""
        return [each for each in self.all if each.dropped is None]


def find_candidates(engine: sa.Engine, *, name: str, config: CollectConfig) -> Candidates:
    """Read and judge every rating of the model `name`."""
    left_out: Counter[str] = Counter()
    screened: dict[str, Candidate] = {}
    for found in read_exchanges(engine, name=name, config=config):
        if isinstance(found, str):
            left_out[found] += 1
        else:
            candidate = screen(found, config=config)
            screened[candidate.id] = candidate
    foreign = find_foreign(engine, _passed(screened))
    for candidate in _passed(screened):
        if candidate.exchange.request_id in foreign:
            screened[candidate.id] = replace(candidate, dropped=FOREIGN_TEXT)
    copies = find_copies(_passed(screened), max_per_answer=config.max_per_answer)
    for identity, reason in copies.items():
        screened[identity] = replace(screened[identity], dropped=reason)
    return Candidates(tuple(screened[each] for each in sorted(screened)), dict(left_out))


def _passed(screened: Mapping[str, Candidate]) -> list[Candidate]:
    return [each for each in screened.values() if each.dropped is None]
