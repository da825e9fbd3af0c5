"""The page of a search: what mattered, how the figure follows each key, and all trials.

Takes: a finished search. Gives: one HTML file whose plots are drawn into it, so that it needs no
other file, no script and no network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from lmloop.store.artifact import make_folder, write_whole
from lmloop.tuning.ranges import Choice, Range, Space, Value
from lmloop.tuning.trials import Trial

if TYPE_CHECKING:
    from lmloop.tuning.search import Tuned

WIDTH, HEIGHT = 300, 160
"""Of a plot, in the page's pixels."""
_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, slots=True)
class Plot:
    """How the figure follows one key."""

    key: str
    points: list[tuple[float, float, Trial]]
    """From the left and from above, in pixels."""
    marks: list[tuple[float, str]]
    """Values below the axis, and how far from the left they stand."""
    is_log: bool = False
    """Whether equal factors are equal ways along the axis."""


def write_page(tuned: Tuned, space: Space) -> None:
    """Write the page of `tuned` to its place."""
    make_folder(tuned.page.parent)
    with write_whole(tuned.page) as stream:
        stream.write(render_page(tuned, space).encode())


def render_page(tuned: Tuned, space: Space) -> str:
    """The page as HTML; what came from the recipe is escaped."""
    finished = [each for each in tuned.trials if each.state == "finished"]
    figures = [each.value for each in finished if each.value is not None]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        tuned=tuned,
        keys=list(space),
        plots=[plot(finished, key, space[key]) for key in space],
        low=min(figures),
        high=max(figures),
        width=WIDTH,
        height=HEIGHT,
    )


def plot(trials: Sequence[Trial], key: str, values: Range | Choice) -> Plot:
    """Where the trials that came to their end stand over the values of `key`."""
    figures = [each.value or 0.0 for each in trials]
    low, high = min(figures), max(figures)
    points = [
        (
            WIDTH * place(values, each.values[key]),
            HEIGHT * (1 - (figure - low) / (high - low) if high > low else 0.5),
            each,
        )
        for each, figure in zip(trials, figures, strict=True)
    ]
    ends: Sequence[Value] = values.values if isinstance(values, Choice) else _ends(values)
    marks = [(WIDTH * place(values, each), f"{each}") for each in ends]
    return Plot(key, points, marks, is_log=isinstance(values, Range) and values.log)


def place(values: Range | Choice, value: Value) -> float:
    """How far along the axis a value stands, 0 to 1; by factors where the range is logarithmic."""
    if isinstance(values, Choice):
        return (values.values.index(value) + 0.5) / len(values.values)
    low, high, here = values.low, values.high, float(value)
    if values.log:
        low, high, here = math.log(low), math.log(high), math.log(here)
    return (here - low) / (high - low)


def _ends(values: Range) -> tuple[Value, Value]:
    if values.is_whole:
        return int(values.low), int(values.high)
    return values.low, values.high
