"""A bounded number of ratings of one answer, in bounded memory."""

from __future__ import annotations

from lmloop.serving.ratings import MAX_CHANGES, RatingLimit


def test_an_answer_has_its_share_and_others_have_their_own() -> None:
    limit = RatingLimit()
    assert [limit.take("a") for _ in range(MAX_CHANGES + 5)] == [True] * 20 + [False] * 5
    assert limit.take("b")
    assert not limit.take("a")


def test_the_answers_rated_longest_ago_are_forgotten_first() -> None:
    limit = RatingLimit(max_changes=1, max_answers=2)
    assert limit.take("a")
    assert limit.take("b")
    assert not limit.take("a")  # and so it is not the oldest any more
    assert limit.take("c")
    assert not limit.take("a")
    assert limit.take("b")
