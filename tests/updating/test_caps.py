from __future__ import annotations

import random
from collections import Counter

import pytest

from lmloop.updating.caps import find_excess, limit_share
from lmloop.updating.screening import Candidate, screen

from .feedback import OPEN, exchange


def sent(user: str | None, count: int, *, thumbs: bool = False) -> list[Candidate]:
    kind = "up" if thumbs else "fix"
    return [
        screen(
            exchange(
                request_id=f"{user}-{kind}-{number}",
                user=user,
                correction=None if thumbs else f"At pier {number}.",
            ),
            config=OPEN,
        )
        for number in range(count)
    ]


def left(
    candidates: list[Candidate], *, per_user: int, share: float, seed: int = 0
) -> list[Candidate]:
    config = OPEN.model_copy(update={"max_per_user": per_user, "max_user_share": share})
    excess = find_excess(candidates, config=config, seed=seed)
    return [each for each in candidates if each.id not in excess]


def test_one_user_gets_no_further_than_the_cap_however_much_he_sends() -> None:
    config = OPEN.model_copy(update={"max_per_user": 50})
    excess = find_excess(sent("mallory", 1000) + sent("ann", 5), config=config, seed=0)
    assert Counter(excess.values()) == {"max_per_user": 950}


def test_no_user_makes_up_more_than_the_share() -> None:
    crowd = [each for n in range(6) for each in sent(f"user{n}", 10)] + sent("mallory", 1000)
    kept = Counter(each.exchange.user for each in left(crowd, per_user=500, share=0.25))
    assert kept["mallory"] == 20
    assert kept["mallory"] <= 0.25 * kept.total()


def test_those_without_a_user_count_as_one() -> None:
    assert len(left(sent(None, 30), per_user=7, share=1.0)) == 7


def test_corrections_come_before_thumbs() -> None:
    kept = left(sent("ann", 20, thumbs=True) + sent("ann", 4), per_user=6, share=1.0)
    assert sum(each.exchange.correction is not None for each in kept) == 4
    assert len(kept) == 6


def test_the_draw_depends_on_the_seed_and_not_on_the_order() -> None:
    crowd = sent("ann", 50)
    kept = {each.id for each in left(crowd, per_user=5, share=1.0)}
    random.Random(1).shuffle(crowd)
    assert {each.id for each in left(crowd, per_user=5, share=1.0)} == kept
    assert {each.id for each in left(crowd, per_user=5, share=1.0, seed=1)} != kept


@pytest.mark.parametrize(
    ("counts", "share", "limit"),
    [
        ([10, 10, 10, 10], 0.25, 10),
        ([100, 10, 10, 10], 0.25, 10),
        ([100, 10, 10, 10, 10], 0.25, 13),
        ([5, 5], 0.25, 0),
        ([5], 1.0, 5),
        ([], 0.5, 0),
        ([1, 1, 1], 1 / 3, 1),
    ],
)
def test_the_limit_is_the_largest_that_keeps_the_share(
    counts: list[int], share: float, limit: int
) -> None:
    assert limit_share(counts, share) == limit
