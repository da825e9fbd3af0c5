"""The verb `plan` on the command line: its options, and the table that it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lmloop.options import Home, Recipe, parse_overrides

if TYPE_CHECKING:
    from rich.table import Table

    from lmloop.training.plan import Plan


def plan(
    context: typer.Context,
    recipe: Recipe,
    home: Home = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of an hour of this machine, in any currency.")
    ] = None,
    fit: Annotated[
        bool, typer.Option("--fit", help="Foresee the loss as well, from small runs.")
    ] = False,
    fit_seconds: Annotated[
        float, typer.Option(min=1, help="How long --fit trains, in all.")
    ] = 60.0,
) -> None:
    """Foresee parameters, memory, tokens, time, cost and loss of a recipe."""
    from lmloop.console import make_progress
    from lmloop.planning import plan as foresee

    overrides = parse_overrides(context.args)
    found = foresee(
        recipe,
        home=home,
        fit=fit,
        fit_seconds=fit_seconds,
        progress=make_progress() if fit else None,
        **overrides,
    )
    show_plan(found, price=price)


def show_plan(plan: Plan, *, price: float | None = None) -> None:
    """Print what a recipe will cost, at a price an hour where there is one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{plan.parameters / 1e6:.2f} M parameters, "
        f"checkpoint {plan.checkpoint_bytes / 1e6:.1f} MB, "
        f"{plan.cache_bytes_per_token / 1e3:.1f} kB of cache a token"
    )
    about = "" if plan.text.is_tokenized else "about "
    console.print(
        f"text {plan.text.bytes / 1e6:.1f} MB, {about}{plan.text.tokens / 1e6:.2f} M tokens"
    )
    console.print(_make_work_table(plan))
    console.print(_make_memory_table(plan))
    for stage in plan.stages:
        if stage.advice:
            console.print(
                f"{stage.stage} is too large for {plan.free_bytes / 1e9:.1f} GB of free memory: "
                f"{', then '.join(stage.advice)}"
            )
    if price is not None:
        console.print(f"cost {plan.cost(price):.2f} at {price:g} an hour")
    if plan.expected is not None:
        expected = plan.expected
        console.print(
            f"expected behind pretrain: {expected.loss:.3f} bits per byte on the validation text, "
            f"with 90 % between {expected.low:.3f} and {expected.high:.3f}"
        )


def _make_work_table(plan: Plan) -> Table:
    columns = ("stage", "time", "steps", "tokens", "epochs", "TFLOP", "tokens/s", "GFLOP/s")
    return _make_table(
        columns,
        [
            (
                stage.stage,
                f"{stage.seconds:,.0f} s",
                f"{stage.steps:,}",
                f"{stage.tokens / 1e6:.2f} M",
                f"{stage.epochs:.2f}",
                f"{stage.flops / 1e12:,.1f}",
                f"{stage.tokens_per_second:,.0f}",
                f"{stage.flops_per_second / 1e9:,.0f}",
            )
            for stage in plan.stages
        ],
    )


def _make_memory_table(plan: Plan) -> Table:
    """A row a part, a column a stage, in MB."""
    rows = [
        (
            name.replace("_", " "),
            *(f"{asdict(each.memory)[name] / 1e6:,.0f}" for each in plan.stages),
        )
        for name in asdict(plan.stages[0].memory)
    ]
    for name in ("peak", "snapshot"):
        sizes = (f"{getattr(each.memory, name) / 1e6:,.0f}" for each in plan.stages)
        rows.append((name if name == "peak" else "snapshot on disk", *sizes))
    at_once = (f"{each.micro_batch_tokens:,}" for each in plan.stages)
    rows.append(("tokens at once", *at_once))
    return _make_table(("MB", *(each.stage for each in plan.stages)), rows)


def _make_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table()
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
