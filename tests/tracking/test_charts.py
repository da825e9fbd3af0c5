"""Charts: where lines and marks stand, by hand."""

from __future__ import annotations

import pytest

from lmloop.tracking.charts import HEIGHT, MOST_RUNS, WIDTH, choose_marks, draw_charts

from .runs_made import make_run, make_step


def test_a_curve_falls_from_the_left_top_to_the_right_bottom() -> None:
    run = make_run(make_step(2, 4.0), make_step(5, float("nan")), make_step(10, 2.0))
    loss, _ = draw_charts([run])
    (line,) = loss.lines
    # A margin of 4 % of the span lies above and below.
    edge = HEIGHT * 0.04 / 1.08
    assert line.points[0] == pytest.approx((WIDTH / 5, edge))
    assert line.points[1] == pytest.approx((WIDTH, HEIGHT - edge))
    assert line.path == f"M{WIDTH / 5:.1f} {edge:.1f}L{WIDTH:.1f} {HEIGHT - edge:.1f}"
    assert line.told == ("tiny pretrain, step 2: 4.000", "tiny pretrain, step 10: 2.000")
    assert [text for _, text in loss.rows] == ["2.0", "2.5", "3.0", "3.5", "4.0"]
    assert [text for _, text in loss.columns] == ["0", "2", "4", "6", "8", "10"]


def test_a_figure_that_a_run_has_once_or_never_is_not_drawn() -> None:
    assert draw_charts([make_run(make_step(1, 4.0))]) == []
    assert draw_charts([]) == []


def test_runs_share_axes_and_each_has_a_color() -> None:
    one = make_run(make_step(1, 4.0), make_step(10, 2.0))
    other = make_run(make_step(1, 8.0), make_step(20, 6.0), id="pretrain-1")
    loss, _ = draw_charts([one, other])
    assert [line.color for line in loss.lines] == [0, 1]
    assert loss.lines[0].points[-1][0] == pytest.approx(WIDTH / 2)
    assert loss.lines[1].points[0][1] < loss.lines[0].points[0][1]


def test_a_figure_that_does_not_move_is_a_flat_line_in_the_middle() -> None:
    loss, norm = draw_charts([make_run(make_step(1, 2.0), make_step(2, 2.0))])
    assert [y for _, y in loss.lines[0].points] == pytest.approx([HEIGHT / 2] * 2)
    assert norm.title == "norm of the gradient"


def test_validations_are_dots_over_any_axis() -> None:
    run = make_run(
        make_step(1, 4.0, 2.5, bpb=2.6, tokens_per_second=1500.0, peak_share=0.25),
        make_step(2, 3.0, 2.0, bpb=2.1, tokens_per_second=1000.0, peak_share=0.5),
    )
    charts = {chart.title: chart for chart in draw_charts([run], axis="seconds")}
    assert [line.is_measured for line in charts["bits per byte"].lines] == [False, True]
    assert charts["bits per byte"].lines[1].told[1] == "tiny pretrain, seconds 4: 2.000"
    assert charts["share of peak"].rows[0] == (HEIGHT, "0%")
    assert charts["tokens a second"].rows[1][1] == "500"


def test_marks_of_small_shares_are_told_apart() -> None:
    steps = [make_step(number, 2.0, peak_share=0.009) for number in (1, 2)]
    share = next(chart for chart in draw_charts([make_run(*steps)]) if "share" in chart.title)
    assert [text for _, text in share.rows] == ["0.0%", "0.2%", "0.4%", "0.6%", "0.8%"]


def test_no_more_runs_are_drawn_than_there_are_colors() -> None:
    runs = [make_run(make_step(1, 4.0), make_step(2, 3.0), id=f"r{i}") for i in range(12)]
    loss, _ = draw_charts(runs)
    assert len(loss.lines) == MOST_RUNS


@pytest.mark.parametrize(
    ("low", "high", "marks"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (0.0, 0.9, [0, 0.2, 0.4, 0.6, 0.8]),
        (1.3, 1.7, [1.3, 1.4, 1.5, 1.6, 1.7]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_marks_are_round(low: float, high: float, marks: list[float]) -> None:
    assert choose_marks(low, high) == pytest.approx(marks)
