"""What the command line shows while it works and when it is asked."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lmloop.console import (
    SHOWN_DROPPED,
    PlainProgress,
    TerminalProgress,
    make_progress,
    show_ancestry,
    show_catalogue,
    show_monitor,
    show_page,
    show_reviews,
    show_vectors,
)
from lmloop.errors import UsageError
from lmloop.monitoring.summary import Happening, Point, Server, Signal, Summary
from lmloop.monitoring.traffic import Arm, Percentiles, Traffic
from lmloop.store.catalogue import Entry, WeightFile
from lmloop.store.lineage import Ancestor
from lmloop.tokens.vectors import WordVectors
from lmloop.updating.review import Review


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def told(
    capsys: pytest.CaptureFixture[str],
    steps: list[tuple[float, float]],
    *,
    total: float | None,
    unit: str = "tokens",
) -> list[str]:
    """Lines of a task that is at `done` after so many seconds, for each pair in `steps`."""
    clock = Clock()
    with PlainProgress(clock).task("work", total=total, unit=unit) as task:
        for seconds, done in steps:
            clock.now = 50.0 + seconds
            task.update(done, note=f"at {done:g}")
    written = capsys.readouterr()
    assert written.out == ""
    return written.err.splitlines()


def test_a_line_comes_every_few_seconds_with_share_and_time_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = told(capsys, [(0, 0), (1, 10), (5, 50), (6, 60), (8, 80), (10, 100)], total=200)
    assert lines == ["work:  25%, 15 s left  at 50", "work:  50%, 10 s left  at 100"]


def test_a_task_that_goes_on_where_another_ended_is_judged_by_its_own_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert told(capsys, [(0, 80), (10, 90)], total=100) == ["work:  90%, 10 s left  at 90"]


def test_without_a_total_the_amount_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, [(0, 0), (7, 123_456)], total=None) == ["work: 123,456 tokens  at 123456"]
    assert told(capsys, [(0, 0), (7, 3)], total=None, unit="") == ["work: 3  at 3"]


def test_where_nothing_is_done_yet_no_time_is_foretold(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, [(6, 0)], total=10) == ["work:   0%  at 0"]


def test_a_total_of_nothing_is_no_division(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, [(0, 0), (6, 0)], total=0) == ["work: 0 tokens  at 0"]


def test_quick_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, [(0, 0), (4.9, 100)], total=100) == []


def test_lines_that_stay_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    PlainProgress(Clock()).say("prepare: made")
    TerminalProgress().say("tokenize: made")
    assert capsys.readouterr() == ("", "prepare: made\ntokenize: made\n")


def test_a_terminal_gets_a_bar_with_share_and_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with TerminalProgress().task("pretrain", total=2.0, unit="") as task:
        task.update(1.0, note="loss 2.5")
    with TerminalProgress().task("encode", total=None, unit="tokens") as task:
        task.update(12_345)
    written = capsys.readouterr().err
    for part in ("pretrain", "50%", "loss 2.5", "encode", "12,345 tokens"):
        assert part in written


@pytest.mark.parametrize(("terminal", "kind"), [(True, TerminalProgress), (False, PlainProgress)])
def test_bars_are_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, kind: type
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    assert type(make_progress()) is kind


def test_ancestry_is_drawn_as_a_tree_with_every_detail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    raw = Ancestor("data/[draft] talks.jsonl", "raw file, SHA-256 ffffffffffff")
    corpus = Ancestor("corpus 0123", ", ".join(f"count{n} {n}" for n in range(9)), (raw,))
    show_ancestry(Ancestor("checkpoint 4567", "", (corpus, raw)))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "checkpoint 4567"
    assert lines[1].startswith("├── corpus 0123  count0 0")
    assert any(line.startswith("└── data/[draft] talks.jsonl") for line in lines)
    words = " ".join(" ".join(lines).replace("│", " ").split())
    assert "count8 8" in words
    assert words.count("SHA-256 ffffffffffff") == 2


def test_reviews_are_shown_in_full_and_what_is_dropped_in_short(
    capsys: pytest.CaptureFixture[str],
) -> None:
    waiting = Review(
        id="a1b2c3d4e5" + "0" * 54,
        user="0123abcd",
        earlier_turns=2,
        question="Is it [bold]far[/bold]?",
        answer="No.",
        correction="It is far: " + "so " * 100,
        state="pending",
        dropped=None,
    )
    up = replace(waiting, id="f" * 64, user=None, earlier_turns=0, correction=None)
    bad = replace(waiting, id="b" * 64, correction="<script> " * 40, dropped="markup")
    show_reviews([waiting, up, *[bad] * 12])
    written = capsys.readouterr().out
    for part in (
        "a1b2c3d4e5  user 0123abcd, after 2 earlier turns\n",
        "asked      Is it [bold]far[/bold]?\n",
        "answered   No.\n",
        "correction It is far: " + "so " * 100 + "\n",
        "ffffffffff  user unknown\n",
        "  rated up\n",
        "bbbbbbbbbb  dropped by markup, user 0123abcd: <script>",
        "2 wait for a decision: lmloop review ID… --accept or --reject\n",
        "12 more are dropped by the rules: markup 12\n",
    ):
        assert part in written
    assert written.count("dropped by markup") == SHOWN_DROPPED
    assert "a1b2c3d4e50" not in written


def make_summary(**changes: object) -> Summary:
    """A summary in which everything is told once."""
    times = Percentiles(0.05, 0.1, 0.2)
    arm = Arm(
        arm="live",
        weights="a" * 12,
        requests=90,
        failed=2,
        up=7,
        down=3,
        first_token=times,
        between_tokens=None,
        total=times,
    )
    traffic = Traffic(
        requests=1200,
        prompt_tokens=34_567,
        completion_tokens=89,
        endings={"stop": 1190, "error": 10},
        up=7,
        down=3,
        corrections=1,
        first_token=times,
        between_tokens=None,
        total=times,
        bucket_seconds=60.0,
        buckets=(),
        arms=(arm,),
    )
    point = Point(window=0.0, now=4.5, effect=0.321, p=0.00004, changed=True)
    signal = Signal(name="prompt_nats", now=4.5, reference=3.5, low=3.0, high=4.0, points=(point,))
    data: dict[str, Any] = {
        "name": "chat",
        "created": 0.0,
        "seconds": 600.0,
        "empty": False,
        "traffic": traffic,
        "signals": (signal,),
        "languages": {"en": 0.9, "zh": 0.1},
        "reference_languages": {},
        "reference": None,
        "window_requests": 100,
        "waiting": 42,
        "windows": (),
        "alarms": (Happening(created=0.0, kind="alarm", data={"signals": ["language"]}),),
        "servers": (
            Server(
                id="s",
                address="http://127.0.0.1:8000",
                generation=3,
                live="a" * 12,
                candidate=None,
                candidate_state="failed",
                note="[bold]damaged",
                silent_seconds=2.0,
            ),
        ),
        "events": (Happening(created=0.0, kind="round.started", data={}),),
    }
    return Summary(**{**data, **changes})


def test_the_monitor_is_drawn_as_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show_monitor(make_summary())
    written = capsys.readouterr().out
    for part in (
        "chat, last 10 minutes",
        "1,200 requests (120.0 a minute): stop 1,190, error 10",
        "34,567 tokens read, 89 made",
        "7 up, 3 down, 1 corrected",
        "50.0 ms",
        "aaaaaaaaaaaa",
        "prompt_nats",
        "0.32",
        "4e-05",
        "changed",
        "languages: en 90%, zh 10%",
        "42 of 100 requests for the next",
        "ALARM",
        "[bold]damaged",
        "round.started",
    ):
        assert part in written, part


def test_windows_that_nobody_has_looked_at_are_said_to_wait(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show_monitor(make_summary(waiting=5405))
    told = capsys.readouterr().out
    assert "100 of 100 requests for the next: name the recipe to have it looked at" in told


def test_a_monitor_that_has_seen_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_monitor(make_summary(empty=True))
    assert "nothing has been served" in capsys.readouterr().out


def test_a_catalogue_is_drawn_a_line_an_entry(capsys: pytest.CaptureFixture[str]) -> None:
    file = WeightFile(name="w", bytes=1_500_000, sha256="")
    short = Entry(name="a", what="one", licence="MIT", files=(file,), hub=None, package=None)
    long = replace(short, name="long", what="two", licence="Apache-2.0", files=(file,) * 10)
    show_catalogue([short, long])
    assert capsys.readouterr().out.splitlines() == [
        "a      1.5 MB  MIT         one",
        "long  15.0 MB  Apache-2.0  two",
    ]


VECTORS = WordVectors(
    ("man", "woman", "king", "queen"),
    np.array([[1, 0, 0], [1, 1, 0], [1, 0, 2], [1, 1, 2]], dtype=np.float32),
)


def test_neighbours_and_analogies_are_drawn_a_line_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_vectors(VECTORS, nearest=["man"], analogies=["man woman king"], count=2)
    assert capsys.readouterr().out == (
        "man\n   0.707  woman\n   0.447  king\nman woman king\n   0.940  queen\n"
    )


@pytest.mark.parametrize(
    ("nearest", "analogies", "told"),
    [
        (["man", "quen"], [], "did you mean 'queen'"),
        (["man"], ["man king"], "give three words"),
    ],
)
def test_what_cannot_be_answered_is_told_before_anything_is_printed(
    nearest: list[str], analogies: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=told):
        show_vectors(VECTORS, nearest=nearest, analogies=analogies, count=2)
    assert capsys.readouterr().out == ""


def test_a_page_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_page("http://127.0.0.1:8010")
    assert "The page is at http://127.0.0.1:8010" in capsys.readouterr().out
