"""The page of a search: where its points stand, and that it needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from lmloop.tuning.page import HEIGHT, WIDTH, place, plot
from lmloop.tuning.ranges import Choice, Range, Value
from lmloop.tuning.trials import Trial

from .conftest import RATES, Search

LOG = Range(low=0.001, high=10, log=True)


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        (Range(low=2, high=6), 3, 0.25),
        (LOG, 0.1, 0.5),
        (Choice(("a", "b")), "a", 0.25),
        (Choice((True, False)), False, 0.75),
    ],
)
def test_a_value_has_its_place_on_the_axis(
    values: Range | Choice, value: Value, expected: float
) -> None:
    assert place(values, value) == pytest.approx(expected)


def make_trial(number: int, rate: float, value: float) -> Trial:
    values = {"pretrain.learning_rate": rate}
    return Trial(number=number, state="finished", values=values, value=value, seconds=1.0)


def test_the_lowest_figure_stands_lowest() -> None:
    trials = [make_trial(1, 0.001, 3.0), make_trial(2, 0.1, 2.0), make_trial(3, 10, 2.5)]
    drawn = plot(trials, "pretrain.learning_rate", LOG)
    assert [(round(x), round(y)) for x, y, _ in drawn.points] == [
        *((0, 0), (WIDTH // 2, HEIGHT), (WIDTH, HEIGHT // 2))
    ]
    assert drawn.marks == [(0, "0.001"), (WIDTH, "10")]
    assert drawn.is_log


def test_one_trial_stands_in_the_middle() -> None:
    drawn = plot([make_trial(1, 0.1, 2.0)], "pretrain.learning_rate", LOG)
    assert drawn.points[0][1] == HEIGHT / 2


class Balance(HTMLParser):
    """Every element that is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_every_trial_and_needs_no_other_file(searched: Search) -> None:
    tuned = searched.tune(RATES, "pretrain.optimizer=muon,adamw", trials=6, prune=False)
    text = tuned.page.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert re.findall(r"(?:src|href)=|<script|url\(", text) == []
    for trial in tuned.trials:
        assert f"<td>{trial.value:.4f}</td>" in text
    assert text.count("<circle") == 12
    assert text.count("<rect") == len(tuned.importance) == 2
    assert "learning_rate = " in text
    assert text.count("(by factors)") == 1
