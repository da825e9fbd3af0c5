from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from lmloop.corpus.decontaminate import Overlap
from lmloop.records import Turn
from lmloop.updating.collected import (
    REASONS,
    SAMPLES,
    Collected,
    build_report,
    count_report,
    render_markdown,
)
from lmloop.updating.exchanges import LEFT_OUT
from lmloop.updating.screening import Candidate, screen

from .feedback import OPEN, exchange


def candidate(number: int, correction: str | None, **changes: Any) -> Candidate:
    return screen(exchange(request_id=str(number), correction=correction, **changes), config=OPEN)


def build(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "name": "chat",
        "settings": {"review": False},
        "left_out": {"rated_down": 3},
        "dropped": [],
        "splits": {"train": [candidate(1, "At pier one.")], "heldout": [candidate(2, None)]},
        "moved": 0,
        "new": 2,
        "pairs": 1,
        "overlaps": {"target": Overlap(0, 0, 12, 0.0, ())},
    }
    return build_report(Collected(**(fields | changes)))


def test_every_rating_is_counted_once() -> None:
    dropped = [(candidate(10 + n, "<script>"), "markup") for n in range(4)]
    report = build(dropped=dropped)
    assert report["ratings"] == 9
    assert report["exchanges"] == 6
    told = sum(each["exchanges"] for each in report["dropped"].values())
    assert report["ratings"] == (
        sum(report["left_out"].values()) + told + report["taken"]["exchanges"]
    )
    assert report["left_out"].keys() == LEFT_OUT.keys()
    assert report["dropped"].keys() == REASONS.keys()


def test_the_figures_tell_who_taught_what() -> None:
    report = build(
        splits={
            "train": [candidate(1, "At pier one."), candidate(2, "At pier two.", user="bob")],
            "heldout": [candidate(3, None, user=None)],
        }
    )
    assert report["taken"] == {
        "exchanges": 3,
        "new": 2,
        "corrections": 2,
        "thumbs": 1,
        "pairs": 1,
        "users": 3,
        "without_user": 1,
    }
    assert report["users"][0] == {"user": None, "sent": 1, "taken": 1}
    assert report["splits"]["train"]["exchanges"] == 2


def test_samples_are_few_different_masked_and_harmless() -> None:
    texts = ["same", "same", "\x1b[2Jred", "mail\u202e ann@example.com `x` | y", *"abc"]
    dropped = [
        (candidate(n, text, turns=(Turn("user", "+44 20 7946 0958?"),)), "markup")
        for n, text in enumerate(texts)
    ]
    report = build(dropped=dropped)
    samples = report["dropped"]["markup"]["samples"]
    assert len(samples) == SAMPLES
    assert len({each["answer"] for each in samples}) == SAMPLES
    page = render_markdown(build(dropped=dropped[2:4]))
    assert "`[2Jred`" in page
    assert "`` mail <email> `x` | y ``" in page
    assert "`<phone>?`" in page
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", page)


def test_text_that_was_cut_shows_no_half_address() -> None:
    text = "ann.with.a.long.name@example.com," * 40
    cut = candidate(1, text[:1008], turns=(), fault="max_characters")
    report = build(dropped=[(cut, "max_characters")])
    (sample,) = report["dropped"]["max_characters"]["samples"]
    assert sample["question"] is None
    assert re.fullmatch(r"(<email>,)*…|.{0,6}…", sample["answer"])


def test_the_page_reads_as_an_account() -> None:
    dropped = [(candidate(5, "At pier five."), "waiting"), (candidate(6, "<script>"), "markup")]
    page = render_markdown(build(dropped=dropped, moved=1, new=1))
    for line in (
        "# What chat can learn from its users",
        "Of 7 ratings, 4 exchanges could teach something and 2 were taken: 1 to learn from",
        "1 of them are new since the last update.",
        "1 more wait for a review: `lmloop review` shows them.",
        "1 exchange drawn to be held out had to be learnt instead",
        "| down without a correction: they tell what is wrong, not what is right | 3 |",
        "| `waiting` | waits for a review (lmloop review) | 1 |",
        "### markup, for example",
        "- `ann` asked `Where is the ferry?`, the answer `<script>`",
        "| `target` | 12 | 0 |",
    ):
        assert line in page
    assert "None." in render_markdown(build())


def test_the_counts_are_the_report_without_its_samples() -> None:
    report = build(dropped=[(candidate(5, "<script>"), "markup")])
    counts = count_report(report)
    assert counts["dropped"]["markup"] == 1
    assert "script" not in json.dumps(counts)
    assert {"ratings", "taken", "splits", "gate_sets"} <= counts.keys()


def test_equal_work_gives_an_equal_report(tmp_path: Path) -> None:
    dropped = [(candidate(n, f"<script>{n}"), "markup") for n in range(9)]
    assert build(dropped=dropped) == build(dropped=dropped[::-1])
