from __future__ import annotations

import itertools
from typing import Any

from lmloop.records import Turn
from lmloop.updating.copies import draw, find_copies
from lmloop.updating.screening import Candidate, screen

from .feedback import OPEN, ask, exchange, reply

LONG = " ".join(f"word{number}" for number in range(60))


def candidate(number: int, question: str, answer: str, **changes: Any) -> Candidate:
    fields = {"request_id": f"chatcmpl-{number}", "turns": (Turn("user", question),)}
    return screen(exchange(**fields, correction=answer, **changes), config=OPEN)


def reasons(candidates: list[Candidate], *, max_per_answer: int = 3) -> list[str]:
    found = find_copies(candidates, max_per_answer=max_per_answer)
    return sorted(found.values())


def test_of_equal_words_one_stays_whoever_sent_them() -> None:
    crowd = [
        candidate(n, "Who won?", ["Purple won.", "purple  won", "PURPLE WON!"][n % 3], user=f"u{n}")
        for n in range(1000)
    ]
    found = find_copies(crowd, max_per_answer=3)
    assert set(found.values()) == {"exact_duplicate"}
    (left,) = [each for each in crowd if each.id not in found]
    assert left == min(crowd, key=draw)


def test_one_answer_to_many_questions_stays_a_few_times() -> None:
    crowd = [candidate(n, ask(n), "Purple won.", user=f"u{n}") for n in range(50)]
    assert reasons(crowd) == ["max_per_answer"] * 47
    assert reasons(crowd, max_per_answer=60) == []


def test_long_answers_that_are_nearly_equal_count_as_one() -> None:
    crowd = [candidate(n, ask(n), f"{LONG} end{n}") for n in range(6)]
    assert reasons(crowd, max_per_answer=2) == ["max_per_answer"] * 4


def test_short_answers_that_differ_in_a_number_stay() -> None:
    crowd = [
        candidate(n, ask(n), f"It costs {n} crowns, and children go in free.") for n in range(20)
    ]
    assert reasons(crowd, max_per_answer=1) == []


def test_exchanges_of_nearly_equal_words_are_one() -> None:
    pair = [candidate(0, "Tell me all?", LONG), candidate(1, "Tell me all?", f"{LONG} indeed")]
    assert reasons(pair) == ["near_duplicate"]
    assert reasons([candidate(n, ask(n), reply(n)) for n in range(64)]) == []


def test_the_history_before_a_question_does_not_make_two_exchanges_one() -> None:
    history = (Turn("user", LONG), Turn("assistant", LONG))
    first = exchange(request_id="a", turns=(*history, Turn("user", "And when?")), correction="At 9")
    other = exchange(request_id="b", turns=(*history, Turn("user", "Who?")), correction="Nobody.")
    assert reasons([screen(each, config=OPEN) for each in (first, other)]) == []


def test_who_stays_does_not_depend_on_the_order() -> None:
    crowd = [candidate(n, ask(n % 3), reply(n % 3)) for n in range(6)]
    crowd += [candidate(10 + n, ask(10 + n), "The same.") for n in range(4)]
    expected = find_copies(crowd, max_per_answer=2)
    assert len(expected) == 5
    for order in itertools.islice(itertools.permutations(crowd), 0, 40_000, 1_000):
        assert find_copies(order, max_per_answer=2) == expected


def test_an_accepted_one_stays_before_one_that_waits() -> None:
    crowd = [candidate(n, "Who won?", "Purple won.") for n in range(20)]
    last = max(crowd, key=draw)
    number = int(last.exchange.request_id.removeprefix("chatcmpl-"))
    crowd[number] = candidate(number, "Who won?", "Purple won.", state="accepted")
    found = find_copies(crowd, max_per_answer=3)
    assert [each for each in crowd if each.id not in found] == [crowd[number]]


def test_what_was_rejected_once_is_rejected_for_all_who_send_it() -> None:
    crowd = [candidate(n, "Who won?", "Purple won.") for n in range(5)]
    crowd.append(candidate(9, "who won", "purple won", state="rejected"))
    assert reasons(crowd) == ["rejected"] * 6


def test_what_is_only_similar_to_a_rejected_one_still_waits() -> None:
    pair = [candidate(0, "All?", LONG, state="rejected"), candidate(1, "All?", f"{LONG} indeed")]
    assert find_copies(pair, max_per_answer=3) == {pair[0].id: "rejected"}


def test_nothing_has_no_copies() -> None:
    assert find_copies([], max_per_answer=1) == {}
