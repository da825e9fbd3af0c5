"""The picture of runs, read back pixel by pixel."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from lmloop.errors import MissingExtraError
from lmloop.tracking.charts import WIDTH
from lmloop.tracking.picture import (
    COLORS,
    LEFT,
    PAPER,
    RIGHT,
    SCALE,
    SIDE_BY_SIDE,
    write_picture,
)

from .runs_made import make_run, make_step


def count(image: Image.Image, color: str) -> int:
    wanted = ImageColor.getrgb(color)
    return sum(number for number, found in image.getcolors(1 << 20) or [] if found == wanted)


def test_each_run_is_drawn_in_its_color(tmp_path: Path) -> None:
    runs = [
        make_run(make_step(1, 4.0, 3.0), make_step(9, 3.0, 2.0), id=f"r{number}")
        for number in range(2)
    ]
    write_picture(runs, tmp_path / "runs.png")
    with Image.open(tmp_path / "runs.png") as image:
        assert image.format == "PNG"
        assert image.width == SCALE * SIDE_BY_SIDE * (LEFT + WIDTH + RIGHT)
        image = image.convert("RGB")
        assert image.getpixel((0, 0)) == ImageColor.getrgb(PAPER)
        # The second lies over the first; the first still has its mark beside its name.
        assert count(image, COLORS[0]) > 100
        assert count(image, COLORS[1]) > 1000
        assert count(image, COLORS[2]) == 0


def test_a_home_without_runs_is_a_picture_as_well(tmp_path: Path) -> None:
    write_picture([], tmp_path / "runs.png")
    with Image.open(tmp_path / "runs.png") as image:
        image.verify()


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"pillow is not .*lmloop\[track\]"):
        write_picture([], tmp_path / "runs.png")
    assert list(tmp_path.iterdir()) == []
