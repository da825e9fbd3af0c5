"""The page of runs: its words, what is drawn, and that it is one file."""

from __future__ import annotations

import re
from pathlib import Path

from lmloop.tracking.page import (
    NEWEST_RUNS,
    Choice,
    choose,
    describe_run,
    read_samples,
    render_frame,
    render_inside,
    render_page,
    write_page,
)

from .runs_made import make_run, make_step


def test_a_run_is_told_in_figures_people_read() -> None:
    run = make_run(make_step(1, 4.0, 3.0), make_step(5, None, peak_share=0.5))
    told = describe_run(run)
    assert (told["step"], told["done"], told["loss"]) == ("5", "50%", "4.000")
    assert (told["validation"], told["tok/s"], told["peak"]) == ("3.0000", "500", "50%")
    assert describe_run(make_run())["loss"] == "-"
    assert describe_run(make_run(make_step(9, 1.0), state="finished"))["done"] == "100%"


def test_the_page_is_one_file_in_which_names_are_text(tmp_path: Path) -> None:
    run = make_run(
        make_step(1, 4.0, 3.0),
        make_step(2, 3.0, 2.0, samples=[{"prompt": "<i>", "text": "</main><script>"}]),
        note="<b>nan</b>",
        state="failed",
    )
    text = render_page([run], now=0.0)
    assert "&lt;b&gt;nan" in text
    assert "&lt;/main&gt;&lt;script&gt;" in text
    assert text.count('class="line c0') == 3
    assert re.findall(r"(?:src|href)=|<script|url\(|<input", text) == []
    assert "Nothing has been trained" in render_page([], now=0.0)
    write_page([run], tmp_path / "runs.html", now=0.0)
    assert (tmp_path / "runs.html").read_text("utf-8") == text


def test_the_live_page_loads_only_its_own_files() -> None:
    assert re.findall(r'(?:src|href)="([^"]*)"', render_frame()) == ["runs.css", "runs.js"]
    assert "<style" not in render_frame()


def test_what_a_run_said_is_read_newest_first() -> None:
    steps = [
        make_step(step, 1.0, 1.0, samples=[{"prompt": "the", "text": f"word {step}"}])
        for step in (1, 2)
    ]
    (said,) = read_samples(make_run(*steps))
    assert (said.prompt, said.texts) == ("the", ((2, "word 2"), (1, "word 1")))
    inside = render_inside([make_run(*steps)])
    assert inside.index("word 2") < inside.index("word 1")


def test_white_space_that_a_run_said_is_named() -> None:
    step = make_step(2, 1.0, 1.0, samples=[{"prompt": "the", "text": " \n "}])
    assert "step 2: white space only" in render_inside([make_run(step)])


def test_the_newest_runs_are_drawn_where_nobody_chose() -> None:
    runs = [make_run(make_step(1, 4.0), id=f"run-{number}") for number in range(5)]
    assert Choice().pick(runs) == runs[:NEWEST_RUNS]
    assert choose(["run-4", "gone"], "tokens").pick(runs) == [runs[4]]
    assert choose(["gone"], "fathoms") == Choice(runs=frozenset({"gone"}))
    inside = render_inside(runs, choice=choose(["run-4"], None), is_live=True)
    assert re.findall(r'value="(run-\d)"[^>]* checked', inside) == ["run-4"]


def test_the_inside_carries_no_style_that_the_server_forbids() -> None:
    run = make_run(make_step(1, 4.0, 3.0), make_step(2, 3.0, 2.0))
    assert "style=" not in render_inside([run], is_live=True)
