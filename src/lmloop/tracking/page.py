"""The page of runs: what each has come to, and its curves.

Takes: runs from the database. Gives: one HTML file whose plots are drawn into it, so that it needs
no other file, no script and no network.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from lmloop.store.artifact import write_whole
from lmloop.store.runs import Run

WIDTH, HEIGHT = 420, 160
"""Of a plot, in the page's pixels."""
TITLES = {
    "loss": "loss, nats a token",
    "validation_bpb": "validation, bits per byte",
    "validation_loss": "validation, nats a target",
}
_TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A figure over the steps of a run."""

    title: str
    path: str
    """Of SVG, in pixels."""
    low: float
    high: float
    last_step: int


def write_page(runs: Sequence[Run], path: Path, *, now: float) -> None:
    """Write the page; a file that is there is replaced whole."""
    with write_whole(path) as stream:
        stream.write(render_page(runs, now=now).encode())


def render_page(runs: Sequence[Run], *, now: float) -> str:
    """The page as HTML; names are escaped."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        runs=[(run, describe_run(run), draw_curves(run)) for run in runs],
        written=_moment(now),
        width=WIDTH,
        height=HEIGHT,
    )


def describe_run(run: Run) -> dict[str, str]:
    """A run in words: stage, state, step, figures, speed and when, each ready to be shown."""
    validation = run.last("validation_bpb")
    if validation is None:
        validation = run.last("validation_loss")
    return {
        "name": run.name,
        "stage": run.stage,
        "state": run.state,
        "step": _number(run.last("step"), "{:,.0f}"),
        "done": _number(run.last("share"), "{:.0%}"),
        "loss": _number(run.last("loss"), "{:.3f}"),
        "validation": _number(validation, "{:.4f}"),
        "tok/s": _number(run.tokens_a_second, "{:,.0f}"),
        "began": _moment(run.started),
    }


def draw_curves(run: Run) -> list[Curve]:
    """A curve for each figure that the run has twice or more."""
    curves = (_draw(run.steps, key, title) for key, title in TITLES.items())
    return [curve for curve in curves if curve is not None]


def _draw(steps: Sequence[Mapping[str, Any]], key: str, title: str) -> Curve | None:
    points = [
        (step["step"], step[key])
        for step in steps
        if step[key] is not None and math.isfinite(step[key])
    ]
    if len(points) < 2:
        return None
    values = [value for _, value in points]
    low, high, last = min(values), max(values), points[-1][0]
    height = (high - low) or 1.0
    places = [
        f"{WIDTH * step / last:.1f} {HEIGHT * (1 - (value - low) / height):.1f}"
        for step, value in points
    ]
    return Curve(title=title, path="M" + "L".join(places), low=low, high=high, last_step=last)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
