from __future__ import annotations

import json
from typing import Any

from lmloop.corpus.report import DROPS, build_report, describe_drops, render_markdown, shorten


def sums(records: int, raw_bytes: int, **others: int) -> dict[str, int]:
    zero = dict.fromkeys(("conversations", "turns", "changed", "emails", "phones"), 0)
    return {**zero, "records": records, "raw_bytes": raw_bytes, **others}


def make_report(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "inputs": [{"source": "a|b.txt", "path_in_source": "", "sha256": "ab" * 32, "bytes": 1234}],
        "ignored_files": 2,
        "skipped": {"a|b.txt": {"no valid JSON": 3}},
        "summary": {
            "train": sums(1200, 5_000_000, conversations=1000, turns=2500, emails=1, changed=7),
            "heldout": sums(40, 3000, phones=2),
            "validation": sums(10, 2000),
            "min_turns": sums(50, 40_000, emails=9, changed=1),
        },
        "samples": {"min_turns": ["user: `hi` a@b.com\nassistant: no"]},
        "near_duplicate_pairs": 1,
        "settings": {"min_turns": 2},
    }
    return build_report(**{**given, **changes})


def test_the_report_adds_up() -> None:
    report = make_report()
    assert report["read"] == {
        "files": 1,
        "file_bytes": 1234,
        "ignored_files": 2,
        "records": 1300,
        "raw_bytes": 5_045_000,
        "skipped": {"a|b.txt": {"no valid JSON": 3}},
    }
    assert report["normalised"] == 8
    assert tuple(report["dropped"]) == DROPS
    assert report["dropped"]["min_turns"]["records"] == 50
    assert report["dropped"]["empty"] == {"records": 0, "raw_bytes": 0, "samples": []}
    assert report["masked"] == {"emails": 1, "phones": 2}
    assert report["splits"]["train"] == {
        "records": 1200,
        "conversations": 1000,
        "turns": 2500,
        "raw_bytes": 5_000_000,
    }
    assert json.loads(json.dumps(report)) == report


def test_samples_are_one_short_line_without_personal_data() -> None:
    assert make_report()["dropped"]["min_turns"]["samples"] == [
        "user: `hi` <email> / assistant: no"
    ]
    long = shorten("word " * 100)
    assert len(long) == 200
    assert long.endswith("…")


def test_drops_are_told_in_half_a_line() -> None:
    assert describe_drops(make_report()["dropped"]) == "min_turns 50"
    assert describe_drops({}) == "nothing dropped"


def test_the_page_tells_what_the_report_holds() -> None:
    page = render_markdown(make_report())
    for line in (
        "Read 1,300 records (5.04 MB of text) from 1 file; 2 other files left alone. "
        "Normalisation changed 8 records.",
        "| train | 1,200 | 1,000 | 2,500 | 5.00 MB |",
        "| min_turns | 50 | 0.04 MB |",
        "Masked in these: 1 e-mail address and 2 telephone numbers.",
        "Near duplicates: 1 pair.",
        "- `` user: `hi` <email> / assistant: no ``",
        "| `a\\|b.txt` | no valid JSON | 3 |",
        "| `a\\|b.txt` | 1,234 | `abababababababab` |",
    ):
        assert line in page.splitlines()


def test_the_page_lists_no_more_files_than_one_reads() -> None:
    inputs = [
        {"source": "t", "path_in_source": f"{number}.txt", "sha256": "0" * 64, "bytes": 1}
        for number in range(25)
    ]
    skipped = {f"t/{number}.txt": {"not UTF-8": 1} for number in range(23)}
    page = render_markdown(make_report(inputs=inputs, skipped=skipped))
    assert "… and 5 more, see report.json." in page
    assert "… and 3 more, see report.json." in page
    assert "`t → 19.txt`" in page
    assert "`t → 20.txt`" not in page
