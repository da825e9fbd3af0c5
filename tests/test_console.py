"""What the command line shows while it works and when it is asked."""

from __future__ import annotations

import io
import sys

import pytest

from lmloop.console import (
    PlainProgress,
    TerminalProgress,
    make_progress,
    show_ancestry,
    show_plan,
)
from lmloop.store.lineage import Ancestor
from lmloop.training.plan import Plan, StagePlan


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


def test_a_plan_is_drawn_as_a_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    stage = StagePlan(
        stage="pretrain",
        seconds=240.0,
        steps=1234,
        tokens=2_500_000,
        epochs=1.5,
        memory={"weights": 10_000_000, "optimizer": 60_000_000},
    )
    show_plan(
        Plan(
            parameters=4_200_000,
            checkpoint_bytes=8_400_000,
            cache_bytes_per_token=4096,
            text_bytes=5_000_000,
            text_tokens=1_470_000,
            tokens_per_second=9876.0,
            flops_per_second=3.2e11,
            stages=(stage,),
        )
    )
    written = capsys.readouterr().out
    for part in (
        "4.20 M parameters",
        "checkpoint 8.4 MB",
        "4.1 kB of cache a token",
        "text 5.0 MB, about 1.5 M tokens",
        "9,876 tokens/s, 320 GFLOP/s",
        "240 s",
        "1,234",
        "2.50 M",
        "1.50",
        "70 MB (weights 10 MB, optimizer 60 MB)",
    ):
        assert part in written
