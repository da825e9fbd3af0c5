"""The verbs around training: searching for settings, looking at runs."""

from __future__ import annotations

import time
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import typer

from lmloop.errors import UsageError
from lmloop.options import OVERRIDES, Home, Host, Port, Recipe, RecipeCommand, parse_overrides

RUNS_PORT = 8010
"""Of the page of runs, beside the 8000 of a served model."""


def add_verbs(app: typer.Typer) -> None:
    """Enter the verbs of this file."""
    app.command(cls=RecipeCommand, context_settings=OVERRIDES)(tune)
    app.command()(runs)


def tune(
    context: typer.Context,
    recipe: Recipe,
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="KEY=RANGE",
            help="What to search: KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:STEP or "
            "KEY=ONE,OTHER; several may follow.",
        ),
    ],
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Trainings, those of earlier calls included.")
    ] = 20,
    stage: Annotated[
        str, typer.Option("--stage", help="What is made with each trial's values.")
    ] = "pretrain",
    metric: Annotated[
        str | None,
        typer.Option(
            "--metric",
            help="Figure of what the stage makes, as `lmloop show` tells it [default: the one that "
            "the stage validates by].",
        ),
    ] = None,
    maximize: Annotated[
        bool, typer.Option("--maximize", help="The highest is best; nothing is pruned then.")
    ] = False,
    prune: Annotated[
        bool, typer.Option(help="Give up trials that validate worse than the median.")
    ] = True,
    home: Home = None,
) -> None:
    """Search a recipe's best values by many trainings. The same command goes on."""
    from lmloop.console import make_progress
    from lmloop.tables import show_tuned
    from lmloop.tuning.search import tune

    more = list(takewhile(lambda word: not word.startswith("--"), context.args))
    tuned = tune(
        Path(recipe),
        over=[*over, *more],
        trials=trials,
        stage=stage,
        metric=metric,
        maximize=maximize,
        prune=prune,
        home=home,
        progress=make_progress(),
        **parse_overrides(context.args[len(more) :]),
    )
    show_tuned(tuned)


def runs(
    name: Annotated[
        str | None, typer.Argument(help="Name of a recipe [default: all].", show_default=False)
    ] = None,
    home: Home = None,
    most: Annotated[int, typer.Option("--most", min=1, help="How many, the newest.")] = 20,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write them with their curves into this file.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option("--png", help="Write their curves into this picture (extra track)."),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option(
            "--serve", help="Show them on a page that follows them, on 127.0.0.1:8010 unless told."
        ),
    ] = False,
    host: Host = None,
    port: Port = None,
) -> None:
    """List trainings under way and done, with loss and speed."""
    from lmloop import care
    from lmloop.tables import show_runs

    if not serve and (host is not None or port is not None):
        raise UsageError("--host and --port are of the live page: add --serve")
    read = partial(care.runs, home=home, name=name, most=most)
    found = read()
    show_runs(found)
    if html is not None:
        from lmloop.tracking.page import write_page

        write_page(found, html, now=time.time())
    if png is not None:
        from lmloop.tracking.picture import write_picture

        write_picture(found, png)
    if serve:
        from lmloop.console import show_page
        from lmloop.serving.pages import serve_pages
        from lmloop.tracking.live import build_runs_pages

        serve_pages(
            [build_runs_pages(read)],
            host=host or "127.0.0.1",
            port=RUNS_PORT if port is None else port,
            on_ready=show_page,
        )
