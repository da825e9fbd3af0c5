"""The charts of runs as one picture.

Takes: runs from the database. Gives: a PNG file: the charts of the page with the runs' names.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmloop.errors import MissingExtraError
from lmloop.store.artifact import write_whole
from lmloop.store.runs import Run
from lmloop.tracking.charts import HEIGHT, MOST_RUNS, WIDTH, Chart, draw_charts
from lmloop.tracking.page import describe_run

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

COLORS = (
    *("#0b7065", "#b4690e", "#6c5bb5", "#c02f6a"),
    *("#2563c9", "#5f7d16", "#8a4b2d", "#4d5a66"),
)
"""Of the runs, as the page's style has them by day."""
PAPER, INK, MUTED, RULE = "#ffffff", "#1a1f1d", "#59635f", "#e3e7e3"
LEFT, RIGHT, ABOVE, BELOW = 62, 26, 34, 48
"""Room around the inside of a chart, in its pixels."""
SIDE_BY_SIDE = 2
SCALE = 2
"""Pixels of the picture to one of a chart."""
FINER = 2
"""Drawn so many times as large and then shrunk, so that slanting lines are smooth."""
LEGEND = "Thin lines are batches, lines with dots validations."
LINE_HEIGHT = 20
_PIXELS = SCALE * FINER


def write_picture(runs: Sequence[Run], path: Path) -> None:
    """Write the charts of the newest runs; a file that is there is replaced whole.

    Raises `MissingExtraError` where Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise MissingExtraError(package="pillow", extra="track") from error
    shown = runs[:MOST_RUNS][::-1]
    charts = draw_charts(shown)
    rows = -(-len(charts) // SIDE_BY_SIDE)
    wide, high = LEFT + WIDTH + RIGHT, ABOVE + HEIGHT + BELOW
    head = LINE_HEIGHT * (len(shown) + 1) + 24
    size = (SCALE * SIDE_BY_SIDE * wide, SCALE * (head + rows * high + 8))
    image = Image.new("RGB", (FINER * size[0], FINER * size[1]), PAPER)
    pencil = _Pencil(ImageDraw.Draw(image))
    if not shown:
        pencil.write((LEFT, 16), "Nothing has been trained in this home yet.", MUTED)
    for number, run in enumerate(shown):
        pencil.legend((LEFT, 16 + number * LINE_HEIGHT), _name(run), COLORS[number])
    if charts:
        pencil.write((LEFT, 16 + len(shown) * LINE_HEIGHT), LEGEND, MUTED)
    for number, chart in enumerate(charts):
        row, column = divmod(number, SIDE_BY_SIDE)
        pencil.at = (column * wide + LEFT, head + row * high + ABOVE)
        _draw_chart(pencil, chart)
    stream = io.BytesIO()
    image.resize(size, Image.Resampling.BOX).save(stream, format="PNG", optimize=True)
    with write_whole(path) as file:
        file.write(stream.getvalue())


def _name(run: Run) -> str:
    told = describe_run(run)
    figures = f"loss {told['loss']}, validation {told['validation']}, {told['tok/s']} tok/s"
    return f"{run.name}, {run.stage}: {run.state}, step {told['step']}, {figures}"


def _draw_chart(pencil: _Pencil, chart: Chart) -> None:
    pencil.write((0, -26), chart.title, INK, size=13)
    for y, text in chart.rows:
        pencil.line(((0, y), (WIDTH, y)), RULE, width=1)
        pencil.write((-8, y), text, MUTED, anchor="rm")
    pencil.line(((0, HEIGHT), (WIDTH, HEIGHT)), MUTED, width=1)
    for x, text in chart.columns:
        pencil.write((x, HEIGHT + 6), text, MUTED, anchor="ma")
    axis = chart.axis + ("s" if chart.axis == "step" else "")
    pencil.write((WIDTH, HEIGHT + 22), axis, MUTED, anchor="ra")
    for line in chart.lines:
        pencil.line(line.points, COLORS[line.color], width=2 if line.is_measured else 1)
        if line.is_measured:
            for point in line.points:
                pencil.dot(point, COLORS[line.color])


class _Pencil:
    """Draws in a chart's pixels, from a corner on that moves."""

    def __init__(self, draw: ImageDraw) -> None:
        self._draw = draw
        self.at = (0.0, 0.0)

    def line(self, points: Sequence[tuple[float, float]], color: str, *, width: int) -> None:
        placed = [self._place(point) for point in points]
        self._draw.line(placed, fill=color, width=_PIXELS * width, joint="curve")

    def dot(self, point: tuple[float, float], color: str) -> None:
        self._draw.circle(self._place(point), 3 * _PIXELS, fill=color, outline=PAPER)

    def write(
        self,
        point: tuple[float, float],
        text: str,
        color: str,
        *,
        anchor: str = "la",
        size: int = 12,
    ) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(_PIXELS * size)
        self._draw.text(self._place(point), text, fill=color, anchor=anchor, font=font)

    def legend(self, point: tuple[float, float], text: str, color: str) -> None:
        x, y = point
        corners = (self._place((x, y)), self._place((x + 10, y + 10)))
        self._draw.rounded_rectangle(corners, radius=3 * _PIXELS, fill=color)
        self.write((x + 18, y + 5), text, INK, anchor="lm")

    def _place(self, point: tuple[float, float]) -> tuple[float, float]:
        return _PIXELS * (self.at[0] + point[0]), _PIXELS * (self.at[1] + point[1])
