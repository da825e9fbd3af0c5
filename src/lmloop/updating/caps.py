"""How much one user may teach.

Takes: candidates that have passed all rules. Gives: for those above the caps the cap that drops
them. Which of a user's exchanges stay is drawn by hash, corrections before thumbs: their order and
their number do not help.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lmloop.updating.copies import draw
from lmloop.updating.screening import Candidate
from lmloop.upkeep import CollectConfig

MAX_PER_USER = "max_per_user"
MAX_USER_SHARE = "max_user_share"


def find_excess(
    candidates: Iterable[Candidate], *, config: CollectConfig, seed: int
) -> dict[str, str]:
    """Id of each candidate above a cap → the cap; those without a user count as one user."""
    users: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        users.setdefault(candidate.exchange.user, []).append(candidate)
    largest = limit_share(
        [min(len(own), config.max_per_user) for own in users.values()], config.max_user_share
    )
    found: dict[str, str] = {}
    for own in users.values():
        own.sort(key=lambda each: (each.exchange.correction is None, draw(each, seed=seed)))
        found |= {each.id: MAX_USER_SHARE for each in own[largest:]}
        found |= {each.id: MAX_PER_USER for each in own[config.max_per_user :]}
    return found


def limit_share(counts: Sequence[int], share: float) -> int:
    """The largest number that each count may be cut to so that none exceeds `share` of the sum.

    0 where there is none: fewer than 1/`share` users cannot each stay below it.
    """
    for limit in range(max(counts, default=0), 0, -1):
        if limit <= share * sum(min(count, limit) for count in counts) + 1e-9:
            return limit
    return 0
