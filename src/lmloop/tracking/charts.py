"""Runs as charts: several of them in one, over steps, seconds or tokens.

Takes: runs from the database. Gives: lines in pixels with the axes' marks, which the page draws as
SVG and the picture with a pencil of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmloop.store.runs import Run

WIDTH, HEIGHT = 420, 190
"""Of a chart's inside, in pixels."""
MOST_RUNS = 8
"""Runs in one chart: as many as there are colours that eyes tell apart."""
Axis = Literal["step", "seconds", "tokens"]
AXES: tuple[Axis, ...] = ("step", "seconds", "tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one chart shows."""

    title: str
    keys: tuple[str, ...]
    """Of a step; the first is measured at every step, later ones now and then."""
    form: str
    """How a value is written."""
    from_zero: bool = False
    """Whether the axis begins at zero."""


FIGURES = (
    Figure(title="bits per byte", keys=("bpb", "validation_bpb"), form="{:.3f}"),
    Figure(title="loss, nats a target", keys=("loss", "validation_loss"), form="{:.3f}"),
    Figure(title="tokens a second", keys=("tokens_per_second",), form="{:,.0f}", from_zero=True),
    Figure(title="share of peak", keys=("peak_share",), form="{:.0%}", from_zero=True),
    Figure(title="norm of the gradient", keys=("norm",), form="{:.3g}", from_zero=True),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of one run."""

    run: str
    """Its id."""
    color: int
    """Number of the run among those shown."""
    is_measured: bool
    """Whether it stands on validations, each of which is a dot."""
    points: tuple[tuple[float, float], ...]
    """From the left and from above, in pixels."""
    told: tuple[str, ...]
    """Each point in words."""

    @property
    def path(self) -> str:
        """Of SVG."""
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One figure of all runs shown."""

    title: str
    axis: str
    lines: tuple[Line, ...]
    rows: tuple[tuple[float, str], ...]
    """Marks of the upright axis: how far from above, and the words."""
    columns: tuple[tuple[float, str], ...]
    """Marks of the level axis: how far from the left, and the words."""


def draw_charts(runs: Sequence[Run], *, axis: Axis = "step") -> list[Chart]:
    """A chart for each figure that a run has twice or more; of the first `MOST_RUNS` runs."""
    charts = (_draw(runs[:MOST_RUNS], figure, axis) for figure in FIGURES)
    return [chart for chart in charts if chart is not None]


def choose_marks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round values between `low` and `high`: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not span > 0:
        return [low]
    rough = span / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _draw(runs: Sequence[Run], figure: Figure, axis: Axis) -> Chart | None:
    series = [
        (run, color, key, _values(run, key, axis))
        for color, run in enumerate(runs)
        for key in figure.keys
    ]
    series = [each for each in series if len(each[3]) > 1]
    if not series:
        return None
    ys = [y for *_, values in series for _, y in values]
    right = max(x for *_, values in series for x, _ in values) or 1.0
    low, high = 0.0 if figure.from_zero else min(ys), max(ys)
    margin = (high - low or abs(high) or 1.0) * 0.04
    low, high = low if figure.from_zero else low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return WIDTH * x / right, HEIGHT * (1 - (y - low) / (high - low))

    lines = tuple(
        Line(
            run=run.id,
            color=color,
            is_measured=key.startswith("validation"),
            points=tuple(place(x, y) for x, y in values),
            told=tuple(
                f"{run.name} {run.stage}, {axis} {x:,.0f}: {figure.form.format(y)}"
                for x, y in values
            ),
        )
        for run, color, key, values in series
    )
    marks = choose_marks(low, high)
    rows = tuple((place(0, y)[1], _say(y, marks, figure.form)) for y in marks)
    columns = tuple((place(x, low)[0], _shorten(x)) for x in choose_marks(0, right, most=6))
    return Chart(title=figure.title, axis=axis, lines=lines, rows=rows, columns=columns)


def _values(run: Run, key: str, axis: Axis) -> list[tuple[float, float]]:
    return [
        (float(step[axis]), float(step[key]))
        for step in run.steps
        if step.get(key) is not None and math.isfinite(step[key])
    ]


def _say(value: float, marks: Sequence[float], form: str) -> str:
    """A mark, with no more digits than tell it from the next."""
    if "," in form:
        return form.format(value)
    gap = marks[1] - marks[0] if len(marks) > 1 else abs(value) or 1.0
    digits = -math.floor(math.log10(gap) + 1e-9)
    if "%" in form:
        return f"{value:.{max(0, digits - 2)}%}"
    return f"{value:.{max(0, digits)}f}"


def _shorten(value: float) -> str:
    """1,500 as 1.5k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
