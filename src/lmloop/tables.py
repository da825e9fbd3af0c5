"""What the command line shows of many runs: a table of them, and what is best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmloop.store.runs import Run
    from lmloop.tuning.search import Tuned


def show_tuned(tuned: Tuned) -> None:
    """Print all trials, what mattered, and the best values as lines for the recipe."""
    keys = list(tuned.best.values)
    _show_table(
        ("trial", *keys, tuned.metric, "seconds", "end"),
        [
            (
                str(trial.number),
                *(str(trial.values.get(key, "")) for key in keys),
                "-" if trial.value is None else f"{trial.value:.4f}",
                "-" if trial.seconds is None else f"{trial.seconds:.1f}",
                "best" if trial == tuned.best else trial.state,
            )
            for trial in tuned.trials
        ],
    )
    lines = [f"{key}: {share:.0%} of what mattered" for key, share in tuned.importance.items()]
    lines += [f"plots: {tuned.page}", "", "the best values, for the recipe:", "", tuned.toml()]
    _show_lines(lines)


def show_runs(runs: Sequence[Run]) -> None:
    """Print a line for each run."""
    from lmloop.tracking.page import describe_run

    if not runs:
        _show_lines(["nothing has been trained in this home yet"])
        return
    told = [describe_run(run) for run in runs]
    _show_table(tuple(told[0]), [tuple(each.values()) for each in told])


def _show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns side by side, however wide: whoever reads them elsewhere cuts them at spaces."""
    lines = [columns, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    _show_lines(padded)


def _show_lines(lines: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for line in lines:
        console.print(line)
