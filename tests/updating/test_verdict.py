"""The verdict's files: the first line says it, the table has the figures, nothing is markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lmloop.evaluation.answers import Exchange
from lmloop.updating.checks import Check, Measure, skip
from lmloop.updating.conduct import Pair
from lmloop.updating.verdict import Verdict, render_html, render_markdown, write_verdict

CHANGE = Measure(
    what="bits per byte on general",
    value=0.031,
    unit="change",
    low=0.0213,
    high=0.0408,
    limit=0.01,
    count=120,
    needed=77,
)
WORSE = Check(name="general", passed=False, reason="worse on general: +3 %", measures=(CHANGE,))
GOOD = Check(name="files", passed=True, reason="6 files are as the manifest says")
GAIN = Check(name="target", passed=True, reason="better on target: -5 %")


def make_pair(said: str = "fine", *, finish: str = "stop") -> Pair:
    return Pair(
        live=Exchange("how are you?", "well", "stop", 1, None),
        candidate=Exchange("how are you?", said, finish, 1, None),
    )


def make(*checks: Check, **changes: Any) -> Verdict:
    fields: dict[str, Any] = {
        "candidate": "c" * 64,
        "live": "1" * 64,
        "pledge": "b" * 64,
        "sealed": 5.0,
        "seed": 3,
        "checks": checks,
    }
    return Verdict(**(fields | changes))


def test_a_verdict_passes_when_every_check_did() -> None:
    verdict = make(GOOD, GAIN)
    assert verdict.passed
    assert verdict.headline == "passed: better on target: -5 %"
    assert verdict.counts() == {"passed": True, "reasons": [], "failed_checks": []}


def test_the_first_failed_check_is_the_reason() -> None:
    other = Check(name="target", passed=False, reason="no gain on target")
    verdict = make(GOOD, WORSE, other)
    assert verdict.headline == "refused because worse on general: +3 %"
    assert verdict.reasons == ["worse on general: +3 %", "no gain on target"]
    assert verdict.counts()["failed_checks"] == ["general", "target"]


def test_a_check_that_was_not_asked_lets_nobody_pass() -> None:
    verdict = make(GOOD, skip("target", "the check 'files' failed"), WORSE)
    assert not verdict.passed
    assert verdict.reasons == [WORSE.reason]


def test_the_first_line_says_why_and_the_table_has_the_figures(tmp_path: Path) -> None:
    write_verdict(make(GOOD, WORSE, GAIN, pairs=(make_pair(),)), tmp_path)
    lines = (tmp_path / "verdict.md").read_text().splitlines()
    assert lines[0] == "# Gate: refused because worse on general: +3 %"
    row = "| general | refused | bits per byte on general | +3.10% | +2.13% to +4.08% | +1.00% |"
    assert f"{row} 120 | 77 |" in lines
    assert "| files | passed | 6 files are as the manifest says |  |  |  |  |  |" in lines
    assert "| how are you? | well | fine |" in lines
    assert "- thresholds sealed 1970-01-01 00:00:05 UTC, seed 3" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "verdict.html",
        "verdict.json",
        "verdict.md",
    ]


def test_the_json_has_every_check_and_answer(tmp_path: Path) -> None:
    write_verdict(make(GOOD, WORSE, pairs=(make_pair(finish="length"),)), tmp_path)
    data = json.loads((tmp_path / "verdict.json").read_text())
    assert data["passed"] is False
    assert [check["name"] for check in data["checks"]] == ["files", "general"]
    assert data["checks"][1]["measures"][0]["needed"] == 77
    assert data["answers"][0]["candidate_finish_reason"] == "length"
    assert (data["candidate"], data["seed"], data["sealed"]) == ("c" * 64, 3, 5.0)


def test_the_page_shows_what_was_said_as_text() -> None:
    page = render_html(make(WORSE, pairs=(make_pair("<script>alert(1)</script>"),)))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "Gate: refused" in page


def test_markdown_finds_nothing_to_interpret_in_answers() -> None:
    page = render_markdown(make(WORSE, pairs=(make_pair("a | b\n**c** <i>"),)))
    assert "| how are you? | well | a \\| b / \\*\\*c\\*\\* &lt;i&gt; |" in page


def test_an_empty_answer_is_told_and_without_answers_the_page_says_so() -> None:
    assert "(nothing)" in render_markdown(make(GOOD, pairs=(make_pair(""),)))
    assert "an earlier check failed" in render_html(make(WORSE))
    assert "cut at the longest length" in render_html(
        make(GOOD, pairs=(make_pair(finish="length"),))
    )


def test_only_twenty_answers_are_shown(tmp_path: Path) -> None:
    pairs = tuple(make_pair(f"number {number}.") for number in range(25))
    write_verdict(make(GOOD, pairs=pairs), tmp_path)
    page = (tmp_path / "verdict.html").read_text()
    assert "number 19." in page
    assert "number 20." not in page
    assert "Answers, side by side: 20 of 25" in page
    assert len(json.loads((tmp_path / "verdict.json").read_text())["answers"]) == 25
