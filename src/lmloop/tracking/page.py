"""The page of runs: what each has come to, their curves in one, and what they say.

Takes: runs from the database. Gives: one HTML file whose charts are drawn into it, so that it needs
no other file, no script and no network; or its inside alone, which the live page asks for again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from lmloop.store.artifact import write_whole
from lmloop.store.runs import Run
from lmloop.tracking.charts import AXES, HEIGHT, MOST_RUNS, WIDTH, Axis, draw_charts

WEB_FOLDER = Path(__file__).with_name("web")
NEWEST_RUNS = 3
"""So many are drawn where nobody has chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What of the runs is drawn."""

    runs: frozenset[str] = frozenset()
    """Ids; the newest where it is empty."""
    axis: Axis = "step"

    def pick(self, runs: Sequence[Run]) -> list[Run]:
        """Those that are drawn, the newest first."""
        chosen = [run for run in runs if run.id in self.runs]
        return chosen[:MOST_RUNS] or list(runs[:NEWEST_RUNS])


ALL_NEWEST = Choice()


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a run said to one prompt."""

    prompt: str
    texts: tuple[tuple[int, str], ...]
    """Step and words, the newest first."""


def write_page(runs: Sequence[Run], path: Path, *, now: float) -> None:
    """Write the page; a file that is there is replaced whole."""
    with write_whole(path) as stream:
        stream.write(render_page(runs, now=now).encode())


def render_page(runs: Sequence[Run], *, now: float) -> str:
    """The page as HTML; names are escaped."""
    style = (WEB_FOLDER / "runs.css").read_text(encoding="utf-8")
    inside = render_inside(runs, choice=Choice(runs=frozenset(run.id for run in runs)))
    return _render("runs.html", style=style, inside=inside, written=_moment(now))


def render_frame() -> str:
    """The live page without its inside: style and script are files of the server."""
    return _render("runs.html", style=None, inside="", written=None)


def render_inside(
    runs: Sequence[Run], *, choice: Choice = ALL_NEWEST, is_live: bool = False
) -> str:
    """Table, charts and words; a live page lets its reader choose."""
    # The oldest has the first color, and keeps it when others begin.
    shown = choice.pick(runs)[::-1]
    colors = {run.id: number for number, run in enumerate(shown)}
    return _render(
        "inside.html",
        runs=[(run, describe_run(run), colors.get(run.id)) for run in runs],
        charts=draw_charts(shown, axis=choice.axis),
        said=[(run, colors[run.id], said) for run in shown[::-1] if (said := read_samples(run))],
        choice=choice,
        axes=AXES,
        is_live=is_live,
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
        "done": "100%" if run.state == "finished" else _number(run.last("share"), "{:.0%}"),
        "loss": _number(run.last("loss"), "{:.3f}"),
        "validation": _number(validation, "{:.4f}"),
        "tok/s": _number(run.tokens_a_second, "{:,.0f}"),
        "peak": _number(run.last("peak_share"), "{:.0%}"),
        "began": _moment(run.started),
    }


def read_samples(run: Run) -> list[Said]:
    """What a run said, by prompt."""
    found: dict[str, list[tuple[int, str]]] = {}
    for step in reversed(run.steps):
        for each in step["samples"]:
            found.setdefault(each["prompt"], []).append((step["step"], each["text"]))
    return [Said(prompt=prompt, texts=tuple(texts)) for prompt, texts in found.items()]


def choose(runs: Collection[str], axis: str | None) -> Choice:
    """What a reader asked for; an axis that there is not is left out."""
    known: Axis = next((each for each in AXES if each == axis), "step")
    return Choice(runs=frozenset(runs), axis=known)


def _render(name: str, **given: object) -> str:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(WEB_FOLDER),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(given)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
