"""The page of runs: its words, and where its curves go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lmloop.store.runs import Run
from lmloop.tracking.page import HEIGHT, WIDTH, describe_run, draw_curves, render_page, write_page


def make_step(step: int, loss: float | None, validation: float | None = None) -> dict[str, Any]:
    figures = {"loss": loss, "norm": 1.0, "validation_bpb": validation, "validation_loss": None}
    return {
        "step": step,
        "share": step / 10,
        "seconds": step * 2.0,
        "tokens": step * 1000,
        **figures,
    }


def make_run(*steps: dict[str, Any], **changes: Any) -> Run:
    own = {"id": "pretrain-0", "name": "tiny", "stage": "pretrain", "state": "running"}
    return Run(**{**own, "note": None, "started": 0.0, "heard": 1.0, "steps": steps, **changes})


def test_a_run_is_told_in_figures_people_read() -> None:
    run = make_run(make_step(1, 4.0, 3.0), make_step(5, None))
    told = describe_run(run)
    assert (told["step"], told["done"], told["loss"]) == ("5", "50%", "4.000")
    assert (told["validation"], told["tok/s"]) == ("3.0000", "500")
    assert describe_run(make_run())["loss"] == "-"


def test_a_curve_falls_from_the_left_top_to_the_right_bottom() -> None:
    (curve,) = draw_curves(
        make_run(make_step(2, 4.0), make_step(5, float("nan")), make_step(10, 2.0))
    )
    assert curve.path == f"M{WIDTH / 5:.1f} 0.0L{WIDTH:.1f} {HEIGHT:.1f}"
    assert (curve.low, curve.high, curve.last_step) == (2.0, 4.0, 10)
    assert draw_curves(make_run(make_step(1, 4.0))) == []


def test_the_page_is_one_file_in_which_names_are_text(tmp_path: Path) -> None:
    run = make_run(
        make_step(1, 4.0, 3.0), make_step(2, 3.0, 2.0), note="<b>nan</b>", state="failed"
    )
    text = render_page([run], now=0.0)
    assert "&lt;b&gt;nan" in text
    assert text.count('class="line" d=') == 2
    assert re.findall(r"(?:src|href)=|<script|url\(", text) == []
    assert "Nothing has been trained" in render_page([], now=0.0)
    write_page([run], tmp_path / "runs.html", now=0.0)
    assert (tmp_path / "runs.html").read_text("utf-8") == text


@pytest.mark.parametrize("values", [(2.0, 2.0)])
def test_a_figure_that_does_not_move_is_a_flat_line(values: tuple[float, float]) -> None:
    (curve,) = draw_curves(make_run(make_step(1, values[0]), make_step(2, values[1])))
    assert curve.path.count(f" {HEIGHT:.1f}") == 2
